package network_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/network"
)

func TestMain(m *testing.M) { os.Exit(fakenet.Main(m)) }

const instance = "t1"

// open starts the fake internet and a network over it, and sees that both leave
// the host as it was.
func open(t *testing.T, change func(*network.Config)) *network.Network {
	t.Helper()
	fakenet.Start(t)
	before := hostState(t)
	t.Cleanup(func() {
		if err := network.Destroy(instance); err != nil {
			t.Errorf("Destroy: %v", err)
		}
		if after := hostState(t); after != before {
			t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
		}
	})
	return reopen(t, change)
}

// reopen makes another network over the same host.
func reopen(t *testing.T, change func(*network.Config)) *network.Network {
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

func start(t *testing.T, change func(*network.Config)) *network.Network {
	t.Helper()
	n := open(t, change)
	if err := n.Recover(t.Context(), nil); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	return n
}

// guest is a machine's place, seen from inside.
type guest struct {
	t  *testing.T
	id nacre.MachineID
	nacre.Slot
}

func acquire(t *testing.T, n *network.Network, p nacre.EgressPolicy) guest {
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

// dial connects from inside; host is an IP address.
func (g guest) dial(proto, host string, port int) (c net.Conn, err error) {
	err = g.do(func() error {
		var e error
		c, e = net.DialTimeout(proto, net.JoinHostPort(host, fmt.Sprint(port)), patience)
		return e
	})
	return c, err
}

// tcp tells whether a TCP echo comes back from host.
func (g guest) tcp(host string) error {
	c, err := g.dial("tcp4", host, fakenet.EchoPort)
	if err != nil {
		return err
	}
	defer c.Close()
	return echo(c)
}

func (g guest) udp(host string) error {
	c, err := g.dial("udp4", host, fakenet.EchoPort)
	if err != nil {
		return err
	}
	defer c.Close()
	return echo(c)
}

func echo(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
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
	c, err := g.dial("tcp4", host, fakenet.HTTPPort)
	if err != nil {
		return "", err
	}
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }, DisableKeepAlives: true}
	cl := &http.Client{Transport: tr, Timeout: 2 * time.Second}
	r, err := cl.Get("http://" + host + "/")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// hostState is everything of ours that a host could keep.
func hostState(t *testing.T) string {
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
		out = append(out, fmt.Sprint("link ", l.Name, " ", as))
	}
	for _, f := range []string{"/proc/net/route", "/proc/net/arp"} {
		b, _ := os.ReadFile(f)
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, "nv"+instance) || strings.HasPrefix(line, "*") {
				out = append(out, f+": "+strings.TrimSpace(line))
			}
		}
	}
	return strings.Join(append(out, tables(t)...), "\n")
}
