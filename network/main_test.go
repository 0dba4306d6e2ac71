package network_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv(daemonEnv) != "" {
		daemon()
	}
	os.Exit(fakenet.Main(m))
}

const instance = "t1"

// open starts the fake internet and a network over it, and sees that both leave
// the host as it was.
func open(t testing.TB, change func(*network.Config)) *network.Network {
	t.Helper()
	watchLeaks(t)
	return reopen(t, change)
}

// watchLeaks starts the fake internet and compares the host, when the test is
// over and the instance destroyed, with what it was.
func watchLeaks(t testing.TB) {
	t.Helper()
	internets.Store(t.Name(), fakenet.Start(t))
	before := hostState(t)
	t.Cleanup(func() {
		if err := network.Destroy(instance); err != nil {
			t.Errorf("Destroy: %v", err)
		}
		if after := hostState(t); after != before {
			t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
		}
	})
}

// internets are those of the running tests, by name.
var internets sync.Map

func internetOf(t *testing.T) *fakenet.Internet {
	t.Helper()
	n, ok := internets.Load(t.Name())
	if !ok {
		t.Fatal("open was not called")
	}
	return n.(*fakenet.Internet)
}

// reopen makes another network over the same host.
func reopen(t testing.TB, change func(*network.Config)) *network.Network {
	t.Helper()
	cfg := network.Config{Instance: instance, Ready: 2}
	if change != nil {
		change(&cfg)
	}
	n, err := network.New(cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return n
}

func start(t testing.TB, change func(*network.Config)) *network.Network {
	t.Helper()
	n := open(t, change)
	if err := n.Recover(t.Context(), nil); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	return n
}

// guest is a machine's place, seen from inside.
type guest struct {
	t  testing.TB
	id nacre.MachineID
	nacre.Slot
}

func acquire(t testing.TB, n *network.Network, p nacre.EgressPolicy) guest {
	t.Helper()
	id := nacre.NewMachineID()
	s, err := n.Acquire(t.Context(), id, p)
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	return guest{t, id, s}
}

func (g guest) do(fn func() error) error { return fakenet.DoPath(g.Path, fn) }

// patience is how long something that must not come is waited for. Refusals
// come at once; only silent drops take this long.
const patience = 400 * time.Millisecond

// enough is how long what must come is waited for: on a busy host a connection takes
// longer than patience now and then.
const enough = 10 * time.Second

// dial connects from inside, or not within patience; host is an IP address.
func (g guest) dial(proto, host string, port int) (net.Conn, error) {
	return g.dialWithin(patience, proto, host, port)
}

// connect is dial for what must come.
func (g guest) connect(proto, host string, port int) (net.Conn, error) {
	return g.dialWithin(enough, proto, host, port)
}

func (g guest) dialWithin(wait time.Duration, proto, host string, port int) (c net.Conn, err error) {
	err = g.do(func() error {
		var e error
		c, e = net.DialTimeout(proto, net.JoinHostPort(host, fmt.Sprint(port)), wait)
		return e
	})
	return c, err
}

// tcp tells whether an echo over TCP comes back from host, within patience.
func (g guest) tcp(host string) error { return g.echo(patience, "tcp4", host) }

// udp is tcp over UDP.
func (g guest) udp(host string) error { return g.echo(patience, "udp4", host) }

// reaches is tcp for what must come.
func (g guest) reaches(host string) error { return g.echo(enough, "tcp4", host) }

// reachesUDP is udp for what must come.
func (g guest) reachesUDP(host string) error { return g.echo(enough, "udp4", host) }

// refused tells why TCP to host is not refused by an answer to the first packet.
func (g guest) refused(host string) error {
	const second = time.Second // until the kernel sends another one
	began := time.Now()
	err := g.echo(enough, "tcp4", host)
	if took := time.Since(began); err == nil {
		return errors.New("is open")
	} else if !errors.Is(err, unix.ECONNREFUSED) || took > second {
		return fmt.Errorf("is closed by %w after %v, want a refusal at once", err, took)
	}
	return nil
}

func (g guest) echo(wait time.Duration, proto, host string) error {
	c, err := g.dialWithin(wait, proto, host, fakenet.EchoPort)
	if err != nil {
		return err
	}
	defer c.Close()
	return echoWithin(wait, c)
}

// listen answers on a port of the guest until the test ends.
func (g guest) listen(t testing.TB, port int) {
	t.Helper()
	err := g.do(func() error {
		l, err := net.Listen("tcp4", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go fakenet.Echo(l)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ask sends a DNS question to the gateway.
func (g guest) ask(proto string, q *dns.Msg) (*dns.Msg, error) { return g.askWithin(enough, proto, q) }

func (g guest) askWithin(wait time.Duration, proto string, q *dns.Msg) (a *dns.Msg, err error) {
	c, err := g.dialWithin(wait, proto, g.Gateway.String(), 53)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	cl := dns.Client{Net: proto, Timeout: wait}
	a, _, err = cl.ExchangeWithConn(q, &dns.Conn{Conn: c, UDPSize: 4096})
	return a, err
}

// lookup resolves a name to IPv4 addresses.
func (g guest) lookup(name string) ([]string, error) {
	a, err := g.ask("udp", new(dns.Msg).SetQuestion(name, dns.TypeA))
	if err != nil {
		return nil, err
	}
	if a.Rcode != dns.RcodeSuccess {
		return nil, fmt.Errorf("%s", dns.RcodeToString[a.Rcode])
	}
	var out []string
	for _, rr := range a.Answer {
		if r, ok := rr.(*dns.A); ok {
			out = append(out, r.A.String())
		}
	}
	return out, nil
}

// echo tells whether an echo comes back, within patience.
func echo(c net.Conn) error { return echoWithin(patience, c) }

// echoes is echo for what must come.
func echoes(c net.Conn) error { return echoWithin(enough, c) }

func echoWithin(wait time.Duration, c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	buf := make([]byte, 5)
	_, err := io.ReadFull(c, buf)
	return err
}

// get fetches http://host/ and returns the body.
func (g guest) get(host string) (string, error) {
	c, err := g.connect("tcp4", host, fakenet.HTTPPort)
	if err != nil {
		return "", err
	}
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }, DisableKeepAlives: true}
	cl := &http.Client{Transport: tr, Timeout: enough}
	r, err := cl.Get("http://" + host + "/")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// hostState is everything of ours that a host could keep.
func hostState(t testing.TB) string {
	t.Helper()
	var out []string
	ns, _ := os.ReadDir("/run/netns")
	for _, e := range ns {
		out = append(out, "netns "+e.Name())
	}
	ls, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ls {
		as, _ := l.Addrs()
		as = slices.DeleteFunc(as, func(a net.Addr) bool { return strings.HasPrefix(a.String(), "fe80:") }) // come by themselves
		out = append(out, fmt.Sprint("link ", l.Name, " ", as))
	}
	for _, f := range []string{"/proc/thread-self/net/route", "/proc/thread-self/net/arp"} {
		b, _ := os.ReadFile(f)
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, "nv"+instance) || strings.HasPrefix(line, "*") {
				out = append(out, f+": "+strings.TrimSpace(line))
			}
		}
	}
	return strings.Join(append(out, tables(t)...), "\n")
}

// tracked counts the kernel's connections from and to an address.
func tracked(t *testing.T, a netip.Addr) (count int) {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range flows {
		if f.Forward.SrcIP.Equal(a.AsSlice()) || f.Forward.DstIP.Equal(a.AsSlice()) {
			count++
		}
	}
	return count
}

// occupy takes a TCP and a UDP port of the host.
func occupy(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	u, err := net.ListenPacket("udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
}

// addHostAddress gives the uplink one more address until the test ends.
func addHostAddress(t *testing.T, cidr string) {
	t.Helper()
	eth, err := netlink.LinkByName(fakenet.Uplink)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(eth, addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.AddrDel(eth, addr) })
}
