package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// slot is a nacre.Slot with its place in the pool.
type slot struct {
	index int
	nacre.Slot
}

// gatewayMAC is the same on every link: a guest that resumes elsewhere need not
// learn a new one.
const gatewayMAC = "02:6e:00:00:00:01"

// guestMAC is made from the address: fixed for a slot, different for two.
func guestMAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x6e, b[0], b[1], b[2], b[3]}
}

// makeSlot makes namespace, link and addresses. Until a policy names the link,
// the rules drop everything from it. When it fails nothing is left.
func (n *Network) makeSlot(ctx context.Context, i int) (s slot, err error) {
	guest := addrAt(n.host.pool, i)
	s = slot{index: i, Slot: nacre.Slot{
		Name: n.names.netns(i), Path: n.names.path(i), HostLink: n.names.link(i),
		Guest:   netip.PrefixFrom(guest, n.host.pool.Bits()),
		Gateway: n.host.gateway,
		MAC:     guestMAC(guest).String(),
		MTU:     n.uplinkMTU(),
	}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("network: make slot %s: %w", s.Name, err), n.destroySlots(s))
		}
	}()
	ns, inside, err := newNetns(s.Path)
	if err != nil {
		return s, err
	}
	defer ns.Close()
	defer inside.Close()
	host, err := n.makeLink(s, ns)
	if err != nil {
		return s, err
	}
	if err := configureGuest(inside, s); err != nil {
		return s, err
	}
	if err := n.configureLink(s, host); err != nil {
		return s, err
	}
	return s, awaitUp(ctx, inside)
}

// awaitUp waits until the guest's end sends. The kernel starts it in the
// background, a moment after its peer came up; a first packet that is lost
// before would cost the guest a second (ARP).
func awaitUp(ctx context.Context, inside *netlink.Handle) error {
	const step = 200 * time.Microsecond
	for range 2 * time.Second / step {
		eth, err := inside.LinkByName("eth0")
		if err != nil {
			return fmt.Errorf("guest eth0: %w", err)
		}
		if eth.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(step):
		}
	}
	return errors.New("guest eth0 does not come up")
}

func (n *Network) makeLink(s slot, ns netns.NsHandle) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = s.HostLink, s.MTU
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	attrs.HardwareAddr, _ = net.ParseMAC(gatewayMAC)
	mac, _ := net.ParseMAC(s.MAC)
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: mac, PeerTxQLen: -1,
		PeerMTU: uint32(s.MTU), PeerNamespace: netlink.NsFd(int(ns)),
	}
	if err := n.nl.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("add link: %w", err)
	}
	return veth, nil
}

// configureLink sets up the host's end. No IPv6 first, or the host would talk
// and listen to it on a guest's link for a moment.
func (n *Network) configureLink(s slot, link netlink.Link) error {
	for _, v := range []struct{ key, value string }{
		{"ipv6/conf/" + s.HostLink + "/disable_ipv6", "1"},
		{"ipv4/conf/" + s.HostLink + "/rp_filter", "1"}, // also keeps forged ARP out of the host's table
		{"ipv4/conf/" + s.HostLink + "/forwarding", "1"},
	} {
		if err := sysctl(v.key, v.value); err != nil {
			return err
		}
	}
	if err := n.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("link up: %w", err)
	}
	guest := s.Guest.Addr()
	index := link.Attrs().Index
	err := n.nl.RouteAdd(&netlink.Route{
		LinkIndex: index, Dst: ipNet(netip.PrefixFrom(guest, 32)),
		Src: s.Gateway.AsSlice(), Scope: netlink.SCOPE_LINK,
	})
	if err != nil {
		return fmt.Errorf("route to guest: %w", err)
	}
	mac, _ := net.ParseMAC(s.MAC)
	// A permanent entry does not count against the kernel's limit of neighbours
	// (1024 by default, for all namespaces together).
	err = n.nl.NeighSet(&netlink.Neigh{LinkIndex: index, IP: guest.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT})
	if err != nil {
		return fmt.Errorf("neighbour entry: %w", err)
	}
	return nil
}

func configureGuest(inside *netlink.Handle, s slot) error {
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("guest lo: %w", err)
	}
	if err := inside.LinkSetUp(lo); err != nil {
		return fmt.Errorf("guest lo up: %w", err)
	}
	eth, err := inside.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("guest eth0: %w", err)
	}
	if err := inside.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(s.Guest)}); err != nil {
		return fmt.Errorf("guest address: %w", err)
	}
	if err := inside.LinkSetUp(eth); err != nil {
		return fmt.Errorf("guest eth0 up: %w", err)
	}
	if err := inside.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: s.Gateway.AsSlice()}); err != nil {
		return fmt.Errorf("guest default route: %w", err)
	}
	return nil
}

// destroySlots takes away what is there of slots; a repeat is no error. The links
// go first: with them go the guests' ends, routes and neighbours, even if some
// process still holds a namespace.
func (n *Network) destroySlots(slots ...slot) error {
	links := make([]string, len(slots))
	for i, s := range slots {
		links[i] = s.HostLink
	}
	if err := n.links.remove(links...); err != nil {
		return err
	}
	var errs []error
	for _, s := range slots {
		errs = append(errs, removeNetns(filepath.Join(netnsDir, s.Name)))
	}
	return errors.Join(errs...)
}

func removeNetns(path string) error {
	// The mount may have been stacked by hand; EINVAL says that nothing is left.
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if err == nil {
			continue
		}
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("network: unmount %s: %w", path, err)
		}
		break
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("network: %w", err)
	}
	return nil
}

// newNetns makes a namespace bound to path and a handle on its inside. The work
// happens on a thread of its own: one that cannot return to the host's namespace
// must not run other goroutines, so it is left locked and dies with its goroutine.
func newNetns(path string) (ns netns.NsHandle, inside *netlink.Handle, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var home netns.NsHandle
		if home, err = netns.Get(); err != nil {
			runtime.UnlockOSThread()
			return
		}
		defer home.Close()
		ns, inside, err = enterNew(path)
		if back := netns.Set(home); back != nil {
			err = errors.Join(err, back)
			return
		}
		runtime.UnlockOSThread()
	}()
	<-done
	if err != nil {
		if inside != nil {
			inside.Close()
		}
		if ns > 0 {
			ns.Close()
		}
		return 0, nil, err
	}
	return ns, inside, nil
}

// enterNew leaves the calling thread inside the new namespace.
func enterNew(path string) (netns.NsHandle, *netlink.Handle, error) {
	ns, err := netns.New()
	if err != nil {
		return 0, nil, fmt.Errorf("new namespace: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return ns, nil, err
	}
	_ = f.Close()
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return ns, nil, fmt.Errorf("bind namespace: %w", err)
	}
	inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	return ns, inside, err
}

// prepareNetnsDir makes the directory a shared mount, as ip(8) does: an unmount
// then reaches the copies in other mount namespaces, which would keep the
// network namespace alive.
func prepareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", netnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // no mount point yet
		if err := unix.Mount(netnsDir, netnsDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", netnsDir, err)
		}
		err = unix.Mount("", netnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", netnsDir, err)
	}
	return nil
}

// leftovers lists the indexes that have a namespace or a link on this host.
func (n *Network) leftovers() ([]int, error) {
	found := map[int]bool{}
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("network: %w", err)
	}
	for _, e := range entries {
		if i, ok := n.names.index(e.Name()); ok {
			found[i] = true
		}
	}
	// Names only: asking netlink for 5000 links costs far more.
	links, err := os.ReadDir("/proc/sys/net/ipv4/conf")
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	for _, l := range links {
		if i, ok := n.names.index(l.Name()); ok && strings.HasPrefix(l.Name(), n.names.linkPrefix()) {
			found[i] = true
		}
	}
	out := make([]int, 0, len(found))
	for i := range found {
		out = append(out, i)
	}
	return out, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func sysctl(key, value string) error {
	if err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl net/%s: %w", key, err)
	}
	return nil
}
