package network

import (
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Inspect tells what New with that configuration would find on this host: which
// addresses guests would get, and firewalls that are in the way. The error is why New
// would fail, such as for a pool that the host uses. It changes nothing. An empty Instance is one that has not started yet. Firewalls
// are seen by root only.
func Inspect(cfg Config) ([]Finding, error) {
	names := names{cfg.Instance}
	if cfg.Instance == "" {
		cfg.Instance = "new" // which has nothing on the host
	}
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	defer nl.Close()
	n := &Network{cfg: cfg, log: cfg.Log, nl: nl, names: names, findings: map[string]Finding{}}
	err = n.inspectPool()
	n.checkFirewalls()
	return n.Findings(), err
}

// inspectPool is choosePool of somebody who only looks.
func (n *Network) inspectPool() error {
	var current netip.Prefix
	var left []int
	var err error
	if n.names.instance != "" {
		if left, err = n.leftovers(); err != nil {
			return err
		}
		if current, err = n.currentPool(); err != nil {
			return err
		}
	}
	kept, f := n.keptPool(current, len(left) > 0)
	pool := current
	switch want := n.cfg.Pool; {
	case kept:
	case current.IsValid() && want.IsValid() && want.Overlaps(current):
		pool = want // what is left of the earlier run goes first
	default:
		pool, err = n.freePool()
		if err != nil {
			return err
		}
	}
	if f.Message == "" {
		f = Finding{"pool", false, fmt.Sprintf("sandboxes would have addresses of %s", pool)}
	}
	n.note("pool", f)
	return nil
}
