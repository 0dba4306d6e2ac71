// Package network gives each machine a slot: a network namespace with one
// interface, an address, a way out and the filter rules that hold the guest to
// its policy.
//
// All slots of an installation share one gateway address, which lives on the
// host's loopback and is the guests' DNS server. Each slot's host link has a
// route to exactly one guest address, so "does the route back to the source lead
// through the link that it came from" is the whole test against spoofing. One
// nftables table holds the rules; a map from link name to verdict says what
// policy a slot has, so a packet costs the same with one slot as with thousands.
// Namespaces, links and rules stay when this process dies; Recover takes them
// back.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"sync"

	"github.com/nacrehq/nacre"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Config says how slots are made. The zero value of a field is its default.
type Config struct {
	// Instance keeps installations on one host apart: it is part of the name of
	// every namespace, link and table. 1 to 6 characters of [a-z0-9]. Required.
	Instance string

	// Pool is the IPv4 network that guests get addresses from, /12 to /28. The
	// default is the first of a list of private /16s that the host does not use.
	// While slots of an earlier run exist, theirs is kept.
	Pool netip.Prefix

	// Ready is how many slots are made ahead: 16; negative for none.
	Ready int

	// AllowPrivate are networks, otherwise closed to every guest, that the
	// operator opens to policies: a database on the LAN. Only as precise as
	// possible.
	AllowPrivate []netip.Prefix

	// MaxConns is how many connections a slot may have open at once: 4096.
	MaxConns int

	// BytesPerSecond caps each direction of a slot; 0 does not.
	BytesPerSecond int64

	// DNSPort is where the forwarder listens on the gateway's address: 53. Set
	// another when something on the host occupies port 53 on every address; the
	// guests see 53 all the same.
	DNSPort int

	// Upstreams answer the guests' DNS questions; by default those of ResolvConf,
	// which is read again when it changes.
	Upstreams []netip.AddrPort

	// ResolvConf is /etc/resolv.conf.
	ResolvConf string

	Log *slog.Logger
}

var instanceForm = regexp.MustCompile(`^[a-z0-9]{1,6}$`)

func (c *Config) setDefaults() error {
	if !instanceForm.MatchString(c.Instance) {
		return nacre.Invalidf("network.instance", "network instance %q must be 1 to 6 characters of a-z and 0-9", c.Instance)
	}
	if c.Pool.IsValid() {
		c.Pool = c.Pool.Masked()
		if !c.Pool.Addr().Is4() || c.Pool.Bits() < 12 || c.Pool.Bits() > 28 {
			return nacre.Invalidf("network_pool", "network pool %s must be an IPv4 network of /12 to /28", c.Pool)
		}
	}
	for _, p := range c.AllowPrivate {
		if !p.IsValid() || !p.Addr().Unmap().Is4() {
			return nacre.Invalidf("network.allow_private", "%s is not an IPv4 network; guests have no IPv6", p)
		}
	}
	if c.Ready == 0 {
		c.Ready = 16
	}
	c.Ready = max(c.Ready, 0)
	if c.MaxConns <= 0 {
		c.MaxConns = 4096
	}
	if c.DNSPort <= 0 {
		c.DNSPort = 53
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Network implements nacre.Network. Call Recover once, before the first Acquire:
// until then the rules of an earlier process are in force, untouched.
type Network struct {
	cfg       Config
	log       *slog.Logger
	host      host
	names     names
	nl        *netlink.Handle
	links     *linkRemover
	rules     *rules
	dns       *forwarder
	upstreams *upstreams

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	done   sync.WaitGroup

	refill chan struct{} // wakes the maker

	mu        sync.Mutex
	recovered bool
	held      map[nacre.MachineID]*holding
	ready     []slot
	index     indexes
	findings  map[string]Finding
}

var _ nacre.Network = (*Network)(nil)

// New prepares the host: the gateway's address, forwarding on the uplink, the
// rules if there are none yet, and the DNS forwarder. It needs root.
func New(cfg Config) (*Network, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE) // by default of XFRM too, which a host may lack
	if err != nil {
		return nil, nacre.Wrap(nacre.CodeInternal, err, "the network cannot be set up: no netlink socket; is the daemon root?")
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &Network{
		cfg: cfg, log: cfg.Log, nl: nl, links: &linkRemover{nl: nl}, names: names{cfg.Instance},
		ctx: ctx, cancel: cancel,
		refill:   make(chan struct{}, 1),
		held:     map[nacre.MachineID]*holding{},
		findings: map[string]Finding{},
	}
	if err := n.start(); err != nil {
		n.stop()
		return nil, err
	}
	return n, nil
}

func (n *Network) start() error {
	if err := prepareNetnsDir(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	left, err := n.leftovers()
	if err != nil {
		return err
	}
	if n.host, err = n.prepareHost(len(left) > 0); err != nil {
		return err
	}
	n.index = newIndexes(n.host.pool)
	for _, i := range left {
		n.index.take(i)
	}
	n.upstreams = newUpstreams(n.cfg.Upstreams, n.cfg.ResolvConf, n.host.gateway)
	n.rules = &rules{names: n.names, host: n.host, cfg: n.cfg}
	n.refreshHost()
	exists, err := n.rules.exist()
	if err != nil {
		return err
	}
	if !exists {
		if err := n.rules.install(nil); err != nil {
			return err
		}
	}
	if n.dns, err = startForwarder(n.ctx, n.host.gateway, n.upstreams, n.cfg); err != nil {
		return err
	}
	n.done.Go(n.watchHost)
	n.done.Go(n.watchRules)
	return nil
}

// Close ends the background work and the DNS forwarder and deletes slots that
// nobody holds. Machines keep theirs, with the rules in force but without DNS
// until the next process recovers them.
func (n *Network) Close(ctx context.Context) error {
	n.stop()
	n.mu.Lock()
	ready := n.ready
	n.ready = nil
	n.mu.Unlock()
	err := n.destroyAll(ctx, ready)
	n.rules.close()
	n.nl.Close()
	return err
}

// destroyAll destroys slots in batches until ctx ends.
func (n *Network) destroyAll(ctx context.Context, slots []slot) error {
	var errs []error
	for batch := range slices.Chunk(slots, maxLinkBatch) {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, n.destroySlots(batch...))
	}
	return errors.Join(errs...)
}

// slotAt describes a slot of which only the index is known.
func (n *Network) slotAt(i int) slot {
	s := slot{index: i, Slot: nacre.Slot{Name: n.names.netns(i), Path: n.names.path(i), HostLink: n.names.link(i)}}
	if n.host.pool.IsValid() {
		s.Guest = netip.PrefixFrom(addrAt(n.host.pool, i), n.host.pool.Bits())
	}
	return s
}

func (n *Network) stop() {
	n.cancel()
	n.done.Wait()
	if n.dns != nil {
		n.dns.close()
	}
}

// Destroy removes everything of the installation from this host, also what
// machines hold. It is for uninstalling and for tests; no daemon may run.
func Destroy(instance string) error {
	cfg := Config{Instance: instance}
	if err := cfg.setDefaults(); err != nil {
		return err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE) // by default of XFRM too, which a host may lack
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	defer nl.Close()
	n := &Network{cfg: cfg, log: cfg.Log, nl: nl, links: &linkRemover{nl: nl}, names: names{instance}}
	left, err := n.leftovers()
	if err != nil {
		return err
	}
	if n.host.pool, err = n.currentPool(); err != nil {
		return err
	}
	slots := make([]slot, len(left))
	for k, i := range left {
		slots[k] = n.slotAt(i)
	}
	errs := []error{n.destroyAll(context.Background(), slots)}
	for _, s := range slots {
		if s.Guest.IsValid() {
			errs = append(errs, flushConntrack(s.Guest.Addr()))
		}
	}
	r := &rules{names: n.names}
	defer r.close()
	return errors.Join(append(errs, r.remove(), n.clearHost())...)
}
