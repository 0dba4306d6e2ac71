// Package fakenet is an internet for tests: it moves the test process into a
// network namespace of its own, the "host", whose uplink leads to a second
// namespace, the "internet", where every address answers. Nothing of it is seen
// outside, and nothing outside can be reached from it.
//
// A test binary calls Main from its TestMain and, inside, Start:
//
//	func TestMain(m *testing.M) { os.Exit(fakenet.Main(m)) }
//
// Processes that a test starts are in the host namespace too.
package fakenet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Where things are. Every address of the internet answers on the ports of
// Internet; those below have an owner's name for tests to read better.
const (
	HostAddr   = "192.0.2.2"       // the host's own, on Uplink
	Neighbour  = "192.0.2.1"       // the router next to the host
	Uplink     = "eth0"            //
	DNSServer  = "8.8.8.8"         // also the host's resolver
	CloudFlare = "1.1.1.1"         //
	Example    = "93.184.216.34"   // example.com
	Metadata   = "169.254.169.254" // would hand out credentials
)

// Ports of every address of the internet.
const (
	HTTPPort = 80 // answers with "<client address> -> <address dialled> <host header>"
	EchoPort = 7  // TCP; UDP on UDPAddrs only
)

// UDPAddrs are the addresses that answer over UDP: echo on port 7, DNS on port 53.
func UDPAddrs() []string {
	return []string{DNSServer, CloudFlare, Example, Metadata, Neighbour, "10.99.0.1", "192.168.77.1"}
}

// inside marks the process that Main started again.
const inside = "NACRE_FAKENET"

// Main runs the tests inside the host namespace and returns the exit code. Not
// as root it runs them where they are; Start then skips, and says why. The
// mount namespace is new as well, with a /run/netns and a /etc/resolv.conf of
// its own.
func Main(m *testing.M) int {
	if Inside() {
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, "fakenet:", err)
			return 1
		}
		return m.Run()
	}
	if os.Geteuid() != 0 {
		return m.Run()
	}
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fakenet:", err)
		return 1
	}
	c := exec.Command(exe, os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL, // go test kills only the outer process
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	var exit *exec.ExitError
	if err := c.Run(); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "fakenet:", err)
		return 1
	}
	return 0
}

// Inside tells whether this process is the one that Main started again.
func Inside() bool { return os.Getenv(inside) != "" }

// settle makes the mounts private.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run/netns", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("/run/netns: %w", err)
	}
	lo, err := netlink.LinkByName("lo") // for tests that start no internet
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// Internet is the far end of the uplink.
type Internet struct {
	ns      netns.NsHandle
	closers []func()
}

// Start wires the internet to this process's namespace until the test ends; one
// at a time. It skips the test when the process is not root.
func Start(t testing.TB) *Internet {
	t.Helper()
	if !Inside() {
		t.Skip("needs root, for network namespaces")
	}
	return StartHere(t)
}

// StartHere is Start on a host that is the test's own altogether, such as an emulated
// one, whatever Main did. There must be a /etc/resolv.conf, and no link named Uplink.
func StartHere(t testing.TB) *Internet {
	t.Helper()
	n, err := start()
	if err != nil {
		t.Fatalf("fakenet: %v", err)
	}
	t.Cleanup(n.close)
	return n
}

func start() (n *Internet, err error) {
	n = &Internet{}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if n.ns, err = newNamespace(); err != nil {
		return n, err
	}
	n.closers = append(n.closers, func() { _ = n.ns.Close() })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = Uplink
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "host0", PeerNamespace: netlink.NsFd(int(n.ns))}
	if err := netlink.LinkAdd(veth); err != nil {
		return n, fmt.Errorf("uplink: %w", err)
	}
	n.closers = append(n.closers, func() { _ = netlink.LinkDel(veth) })
	if err := wireHost(veth); err != nil {
		return n, err
	}
	if err := n.Do(wireInternet); err != nil {
		return n, err
	}
	if err := n.Do(n.serve); err != nil {
		return n, err
	}
	return n, n.resolvConf()
}

func wireHost(eth netlink.Link) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return errors.Join(
		// A new namespace takes over what the real host has; a fresh one forwards nothing.
		os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644),
		netlink.LinkSetUp(lo),
		addAddr(netlink.AddrAdd, eth, HostAddr+"/24"),
		netlink.LinkSetUp(eth),
		netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(Neighbour)}),
	)
}

func wireInternet() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := netlink.LinkByName("host0")
	if err != nil {
		return err
	}
	errs := []error{netlink.LinkSetUp(lo), addAddr(netlink.AddrAdd, eth, Neighbour+"/24"), netlink.LinkSetUp(eth)}
	// Every address is one of ours, but for the host's network.
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	errs = append(errs, netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: all, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST}))
	for _, a := range UDPAddrs() {
		if a != Neighbour {
			errs = append(errs, addAddr(netlink.AddrAdd, lo, a+"/32"))
		}
	}
	// It answers to whatever source: a test of spoofing must not be saved by this end.
	for _, k := range []string{"all", "host0", "default"} {
		errs = append(errs, os.WriteFile("/proc/sys/net/ipv4/conf/"+k+"/rp_filter", []byte("0"), 0o644))
	}
	return errors.Join(errs...)
}

func addAddr(add func(netlink.Link, *netlink.Addr) error, l netlink.Link, cidr string) error {
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := add(l, a); err != nil {
		return fmt.Errorf("address %s: %w", cidr, err)
	}
	return nil
}

// Do runs fn on a thread inside the internet's namespace. Sockets that fn makes
// stay there; goroutines that it starts do not.
func (n *Internet) Do(fn func() error) error { return Do(n.ns, fn) }

// DoPath is Do for a named namespace, such as a slot's.
func DoPath(path string, fn func() error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return Do(ns, fn)
}

// Do runs fn on a thread inside the namespace and brings the thread back.
func Do(ns netns.NsHandle, fn func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return fn()
	})
}

func newNamespace() (ns netns.NsHandle, err error) {
	err = onThread(func() (err error) {
		ns, err = netns.New()
		return err
	})
	return ns, err
}

// onThread runs fn, which may change its thread's network namespace. A thread
// that cannot come back stays locked and ends with its goroutine.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = fn()
		if back := netns.Set(home); back != nil {
			done <- errors.Join(err, back)
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

func (n *Internet) close() {
	for i := len(n.closers) - 1; i >= 0; i-- {
		n.closers[i]()
	}
	n.closers = nil
}

// resolvConf gives the host the internet's DNS server.
func (n *Internet) resolvConf() error {
	f, err := os.CreateTemp("", "fakenet-resolv")
	if err != nil {
		return err
	}
	defer f.Close()
	n.closers = append(n.closers, func() { _ = os.Remove(f.Name()) })
	if _, err := fmt.Fprintf(f, "nameserver %s\n", DNSServer); err != nil {
		return err
	}
	if err := unix.Mount(f.Name(), "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("/etc/resolv.conf: %w", err)
	}
	n.closers = append(n.closers, func() { _ = unix.Unmount("/etc/resolv.conf", unix.MNT_DETACH) })
	return nil
}

func udpAddr(a string, port int) string {
	return netip.AddrPortFrom(netip.MustParseAddr(a), uint16(port)).String()
}
