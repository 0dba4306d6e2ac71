package nacretest

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// slots counts the slots of this process's tests, each of which has a number.
var slots atomic.Int32

// NewSpec returns the spec of a small machine with this agent and image, with a slot
// (see NewSlot), a root and a state directory of its own, all gone when the test ends.
func NewSpec(t testing.TB, agent, image string) nacre.MachineSpec {
	t.Helper()
	id := nacre.NewMachineID()
	dir := t.TempDir()
	spec := nacre.MachineSpec{
		ID:        id,
		Hostname:  "box",
		AgentPath: agent,
		Root:      nacre.RootFS{Image: image, UpperDir: filepath.Join(dir, "upper"), UpperMiB: 64},
		StateDir:  filepath.Join(dir, "state"),
		Resources: nacre.Resources{CPUs: 1, MemoryMiB: 128, MaxPIDs: 256},
		Slot:      NewSlot(t, string(id)),
	}
	for _, d := range []string{spec.Root.UpperDir, spec.StateDir} {
		must(t, os.Mkdir(d, 0o700))
	}
	return spec
}

// NewSlot makes a network namespace of that name with one veth pair: no way out, only
// the host's end. Both are gone when the test ends.
func NewSlot(t testing.TB, name string) nacre.Slot {
	t.Helper()
	s := nacre.Slot{Name: name, Path: "/run/netns/" + name, MTU: 1500}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	orig, err := netns.Get()
	must(t, err)
	defer orig.Close()
	ns, err := netns.NewNamed(name)
	must(t, err)
	defer ns.Close()
	must(t, netns.Set(orig))
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	must(t, err)
	t.Cleanup(func() {
		defer here.Close()
		if l, err := here.LinkByName(s.HostLink); s.HostLink != "" && err == nil {
			must(t, here.LinkDel(l))
		}
		must(t, netns.DeleteNamed(name))
	})
	n := 0
	for err = unix.EEXIST; errors.Is(err, unix.EEXIST); { // other tests on this host take numbers too
		n = (int(slots.Add(1)) + os.Getpid()%64*256) % (64 * 256)
		la := netlink.NewLinkAttrs()
		la.Name = "ngt" + strconv.Itoa(n)
		err = here.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns))})
	}
	must(t, err)
	gw := netip.AddrFrom4([4]byte{10, 213, byte(n >> 6), byte(n<<2) + 1})
	s.HostLink, s.Gateway, s.Guest = "ngt"+strconv.Itoa(n), gw, netip.PrefixFrom(gw.Next(), 30)
	there, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, err)
	defer there.Close()
	linkUp(t, here, s.HostLink, gw)
	linkUp(t, there, "lo", netip.Addr{})
	linkUp(t, there, "eth0", gw.Next())
	l, err := there.LinkByName("eth0")
	must(t, err)
	s.MAC = l.Attrs().HardwareAddr.String()
	must(t, there.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gw.AsSlice()}))
	return s
}

func linkUp(t testing.TB, h *netlink.Handle, name string, addr netip.Addr) {
	t.Helper()
	l, err := h.LinkByName(name)
	must(t, err)
	if addr.IsValid() {
		must(t, h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(30, 32)}}))
	}
	must(t, h.LinkSetUp(l))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Log returns the log of what a test runs: it goes to stderr with -v, and nowhere
// without.
func Log(t testing.TB) *slog.Logger {
	w := io.Discard
	if testing.Verbose() {
		w = os.Stderr
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo})).With("test", t.Name())
}
