package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// host is what slots share on this machine.
type host struct {
	pool    netip.Prefix
	gateway netip.Addr
}

// defaultPools are tried in order when the configuration names none: first some
// that few hosts have, in each of the private ranges, then the rest of 10.0.0.0/8
// from its end.
func defaultPools(yield func(netip.Prefix) bool) {
	for _, p := range [...]string{"10.231.0.0/16", "10.229.0.0/16", "172.29.0.0/16", "10.163.0.0/16", "172.22.0.0/16", "192.168.192.0/18"} {
		if !yield(netip.MustParsePrefix(p)) {
			return
		}
	}
	for i := 255; i >= 0; i-- {
		if !yield(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16)) {
			return
		}
	}
}

// routeProtocol marks the pool's route as ours; the number has no other user in
// iproute2's table.
const routeProtocol = 110

// Finding is something about the host that an operator should know.
type Finding struct {
	Subject string // "forwarding", "docker", "uplink", "pool"
	Problem bool   // false: only told, for it was changed on the host
	Message string // what is so, and what to do about it
}

// Findings tells what was changed on the host and what keeps guests from the
// network, in a stable order.
func (n *Network) Findings() []Finding {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]Finding, 0, len(n.findings))
	for _, f := range n.findings {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.Subject+a.Message, b.Subject+b.Message) })
	return out
}

// note keeps a finding under a key; a nil-message finding takes it away.
func (n *Network) note(key string, f Finding) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f.Message == "" {
		delete(n.findings, key)
		return
	}
	if _, known := n.findings[key]; !known {
		n.log.Info("network: "+f.Message, "subject", f.Subject, "problem", f.Problem)
	}
	n.findings[key] = f
}

// prepareHost chooses the pool, puts the gateway's address on the loopback and
// closes the pool's unused addresses, so that nothing sent to a slot that is gone
// leaves by the uplink.
func (n *Network) prepareHost(inUse bool) (host, error) {
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return host{}, fmt.Errorf("network: %w", err)
	}
	for {
		pool, err := n.choosePool(inUse)
		if err != nil {
			return host{}, err
		}
		h := host{pool: pool, gateway: addrAt(pool, 1)}
		// The address makes the pool ours: of servers that chose at the same moment one has it.
		err = n.nl.AddrAdd(lo, n.gatewayAddr(pool))
		if errors.Is(err, unix.EEXIST) {
			var current netip.Prefix
			if current, err = n.currentPool(); err == nil && current != pool {
				continue
			}
		}
		if err != nil {
			return h, fmt.Errorf("network: gateway address on lo: %w", err)
		}
		if err := n.nl.RouteReplace(poolRoute(pool)); err != nil {
			return h, fmt.Errorf("network: pool route: %w", err)
		}
		return h, nil
	}
}

func (n *Network) gatewayAddr(pool netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addrAt(pool, 1), 32)), Label: n.names.label(), Scope: unix.RT_SCOPE_HOST}
}

func poolRoute(pool netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: ipNet(pool), Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol, Priority: 4096}
}

// clearHost undoes prepareHost, and what is left of one that did not end: an address
// without its route. Forwarding on the uplink stays on: others may rely on it by now.
func (n *Network) clearHost() error {
	pool, err := n.currentPool()
	if err != nil {
		return err
	}
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	addrs, err := addresses(n.nl)
	if err != nil {
		return err
	}
	var errs []error
	if pool.IsValid() {
		if err := n.nl.RouteDel(poolRoute(pool)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("network: pool route: %w", err))
		}
	}
	for _, a := range addrs {
		if a.Label != n.names.label() {
			continue
		}
		if err := n.nl.AddrDel(lo, &netlink.Addr{IPNet: a.IPNet}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("network: gateway address: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (n *Network) choosePool(inUse bool) (netip.Prefix, error) {
	current, err := n.currentPool()
	if err != nil {
		return netip.Prefix{}, err
	}
	if kept, f := n.keptPool(current, inUse); kept {
		if f.Message != "" {
			n.note("pool", f)
		}
		return current, nil
	}
	if err := n.clearHost(); err != nil {
		return netip.Prefix{}, err
	}
	return n.freePool()
}

// keptPool tells whether an earlier run's pool is kept, and what to say of that.
func (n *Network) keptPool(current netip.Prefix, inUse bool) (bool, Finding) {
	want := n.cfg.Pool
	switch {
	case !current.IsValid() || want.IsValid() && want != current && !inUse:
		return false, Finding{}
	case want.IsValid() && want != current:
		return true, Finding{"pool", true, fmt.Sprintf("slots of an earlier run are in %s; the configured pool %s is taken when they are gone and the daemon starts again", current, want)}
	}
	return true, Finding{}
}

// freePool is the configured pool, or the first that the host does not use.
func (n *Network) freePool() (netip.Prefix, error) {
	if want := n.cfg.Pool; want.IsValid() {
		used, err := n.poolUser(want)
		if err == nil && used != "" {
			err = nacre.Invalidf("network_pool", "network pool %s overlaps %s on this host; name a free IPv4 network of /12 to /28 with --network-pool", want, used)
		}
		return want, err
	}
	for p := range defaultPools {
		used, err := n.poolUser(p)
		if err != nil {
			return netip.Prefix{}, err
		}
		if used == "" {
			return p, nil
		}
	}
	return netip.Prefix{}, nacre.Invalidf("network_pool", "all private networks that sandboxes could have overlap one of this host; name a free IPv4 network of /12 to /28 with --network-pool")
}

// currentPool finds the pool of an earlier run: the address on lo has our label,
// and the route that has it as its first host tells the size.
func (n *Network) currentPool() (netip.Prefix, error) {
	addrs, err := addresses(n.nl)
	if err != nil {
		return netip.Prefix{}, err
	}
	ours, err := routes(n.nl, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, a := range addrs {
		if a.Label != n.names.label() {
			continue
		}
		for _, r := range ours {
			if p, ok := prefixOf(r.Dst); ok && addrAt(p, 1) == addrOf(a.IP) {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, nil
}

// poolUser names what of the host's is in p: an address, a route, its router or a DNS
// server, which it would reach no longer.
func (n *Network) poolUser(p netip.Prefix) (string, error) {
	addrs, err := addresses(n.nl)
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		if q, ok := prefixOf(a.IPNet); ok && q.Overlaps(p) {
			return "the address " + q.String(), nil
		}
	}
	all, err := routes(n.nl, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return "", err
	}
	for _, r := range all {
		if p.Contains(addrOf(r.Gw)) {
			return "the router " + r.Gw.String(), nil
		}
		// A network as wide as 10.0.0.0/8 behind a router is no collision: ours is
		// more specific. A link that is in it is.
		if q, ok := prefixOf(r.Dst); ok && q.Bits() > 0 && q.Overlaps(p) && (r.Gw == nil || q.Bits() >= p.Bits()) {
			return "the route to " + q.String(), nil
		}
	}
	servers := newUpstreams(nil, n.cfg.ResolvConf, netip.Addr{}).list()
	for _, s := range append(servers, newUpstreams(n.cfg.Upstreams, "", netip.Addr{}).list()...) {
		if a, err := netip.ParseAddrPort(s); err == nil && p.Contains(a.Addr()) {
			return "the DNS server " + a.Addr().String(), nil
		}
	}
	return "", nil
}

// watchHost follows changes of the host's addresses and routes: a new uplink must
// forward, and the networks next to it are closed to guests.
func (n *Network) watchHost() {
	addrs := make(chan netlink.AddrUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 64)
	if err := errors.Join(netlink.AddrSubscribe(addrs, n.ctx.Done()), netlink.RouteSubscribe(routes, n.ctx.Done())); err != nil {
		n.log.Warn("network: changes of the host's addresses are not followed", "error", err)
		return
	}
	// Slots coming and going are route changes too; they are not of interest.
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case a, ok := <-addrs:
			if !ok {
				return
			}
			if p, ok := prefixOf(&a.LinkAddress); ok && !n.host.pool.Contains(p.Addr()) {
				timer.Reset(200 * time.Millisecond)
			}
		case r, ok := <-routes:
			if !ok {
				return
			}
			if p, ok := prefixOf(r.Dst); !ok || !n.host.pool.Contains(p.Addr()) {
				timer.Reset(200 * time.Millisecond)
			}
		case <-timer.C:
			n.refreshHost()
			if err := n.rules.setBlocked(); err != nil && n.ctx.Err() == nil {
				n.log.Error("network: the list of closed networks could not be renewed", "error", err)
			}
		}
	}
}

// refreshHost looks at the host as it is now: which links lead out, what networks
// are next to it, and what is in the way.
func (n *Network) refreshHost() {
	links := map[int]string{}
	targets := []netip.Addr{netip.AddrFrom4([4]byte{1, 1, 1, 1})}
	for _, p := range n.cfg.AllowPrivate {
		targets = append(targets, p.Addr().Unmap())
	}
	for i, t := range targets {
		rs, err := n.nl.RouteGet(t.AsSlice())
		if err != nil || len(rs) == 0 || rs[0].LinkIndex == 0 {
			if i == 0 {
				n.note("uplink", Finding{"uplink", true, "the host has no default route; guests cannot reach the internet until it has one"})
			}
			continue
		}
		if i == 0 {
			n.note("uplink", Finding{})
		}
		if l, err := n.nl.LinkByIndex(rs[0].LinkIndex); err == nil {
			links[rs[0].LinkIndex] = l.Attrs().Name
		}
	}
	for _, name := range links {
		n.forward(name)
	}
	if next, err := n.connected(); err != nil {
		n.log.Warn("network: the networks next to the host may have changed; those that were are closed", "error", err)
	} else {
		n.rules.setConnected(next)
	}
	n.checkFirewalls()
	none := Finding{}
	if len(n.upstreams.list()) == 0 {
		none = Finding{"dns", true, fmt.Sprintf("%s names no DNS server that could answer guests; they cannot resolve names", n.cfg.ResolvConf)}
	}
	n.note("resolver", none)
}

// forward lets packets for guests in through a link. Per link, not with ip_forward:
// that would make a router of every interface.
func (n *Network) forward(link string) {
	if link == "lo" {
		return
	}
	key := "ipv4/conf/" + link + "/forwarding"
	if b, err := os.ReadFile("/proc/sys/net/" + key); err != nil || strings.TrimSpace(string(b)) == "1" {
		return
	}
	f := Finding{"forwarding", false, fmt.Sprintf("IPv4 forwarding was switched on for %s (net.ipv4.conf.%s.forwarding), so that guests reach the network", link, link)}
	if err := sysctl(key, "1"); err != nil {
		f.Problem, f.Message = true, fmt.Sprintf("guests have no way out: set net.ipv4.conf.%s.forwarding=1 on the host; it could not be set here (%v)", link, err)
	}
	n.note("forward "+link, f)
}

// connected lists the networks that the host's links are in.
func (n *Network) connected() (out []netip.Prefix, err error) {
	addrs, err := addresses(n.nl)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok {
			out = append(out, p)
		}
		if a.Peer != nil {
			if p, ok := prefixOf(a.Peer); ok {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// uplinkMTU is that of the link of the default route. A guest with a larger one
// would depend on path MTU discovery, which many networks break.
func (n *Network) uplinkMTU() int {
	const usual = 1500
	rs, err := n.nl.RouteGet([]byte{1, 1, 1, 1})
	if err != nil || len(rs) == 0 || rs[0].LinkIndex == 0 {
		return usual
	}
	l, err := n.nl.LinkByIndex(rs[0].LinkIndex)
	if err != nil || l.Attrs().MTU < 576 || l.Attrs().MTU > 9216 {
		return usual // the loopback's 65536 too
	}
	return l.Attrs().MTU
}
