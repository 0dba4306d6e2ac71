package network_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/nacretest/reach"
	"github.com/nacrehq/nacre/network"
)

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// TestTrap17_Policies: allowOut wins over denyOut, both take CIDRs, and what is
// denied fails well within five seconds.
func TestTrap17_Policies(t *testing.T) {
	n := start(t, nil)
	changing := acquire(t, n, nacre.EgressPolicy{})
	for name, c := range reach.Policies() {
		// In force from the start, and after any other.
		fresh := acquire(t, n, c.EgressPolicy)
		if err := n.SetEgress(t.Context(), changing.id, c.EgressPolicy); err != nil {
			t.Fatalf("%s: SetEgress: %v", name, err)
		}
		for _, g := range []guest{fresh, changing} {
			for _, a := range c.Open {
				if err := g.reaches(a); err != nil {
					t.Errorf("%s: %s is closed: %v", name, a, err)
				}
			}
			for _, a := range c.Closed {
				if err := g.refused(a); err != nil {
					t.Errorf("%s: %s %v", name, a, err)
				}
			}
		}
		if err := n.Release(t.Context(), fresh.id); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTrap17_InboundStays: the edge reaches a guest whose egress is denied.
func TestTrap17_InboundStays(t *testing.T) {
	n := start(t, nil)
	g := acquire(t, n, nacre.EgressPolicy{DenyAll: true})
	g.listen(t, 8000)
	c, err := net.DialTimeout("tcp4", g.Guest.Addr().String()+":8000", enough)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, p := range []nacre.EgressPolicy{{}, {Deny: prefixes("8.8.8.8/32")}, {DenyAll: true}} {
		if err := n.SetEgress(t.Context(), g.id, p); err != nil {
			t.Fatal(err)
		}
		if err := echoes(c); err != nil {
			t.Errorf("the edge's connection did not survive a change of the policy to %+v: %v", p, err)
		}
	}
}

// TestFault43_ChangeCutsConnections: what the new policy forbids ends, in both
// directions; what it allows goes on.
func TestFault43_ChangeCutsConnections(t *testing.T) {
	n := start(t, nil)
	g := acquire(t, n, nacre.EgressPolicy{})
	forbidden, kept, pushing := must(g.connect("tcp4", fakenet.CloudFlare, fakenet.EchoPort))(t), must(g.connect("tcp4", fakenet.DNSServer, fakenet.EchoPort))(t), must(g.connect("udp4", fakenet.CloudFlare, fakenet.EchoPort))(t)
	for _, c := range []net.Conn{forbidden, kept, pushing} {
		if err := echoes(c); err != nil {
			t.Fatal(err)
		}
	}
	// A far end that only sends must be cut off as well.
	ns := internetOf(t)
	var push *net.UDPConn
	err := ns.Do(func() (err error) {
		push, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(fakenet.CloudFlare), Port: 5000})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer push.Close()
	sink := must(g.connect("udp4", fakenet.CloudFlare, 5000))(t)
	if _, err := io.WriteString(sink, "here I am"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	_, back, err := push.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	receive := func(wait time.Duration) error {
		if _, err := push.WriteTo([]byte("pushed"), back); err != nil {
			return err
		}
		_ = sink.SetReadDeadline(time.Now().Add(wait))
		_, err := sink.Read(buf)
		return err
	}
	if err := receive(enough); err != nil {
		t.Fatalf("before the change: %v", err)
	}

	if err := n.SetEgress(t.Context(), g.id, nacre.EgressPolicy{Deny: prefixes("1.1.1.1/32")}); err != nil {
		t.Fatal(err)
	}
	if err := echo(forbidden); err == nil {
		t.Error("a TCP connection that the new policy forbids goes on")
	}
	if err := echo(pushing); err == nil {
		t.Error("a UDP flow that the new policy forbids goes on")
	}
	if err := receive(patience); err == nil {
		t.Error("the far end still sends to the guest")
	}
	if err := echoes(kept); err != nil {
		t.Errorf("a connection that both policies allow was cut: %v", err)
	}
	if err := n.SetEgress(t.Context(), g.id, nacre.EgressPolicy{}); err != nil {
		t.Fatal(err)
	}
	if err := g.reaches(fakenet.CloudFlare); err != nil {
		t.Errorf("after opening again: %v", err)
	}
}

func must(c net.Conn, err error) func(t *testing.T) net.Conn {
	return func(t *testing.T) net.Conn {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

// TestReleaseInheritsNothing: the next user of an address does not get the
// connections of the last.
func TestReleaseInheritsNothing(t *testing.T) {
	n := start(t, func(c *network.Config) {
		c.Pool, c.Ready = netip.MustParsePrefix("10.231.0.0/28"), -1
	})
	first := acquire(t, n, nacre.EgressPolicy{})
	c := must(first.connect("udp4", fakenet.CloudFlare, fakenet.EchoPort))(t)
	if err := echoes(c); err != nil {
		t.Fatal(err)
	}
	if k := tracked(t, first.Guest.Addr()); k == 0 {
		t.Fatal("the connection is not tracked: the test proves nothing")
	}
	if err := n.Release(t.Context(), first.id); err != nil {
		t.Fatal(err)
	}
	if k := tracked(t, first.Guest.Addr()); k != 0 {
		t.Errorf("%d connections of the released guest are still tracked", k)
	}
}

// TestExhausted: a pool without a free address says so, and has one again after
// a release.
func TestExhausted(t *testing.T) {
	n := start(t, func(c *network.Config) {
		c.Pool, c.Ready = netip.MustParsePrefix("10.231.0.0/28"), -1
	})
	var last guest
	for range 13 { // 16 less network, gateway and broadcast
		last = acquire(t, n, nacre.EgressPolicy{})
	}
	if _, err := n.Acquire(t.Context(), nacre.NewMachineID(), nacre.EgressPolicy{}); !nacre.IsCode(err, nacre.CodeExhausted) {
		t.Errorf("got %v, want %s", err, nacre.CodeExhausted)
	}
	if err := n.Release(t.Context(), last.id); err != nil {
		t.Fatal(err)
	}
	acquire(t, n, nacre.EgressPolicy{})
}

// TestTooManyRanges: a list that does not fit is refused as the request's fault,
// and the policy in force stays.
func TestTooManyRanges(t *testing.T) {
	n := start(t, nil)
	g := acquire(t, n, nacre.EgressPolicy{DenyAll: true})
	list := func(k int) (out []netip.Prefix) {
		for i := range k {
			out = append(out, netip.MustParsePrefix(fmt.Sprintf("8.%d.%d.1/32", i/250, i%250)))
		}
		return out
	}
	err := n.SetEgress(t.Context(), g.id, nacre.EgressPolicy{DenyAll: true, Allow: list(513)})
	if !nacre.IsCode(err, nacre.CodeInvalid) || nacre.ErrorField(err) != "allowOut" {
		t.Errorf("got %v, want %s of allowOut", err, nacre.CodeInvalid)
	}
	if err := g.tcp("8.0.0.1"); err == nil {
		t.Error("a refused policy is in force")
	}
	if err := n.SetEgress(t.Context(), g.id, nacre.EgressPolicy{DenyAll: true, Allow: list(512)}); err != nil {
		t.Fatalf("512 networks: %v", err)
	}
	for _, a := range []string{"8.0.0.1", "8.2.11.1"} {
		if err := g.reaches(a); err != nil {
			t.Errorf("%s is closed: %v", a, err)
		}
	}
}

// TestFault45_Connections: a slot has its number of connections and no more;
// others are not affected, and a closed one can be used again.
func TestFault45_Connections(t *testing.T) {
	const most = 8
	n := start(t, func(c *network.Config) { c.MaxConns = most })
	g, other := acquire(t, n, nacre.EgressPolicy{}), acquire(t, n, nacre.EgressPolicy{})
	var conns []net.Conn
	for i := range most {
		c, err := g.connect("tcp4", fakenet.Example, fakenet.EchoPort)
		if err != nil {
			t.Fatalf("connection %d of %d: %v", i+1, most, err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	if c, err := g.dial("tcp4", fakenet.Example, fakenet.EchoPort); err == nil {
		c.Close()
		t.Errorf("connection %d was let through", most+1)
	}
	if _, err := g.askWithin(patience, "udp", new(dns.Msg).SetQuestion("example.com.", dns.TypeA)); err == nil {
		t.Error("a question to DNS is a connection too, and was let through")
	}
	if err := other.reaches(fakenet.Example); err != nil {
		t.Errorf("another guest is affected: %v", err)
	}
	for _, c := range conns {
		if err := echoes(c); err != nil {
			t.Errorf("an open connection is affected: %v", err)
		}
		c.Close()
	}
	// The kernel looks for closed ones as new ones come.
	for end := time.Now().Add(2 * enough); g.tcp(fakenet.Example) != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("closed connections count for ever")
		}
	}
}

// TestFault17_Bandwidth: a slot's rate is held in both directions.
func TestFault17_Bandwidth(t *testing.T) {
	const rate = 256 << 10
	n := start(t, func(c *network.Config) { c.BytesPerSecond = rate })
	g := acquire(t, n, nacre.EgressPolicy{})
	c := must(g.connect("tcp4", fakenet.Example, fakenet.EchoPort))(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	end, _ := ctx.Deadline()
	_ = c.SetDeadline(end)
	go func() {
		buf := make([]byte, 16<<10)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
	k, _ := io.Copy(io.Discard, c)
	// The burst, two seconds' worth, and some slack.
	if k > 4*rate {
		t.Errorf("%d bytes came back within 2 s, at %d bytes/s", k, rate)
	}
	if k == 0 {
		t.Error("nothing came back")
	}
}
