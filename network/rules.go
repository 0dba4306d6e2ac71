package network

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// closedNetworks are closed to every guest: what is not the public internet, and
// what clouds serve credentials on (169.254.169.254 and, in 100.64.0.0/10,
// 100.100.100.200). From the IANA special-purpose registry.
var closedNetworks = [...]string{
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3",
	"168.63.129.16/32", // Azure's host agent, a public address that is none
}

// rules is the installation's one nftables table.
//
//	chain forward  from a slot: source, state, closed networks, number of
//	               connections, then what the map says of the link;
//	               to a slot: replies only, and only those that the map
//	               still allows: a changed policy ends what it forbids
//	chain input    from a slot: replies to the host, DNS at the gateway
//	chain nat      from a slot to elsewhere: the host's address
//	map policy     link name -> accept, refuse, or the slot's own chain
//
// A link that the map does not name is cut off.
type rules struct {
	names names
	host  host
	cfg   Config

	mu        sync.Mutex // one transaction at a time; the library's counters need it too
	conn      *nftables.Conn
	connected []netip.Prefix
	policies  map[int]policy // in force, by slot
}

const (
	policyMap  = "policy"
	blockedSet = "blocked"
	connsSet   = "conns"
	refuse     = "refuse"

	// Packets a second from one slot to the host: DNS, and attempts.
	inputRate, inputBurst = 200, 400
)

func (r *rules) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: r.names.table()}
}

func (r *rules) policySet() *nftables.Set {
	return &nftables.Set{Table: r.table(), Name: policyMap, IsMap: true, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian, DataType: nftables.TypeVerdict}
}

func (r *rules) blocked() *nftables.Set {
	return &nftables.Set{Table: r.table(), Name: blockedSet, KeyType: nftables.TypeIPAddr, Interval: true}
}

// transaction runs fn on an empty batch and commits it whole or not at all. The
// caller holds mu.
//
// The socket is kept: to close one, the kernel waits until what the batch has
// deleted is unused, 15 ms or so.
func (r *rules) transaction(fn func(*nftables.Conn) error) (err error) {
	if r.conn == nil {
		// The batch of a large recovery, and its acknowledgements, must fit.
		big := func(c *netlink.Conn) error {
			return errors.Join(c.SetWriteBuffer(32<<20), c.SetReadBuffer(32<<20))
		}
		if r.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(big)); err != nil {
			return fmt.Errorf("network: nftables: %w", err)
		}
	}
	if err = fn(r.conn); err == nil {
		err = r.conn.Flush()
	}
	if err != nil { // what is left on the socket or in the batch belongs to nobody
		r.disconnect()
		return fmt.Errorf("network: nftables: %w", err)
	}
	return nil
}

func (r *rules) disconnect() {
	if r.conn != nil {
		_ = r.conn.CloseLasting()
		r.conn = nil
	}
}

func (r *rules) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.disconnect()
}

// exist tells whether an earlier process left the table.
func (r *rules) exist() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("network: nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("network: nftables cannot be read (is nf_tables in the kernel?): %w", err)
	}
	for _, t := range tables {
		if t.Name == r.names.table() {
			return true, nil
		}
	}
	return false, nil
}

func (r *rules) remove() error {
	exists, err := r.exist()
	if err != nil || !exists {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.transaction(func(c *nftables.Conn) error {
		c.DelTable(r.table())
		return nil
	})
}

// install replaces the whole table, with the policies given by slot, in one step.
func (r *rules) install(slots map[int]policy) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.replace(slots)
}

// repair puts the table back, as it was, if it is gone: somebody flushed all
// rules of the host, as a restart of its firewall does.
func (r *rules) repair() (repaired bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	exists, err := r.exist()
	if err != nil || exists {
		return false, err
	}
	return true, r.replace(r.policies)
}

func (r *rules) replace(slots map[int]policy) error {
	err := r.transaction(func(c *nftables.Conn) error {
		t := c.AddTable(r.table()) // a delete needs one
		c.DelTable(t)
		c.AddTable(t)
		if err := c.AddSet(r.blocked(), elements(r.closed())); err != nil {
			return err
		}
		if err := c.AddSet(r.policySet(), nil); err != nil {
			return err
		}
		conns := &nftables.Set{Table: t, Name: connsSet, KeyType: nftables.TypeIPAddr, Dynamic: true, Size: 1 << 20}
		if err := c.AddSet(conns, nil); err != nil {
			return err
		}
		r.addRefuse(c)
		err := errors.Join(r.addFromSlot(c), r.addToSlot(c), r.addFilter(c))
		r.addNAT(c)
		return errors.Join(err, r.addPolicies(c, slots))
	})
	if err == nil {
		r.policies = maps.Clone(slots)
		if r.policies == nil {
			r.policies = map[int]policy{}
		}
	}
	return err
}

// addPolicies adds the map's elements in pieces: a netlink attribute holds 64 KiB.
func (r *rules) addPolicies(c *nftables.Conn, slots map[int]policy) error {
	var els []nftables.SetElement
	for i, p := range slots {
		if err := r.addChain(c, i, p); err != nil {
			return err
		}
		els = append(els, r.element(i, p))
	}
	const piece = 400
	for len(els) > 0 {
		k := min(piece, len(els))
		if err := c.SetAddElements(r.policySet(), els[:k]); err != nil {
			return err
		}
		els = els[k:]
	}
	return nil
}

// closed is what no policy opens. The pool is never opened, not even by the operator.
func (r *rules) closed() []span {
	ps := make([]netip.Prefix, 0, len(closedNetworks)+len(r.connected))
	for _, s := range closedNetworks {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	ps = append(ps, r.connected...)
	open := subtract(spans(r.cfg.AllowPrivate), spans([]netip.Prefix{r.host.pool}))
	return subtract(spans(append(ps, r.host.pool)), open)
}

// setConnected tells the networks next to the host, for the next install or setBlocked.
func (r *rules) setConnected(ps []netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connected = ps
}

func (r *rules) setBlocked() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.transaction(func(c *nftables.Conn) error {
		c.FlushSet(r.blocked())
		return c.SetAddElements(r.blocked(), elements(r.closed()))
	})
}

func (r *rules) chain(name string) *nftables.Chain {
	return &nftables.Chain{Table: r.table(), Name: name}
}

func (r *rules) rule(c *nftables.Conn, chain string, parts ...[]expr.Any) {
	var es []expr.Any
	for _, p := range parts {
		es = append(es, p...)
	}
	c.AddRule(&nftables.Rule{Table: r.table(), Chain: r.chain(chain), Exprs: es})
}

// addRefuse answers, so that a program in the guest fails at once instead of
// waiting for its time-out.
func (r *rules) addRefuse(c *nftables.Conn) {
	c.AddChain(r.chain(refuse))
	r.rule(c, refuse, l4proto(unix.IPPROTO_TCP), one(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}))
	r.rule(c, refuse, one(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}))
}

// addFromSlot: every packet is held to the policy as it is now, whether its
// connection was allowed once or not.
func (r *rules) addFromSlot(c *nftables.Conn) error {
	const name = "from_slot"
	c.AddChain(r.chain(name))
	err := r.addBandwidth(c, name, expr.MetaKeyIIFNAME)
	r.rule(c, name, stateIs(expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED), drop())
	r.rule(c, name, daddr(), inSet(blockedSet), goTo(refuse))
	r.rule(c, name, stateIs(expr.CtStateBitNEW), r.tooManyConns(), goTo(refuse))
	r.rule(c, name, ifname(expr.MetaKeyIIFNAME), vmap(policyMap))
	r.rule(c, name, drop())
	return err
}

func (r *rules) addToSlot(c *nftables.Conn) error {
	const name = "to_slot"
	c.AddChain(r.chain(name))
	err := r.addBandwidth(c, name, expr.MetaKeyOIFNAME)
	r.rule(c, name, stateIs(expr.CtStateBitRELATED), accepted()) // errors, from any router on the way
	r.rule(c, name, stateIs(expr.CtStateBitESTABLISHED), ctReply(), ifname(expr.MetaKeyOIFNAME), vmap(policyMap))
	r.rule(c, name, drop())
	return err
}

// addBandwidth drops what is above a slot's rate, which TCP adapts to.
func (r *rules) addBandwidth(c *nftables.Conn, chain string, key expr.MetaKey) error {
	rate := r.cfg.BytesPerSecond
	if rate <= 0 {
		return nil
	}
	over, err := r.overLimit(c, "rate_"+chain, key, expr.Limit{
		Type: expr.LimitTypePktBytes, Rate: uint64(rate), Burst: uint32(min(max(rate/4, 64<<10), 1<<30)),
	})
	r.rule(c, chain, over, drop())
	return err
}

func (r *rules) baseChain(c *nftables.Conn, name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) {
	accept := nftables.ChainPolicyAccept
	c.AddChain(&nftables.Chain{Table: r.table(), Name: name, Type: kind, Hooknum: hook, Priority: prio, Policy: &accept})
}

// addFilter adds the hooks that packets from and to slots come through.
func (r *rules) addFilter(c *nftables.Conn) error {
	from, to := r.slotLink(expr.MetaKeyIIFNAME), r.slotLink(expr.MetaKeyOIFNAME)

	r.baseChain(c, "forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	r.rule(c, "forward", from, notIPv4(), drop())
	r.rule(c, "forward", from, spoofed(), drop())
	r.rule(c, "forward", from, goTo("from_slot"))
	r.rule(c, "forward", to, goTo("to_slot"))

	const in = "input"
	r.baseChain(c, in, nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	r.rule(c, in, from, notIPv4(), drop())
	r.rule(c, in, from, spoofed(), drop())
	r.rule(c, in, from, stateIs(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), ctReply(), accepted())
	r.rule(c, in, from, stateIs(expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED), drop())
	// Before the socket, which all slots share: a flood would fill its buffer.
	over, err := r.overLimit(c, "rate_input", expr.MetaKeyIIFNAME, expr.Limit{Type: expr.LimitTypePkts, Rate: inputRate, Burst: inputBurst})
	r.rule(c, in, from, over, drop())
	r.rule(c, in, from, udpOver(dnsMaxUDP), drop())
	r.rule(c, in, from, stateIs(expr.CtStateBitNEW), r.tooManyConns(), drop())
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		r.rule(c, in, from, daddrIs(r.host.gateway), l4proto(proto), dport(uint16(r.cfg.DNSPort)), accepted())
	}
	r.rule(c, in, from, goTo(refuse))
	// The gateway's address is for guests and the host, not for the host's neighbours.
	r.rule(c, in, daddrIs(r.host.gateway), notLoopback(), drop())
	return err
}

func (r *rules) addNAT(c *nftables.Conn) {
	from, to := r.slotLink(expr.MetaKeyIIFNAME), r.slotLink(expr.MetaKeyOIFNAME)
	r.baseChain(c, "nat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	r.rule(c, "nat", to, accepted())
	r.rule(c, "nat", saddrIn(r.host.pool), one(&expr.Masq{}))
	if r.cfg.DNSPort == 53 {
		return
	}
	r.baseChain(c, "dnat", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		r.rule(c, "dnat", from, daddrIs(r.host.gateway), l4proto(proto), dport(53), dnat(r.host.gateway, uint16(r.cfg.DNSPort)))
	}
}

// tooManyConns matches when the slot has its fill of connections. The kernel
// forgets an element that counts none.
func (r *rules) tooManyConns() []expr.Any {
	return append(saddr(), &expr.Dynset{
		SrcRegKey: 1, SetName: connsSet, Operation: uint32(unix.NFT_DYNSET_OP_ADD),
		Exprs: []expr.Any{&expr.Connlimit{Count: uint32(r.cfg.MaxConns), Flags: expr.NFT_CONNLIMIT_F_INV}},
	})
}
