package network_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/nacretest/fakenet/frame"
	"github.com/nacrehq/nacre/nacretest/reach"
	"github.com/nacrehq/nacre/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestFault40_ClosedNetworks: whatever the policy, no way to private networks,
// metadata, the host's neighbours. Attempts fail at once, not after a time-out.
func TestFault40_ClosedNetworks(t *testing.T) {
	n := start(t, nil)
	g := acquire(t, n, reach.Everywhere())
	if err := g.reaches(fakenet.Example); err != nil {
		t.Fatalf("the policy is open, but the internet is out of reach: %v", err)
	}
	for _, c := range reach.Closed() {
		if c.Refused {
			if err := hostTCP(c.Addr); err != nil {
				t.Errorf("%s: %s does not even answer the host (%v): the test proves nothing", c.Name, c.Addr, err)
			}
		}
		if !c.Refused {
			if err := g.tcp(c.Addr); err == nil {
				t.Errorf("%s: %s answers the guest over TCP", c.Name, c.Addr)
			}
		} else if err := g.refused(c.Addr); err != nil {
			t.Errorf("%s: %s %v", c.Name, c.Addr, err)
		}
	}
	for _, addr := range reach.ClosedUDP() {
		if err := g.udp(addr); err == nil {
			t.Errorf("%s answers the guest over UDP", addr)
		}
	}
}

func hostTCP(addr string) error {
	c, err := net.DialTimeout("tcp4", net.JoinHostPort(addr, fmt.Sprint(fakenet.EchoPort)), enough)
	if err != nil {
		return err
	}
	defer c.Close()
	return echoes(c)
}

// TestFault39_MetadataForms: every spelling of the metadata address ends at the
// same packets.
func TestFault39_MetadataForms(t *testing.T) {
	n := start(t, nil)
	g := acquire(t, n, reach.Everywhere())
	for _, form := range reach.MetadataForms() {
		c, err := g.dial("tcp", form, fakenet.HTTPPort)
		if err == nil {
			c.Close()
			t.Errorf("%s is open to the guest", form)
		}
	}
	// A name that leads there is resolved, and of no use.
	ips, err := g.lookup("metadata.test.")
	if err != nil || len(ips) != 1 || ips[0] != fakenet.Metadata {
		t.Fatalf("lookup: %v, %v", ips, err)
	}
	if err := g.tcp(ips[0]); err == nil {
		t.Error("metadata by name is open to the guest")
	}
}

// TestFault40_Host: of the host a guest reaches DNS at the gateway and nothing else.
func TestFault40_Host(t *testing.T) {
	n := start(t, nil)
	g := acquire(t, n, reach.Everywhere())
	tcp, err := net.Listen("tcp4", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for _, addr := range []string{g.Gateway.String(), fakenet.HostAddr, "127.0.0.1", "127.0.0.53"} {
		if addr[:3] != "127" {
			c, err := net.DialTimeout("tcp4", addr+":8080", enough)
			if err != nil {
				t.Fatalf("the host's own service does not answer the host at %s: %v", addr, err)
			}
			c.Close()
		}
		if c, err := g.dial("tcp4", addr, 8080); err == nil {
			c.Close()
			t.Errorf("the host's port 8080 is open to the guest at %s", addr)
		}
	}
	if c, err := g.dial("tcp4", fakenet.HostAddr, 53); err == nil {
		c.Close()
		t.Error("DNS is open at the host's own address; only the gateway's is for guests")
	}
	if c, err := g.connect("tcp4", g.Gateway.String(), 53); err != nil {
		t.Errorf("DNS over TCP at the gateway: %v", err)
	} else {
		c.Close()
	}
	if c, err := net.DialTimeout("tcp4", fakenet.HostAddr+":8080", enough); err != nil {
		t.Errorf("the host's service is closed to the host itself: %v", err)
	} else {
		c.Close()
	}
}

// TestFault40_OtherSlots: guests do not reach each other, not even with a route
// of their own making, nor through the other's open port.
func TestFault40_OtherSlots(t *testing.T) {
	n := start(t, nil)
	a, b := acquire(t, n, reach.Everywhere()), acquire(t, n, reach.Everywhere())
	b.listen(t, 9000)
	addr := b.Guest.Addr().String()
	if c, err := net.DialTimeout("tcp4", addr+":9000", enough); err != nil {
		t.Fatalf("the host does not reach the guest: %v", err)
	} else {
		c.Close()
	}
	if c, err := a.dial("tcp4", addr, 9000); err == nil {
		c.Close()
		t.Error("one guest reaches the other")
	}
	// The usual netmask makes them neighbours; send it to the gateway instead.
	err := a.do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: &net.IPNet{IP: b.Guest.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: a.Gateway.AsSlice()})
	})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := a.dial("tcp4", addr, 9000); err == nil {
		c.Close()
		t.Error("one guest reaches the other by way of the gateway")
	}
}

// TestFault40_Outside: nobody outside opens connections to a guest, or asks the
// forwarder.
func TestFault40_Outside(t *testing.T) {
	n := open(t, nil)
	if err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	g := acquire(t, n, nacre.EgressPolicy{})
	g.listen(t, 9000)
	ns := internetOf(t)
	err := ns.Do(func() error {
		eth, err := netlink.LinkByName("host0")
		if err != nil {
			return err
		}
		_, pool, _ := net.ParseCIDR("10.231.0.0/16")
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: pool, Gw: net.ParseIP(fakenet.HostAddr)}); err != nil {
			return err
		}
		for _, to := range []string{g.Guest.Addr().String() + ":9000", g.Gateway.String() + ":53"} {
			if c, err := net.DialTimeout("tcp4", to, patience); err == nil {
				c.Close()
				t.Errorf("%s is open to the host's neighbour", to)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFault40_Spoofing: frames with another source, or of another protocol, go
// nowhere. The last, honest one arrives, so the others would have before it.
func TestFault40_Spoofing(t *testing.T) {
	n := open(t, nil)
	if err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	a, b := acquire(t, n, reach.Everywhere()), acquire(t, n, reach.Everywhere())
	ns := internetOf(t)
	const port = 4242
	seen, err := ns.Received(t, port)
	if err != nil {
		t.Fatal(err)
	}
	to, mac := netip.AddrPortFrom(netip.MustParseAddr(fakenet.Example), port), net.HardwareAddr{0x02, 0x6e, 0, 0, 0, 1} // of the gateway
	err = a.do(func() error {
		for name, src := range reach.FalseSources(a.Slot, b.Slot) {
			if err := frame.Send(mac, unix.ETH_P_IP, frame.IPv4UDP(netip.MustParseAddr(src), to, "spoofed as "+name)); err != nil {
				return err
			}
		}
		if err := frame.Send(mac, unix.ETH_P_IPV6, frame.IPv6UDP(port)); err != nil {
			return err
		}
		return frame.Send(mac, unix.ETH_P_IP, frame.IPv4UDP(a.Guest.Addr(), to, "honest"))
	})
	if err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case got := <-seen:
			if got == "honest" {
				return
			}
			t.Errorf("a packet arrived: %s", got)
		case <-time.After(enough):
			t.Fatal("the honest packet did not arrive")
		}
	}
}

// TestFault40_IPv6: the host speaks no IPv6 on a slot's link.
func TestFault40_IPv6(t *testing.T) {
	n := start(t, nil)
	g := acquire(t, n, reach.Everywhere())
	l, err := net.InterfaceByName(g.HostLink)
	if err != nil {
		t.Fatal(err)
	}
	as, err := l.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range as {
		t.Errorf("the host has the address %s on the slot's link", a)
	}
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + g.HostLink + "/disable_ipv6")
	if err != nil && !errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(b)) != "1" {
		t.Errorf("disable_ipv6 = %q, %v", b, err)
	}
}

// TestAllowPrivate: what the operator opens is open, to policies, and nothing
// next to it; the slots themselves cannot be opened.
func TestAllowPrivate(t *testing.T) {
	n := start(t, func(c *network.Config) {
		c.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("10.231.0.0/16")}
	})
	g, closed := acquire(t, n, nacre.EgressPolicy{}), acquire(t, n, nacre.EgressPolicy{DenyAll: true})
	other := acquire(t, n, nacre.EgressPolicy{})
	other.listen(t, 9000)
	if err := g.reaches("10.99.0.1"); err != nil {
		t.Errorf("the opened network is closed: %v", err)
	}
	if err := g.tcp("10.99.1.1"); err == nil {
		t.Error("the network next to the opened one is open")
	}
	if err := closed.tcp("10.99.0.1"); err == nil {
		t.Error("a policy that denies all is overruled by the operator's opening")
	}
	if c, err := g.dial("tcp4", other.Guest.Addr().String(), 9000); err == nil {
		c.Close()
		t.Error("the operator could open slots to each other")
	}
}

// TestHostAddressAppears: a network that the host joins later is closed as well.
func TestHostAddressAppears(t *testing.T) {
	n := start(t, nil)
	g := acquire(t, n, nacre.EgressPolicy{})
	const public = "203.0.113.9"
	if err := g.reaches(public); err != nil {
		t.Fatal(err)
	}
	addHostAddress(t, "203.0.113.2/24")
	for end := time.Now().Add(enough); ; time.Sleep(20 * time.Millisecond) {
		var refused syscall.Errno
		if err := g.tcp(public); errors.As(err, &refused) && refused == unix.ECONNREFUSED {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the host's new neighbours are open to guests")
		}
	}
}
