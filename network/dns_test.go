package network_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/network"
)

// TestFault42_DNS: names are resolved at the gateway over UDP and TCP, large
// answers too, by the host's resolver.
func TestFault42_DNS(t *testing.T) {
	for name, port := range map[string]int{"port 53": 53, "another port behind 53": 5300} {
		t.Run(name, func(t *testing.T) {
			n := start(t, func(c *network.Config) { c.DNSPort = port })
			g := acquire(t, n, nacre.EgressPolicy{})
			ips, err := g.lookup("example.com.")
			if err != nil || !slices.Equal(ips, []string{fakenet.Example}) {
				t.Errorf("example.com = %v, %v", ips, err)
			}
			a, err := g.ask("udp", new(dns.Msg).SetQuestion("nothing.test.", dns.TypeA))
			if err != nil || a.Rcode != dns.RcodeNameError {
				t.Errorf("nothing.test: %v, %v; want NXDOMAIN", a, err)
			}
			a, err = g.ask("udp", new(dns.Msg).SetQuestion("big.test.", dns.TypeA))
			if err != nil || !a.Truncated || packed(a) > dns.MinMsgSize {
				t.Errorf("big.test over UDP: %v, want a truncated answer", err)
			}
			a, err = g.ask("udp", new(dns.Msg).SetQuestion("big.test.", dns.TypeA).SetEdns0(4096, false))
			if err != nil || !a.Truncated || packed(a) > 1232 || len(a.Answer) < 30 {
				t.Errorf("big.test over UDP with EDNS: %v, want up to 1232 bytes", err)
			}
			a, err = g.ask("tcp", new(dns.Msg).SetQuestion("big.test.", dns.TypeA))
			if err != nil || len(a.Answer) != 200 {
				t.Errorf("big.test over TCP: %v, want 200 addresses", err)
			}
			a, err = g.ask("tcp", new(dns.Msg).SetAxfr("example.com."))
			if err != nil || a.Rcode != dns.RcodeRefused {
				t.Errorf("a zone transfer: %v, %v; want REFUSED", a, err)
			}
		})
	}
}

func packed(a *dns.Msg) int {
	a.Compress = true
	return a.Len()
}

// TestFault42_DirectResolver: a resolver of the guest's own choice is a
// destination like any other.
func TestFault42_DirectResolver(t *testing.T) {
	n := start(t, nil)
	for name, c := range map[string]struct {
		policy nacre.EgressPolicy
		open   bool
	}{
		"open":          {nacre.EgressPolicy{}, true},
		"allow-list":    {nacre.EgressPolicy{DenyAll: true, Allow: prefixes("1.1.1.1/32")}, false},
		"in the list":   {nacre.EgressPolicy{DenyAll: true, Allow: prefixes("8.8.8.8/32")}, true},
		"everything is": {nacre.EgressPolicy{DenyAll: true}, false},
	} {
		g := acquire(t, n, c.policy)
		for _, proto := range []string{"udp4", "tcp4"} {
			conn, err := g.dial(proto, fakenet.DNSServer, 53)
			if err == nil {
				cl := dns.Client{Timeout: patience}
				_, _, err = cl.ExchangeWithConn(new(dns.Msg).SetQuestion("example.com.", dns.TypeA), &dns.Conn{Conn: conn})
				conn.Close()
			}
			if (err == nil) != c.open {
				t.Errorf("%s: %s to %s: %v, want open %v", name, proto, fakenet.DNSServer, err, c.open)
			}
		}
	}
}

// TestFault42_Tunnel: a guest that may send nothing out may not ask either; with
// an allow-list names work, as they do at E2B.
func TestFault42_Tunnel(t *testing.T) {
	n := start(t, nil)
	g := acquire(t, n, nacre.EgressPolicy{DenyAll: true})
	for _, proto := range []string{"udp", "tcp"} {
		a, err := g.ask(proto, new(dns.Msg).SetQuestion("c2VjcmV0.example.com.", dns.TypeTXT))
		if err != nil || a.Rcode != dns.RcodeRefused {
			t.Errorf("over %s: %v, %v; want REFUSED", proto, a, err)
		}
	}
	for _, p := range []nacre.EgressPolicy{{DenyAll: true, Allow: prefixes("1.1.1.1/32")}, {}} {
		if err := n.SetEgress(t.Context(), g.id, p); err != nil {
			t.Fatal(err)
		}
		if _, err := g.lookup("example.com."); err != nil {
			t.Errorf("policy %+v: %v", p, err)
		}
	}
	if err := n.SetEgress(t.Context(), g.id, nacre.EgressPolicy{DenyAll: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.lookup("example.com."); err == nil {
		t.Error("names are resolved after the last way out was closed")
	}
}

// TestFault42_Flood: a guest that asks without end is not answered without end,
// and others are.
func TestFault42_Flood(t *testing.T) {
	n := start(t, nil)
	noisy, quiet := acquire(t, n, nacre.EgressPolicy{}), acquire(t, n, nacre.EgressPolicy{})
	c := must(noisy.connect("udp4", noisy.Gateway.String(), 53))(t)
	const asked = 3000
	var answered int
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for wait := enough; ; wait = patience { // for the first, and then for no more
			_ = c.SetReadDeadline(time.Now().Add(wait))
			if _, err := c.Read(buf); err != nil {
				return
			}
			answered++
		}
	})
	// On one processor the forwarder reads nothing until the flood is over.
	procs := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(procs)
	began := time.Now()
	for i := range asked {
		q, err := new(dns.Msg).SetQuestion(fmt.Sprintf("10-0-0-%d.ip.test.", i%250), dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(q); err != nil {
			t.Fatal(err)
		}
	}
	slow := 500 + int(200*time.Since(began).Seconds()) // what may be answered meanwhile of a slow host's questions
	if _, err := quiet.lookup("example.com."); err != nil {
		t.Errorf("the other guest: %v", err)
	}
	wg.Wait()
	if answered == 0 || answered > max(asked/2, slow) {
		t.Errorf("%d of %d questions were answered", answered, asked)
	}
}

// TestFault42_LongQuestion: what no question needs, but what would fill the
// forwarder's buffer, does not reach it.
func TestFault42_LongQuestion(t *testing.T) {
	g := acquire(t, start(t, nil), nacre.EgressPolicy{})
	padded := func(n int) *dns.Msg {
		q := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).SetEdns0(4096, false)
		q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, n-q.Len()-4)}}
		return q
	}
	for n, wait := range map[int]time.Duration{1232: enough, 1233: patience, 1500: patience, 4000: patience} {
		a, err := g.askWithin(wait, "udp", padded(n))
		if (err == nil) != (n <= 1232) {
			t.Errorf("a question of %d bytes: %v, %v", n, a, err)
		}
	}
}

// TestDNSUpstreams: resolv.conf is read again when it changes, a dead resolver
// is passed over, and the forwarder does not ask itself.
func TestDNSUpstreams(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(conf+".new", conf); err != nil {
			t.Fatal(err)
		}
	}
	write("nameserver 10.231.0.1\n")
	n := start(t, func(c *network.Config) { c.ResolvConf = conf })
	g := acquire(t, n, nacre.EgressPolicy{})
	a, err := g.ask("udp", new(dns.Msg).SetQuestion("example.com.", dns.TypeA))
	if err != nil || a.Rcode != dns.RcodeServerFailure {
		t.Errorf("without a resolver: %v, %v; want SERVFAIL", a, err)
	}
	write("# moved\nnameserver 127.0.0.99\nnameserver " + fakenet.CloudFlare + "\n")
	for end := time.Now().Add(2 * enough); ; time.Sleep(50 * time.Millisecond) {
		if _, err := g.lookup("example.com."); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the new resolv.conf is not used")
		}
	}
}

// TestDNSPortTaken: the error says what to do.
func TestDNSPortTaken(t *testing.T) {
	fakenet.Start(t)
	t.Cleanup(func() { _ = network.Destroy(instance) })
	cfg := network.Config{Instance: instance, Ready: -1, Upstreams: []netip.AddrPort{netip.MustParseAddrPort("8.8.8.8:53")}}
	occupy(t, ":53")
	_, err := network.New(cfg)
	if !nacre.IsCode(err, nacre.CodeUnavailable) {
		t.Fatalf("got %v, want %s", err, nacre.CodeUnavailable)
	}
	cfg.DNSPort = 5353
	n, err := network.New(cfg)
	if err != nil {
		t.Fatalf("with the port that the error suggests: %v", err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
