package network_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/nacretest/reach"
	"github.com/nacrehq/nacre/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const daemonEnv = "NACRE_NETWORK_DAEMON" // how many slots it takes

type machines map[nacre.MachineID]nacre.RecoveredSlot

// daemon is a process that takes slots, tells of them, and waits to be killed.
// Every other one has an allow-list of 1.1.1.1, the rest are open.
func daemon() {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	count, err := strconv.Atoi(os.Getenv(daemonEnv))
	fail(err)
	n, err := network.New(network.Config{Instance: instance, Ready: 4})
	fail(err)
	ctx := context.Background()
	fail(n.Recover(ctx, nil))
	out := machines{}
	for i := range count {
		id := nacre.NewMachineID()
		var p nacre.EgressPolicy
		if i%2 == 1 {
			p = nacre.EgressPolicy{DenyAll: true, Allow: prefixes("1.1.1.1/32")}
		}
		s, err := n.Acquire(ctx, id, p)
		fail(err)
		out[id] = nacre.RecoveredSlot{Slot: s, Policy: p}
	}
	fail(json.NewEncoder(os.Stdout).Encode(out))
	select {}
}

// crash runs a daemon with slots and kills it.
func crash(t testing.TB, count int) machines {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe)
	c.Env = append(os.Environ(), daemonEnv+"="+strconv.Itoa(count))
	c.Stderr = os.Stderr
	r, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var out machines
	err = json.NewDecoder(r).Decode(&out)
	_ = c.Process.Kill()
	_ = c.Wait()
	if err != nil {
		t.Fatalf("the daemon: %v", err)
	}
	return out
}

// checkPolicies sees that every machine is held to its policy.
func (ms machines) check(t *testing.T, when string) {
	t.Helper()
	for id, m := range ms {
		g := guest{t, id, m.Slot}
		if err := g.reaches(fakenet.CloudFlare); err != nil {
			t.Errorf("%s: %s does not reach %s: %v", when, m.Slot.Name, fakenet.CloudFlare, err)
		}
		if err := g.reaches(fakenet.Example); (err == nil) == m.Policy.DenyAll {
			t.Errorf("%s: %s to %s: %v, though DenyAll is %v", when, m.Slot.Name, fakenet.Example, err, m.Policy.DenyAll)
		}
	}
}

// TestFault01_NetworkOutlivesDaemon: after kill -9 guests keep their network and
// are held to their policies; a new process takes them back, connections and all.
func TestFault01_NetworkOutlivesDaemon(t *testing.T) {
	_ = prepare(t)
	ms := crash(t, 6)
	ms.check(t, "without a daemon")
	conns := map[nacre.MachineID]net.Conn{}
	for id, m := range ms {
		conns[id] = must(guest{t, id, m.Slot}.connect("tcp4", fakenet.CloudFlare, fakenet.EchoPort))(t)
	}

	n := reopen(t, nil)
	ms.check(t, "before Recover")
	if _, err := n.Acquire(t.Context(), nacre.NewMachineID(), nacre.EgressPolicy{}); !nacre.IsCode(err, nacre.CodeUnavailable) {
		t.Errorf("Acquire before Recover: %v, want %s", err, nacre.CodeUnavailable)
	}
	lost := nacre.MachineID("")
	for id := range ms {
		lost = id // its machine is gone, says the node
		break
	}
	orphan := ms[lost].Slot
	delete(ms, lost)
	if err := n.Recover(t.Context(), ms); err != nil {
		t.Fatal(err)
	}
	ms.check(t, "after Recover")
	for id := range ms {
		if err := echoes(conns[id]); err != nil {
			t.Errorf("a connection from before does not go on: %v", err)
		}
		if _, err := (guest{t, id, ms[id].Slot}).lookup("example.com."); err != nil {
			t.Errorf("DNS after Recover: %v", err)
		}
	}
	// The pool's four and the lost one are taken away in the background.
	names := map[string]bool{}
	for _, m := range ms {
		names[m.Slot.Name] = true
	}
	await(t, "the leftovers to go", func() bool {
		entries, _ := os.ReadDir("/run/netns")
		mine := 0
		for _, e := range entries {
			if names[e.Name()] {
				mine++
			}
		}
		_, err := os.Stat(orphan.Path)
		return mine == len(ms) && os.IsNotExist(err) && len(entries) <= len(ms)+2
	})
	for id := range ms {
		if err := n.Release(t.Context(), id); err != nil {
			t.Errorf("Release of a recovered machine: %v", err)
		}
	}
}

// prepare starts the internet and the leak check without a network.
func prepare(t *testing.T) *fakenet.Internet {
	t.Helper()
	watchLeaks(t)
	return internetOf(t)
}

func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

func TestRecoveryContract(t *testing.T) {
	nacretest.TestNetworkRecovery(t,
		func(t *testing.T) nacre.Network { return open(t, nil) },
		func(t *testing.T, old nacre.Network) nacre.Network {
			// As near to a crash as one process comes: what it holds stays.
			if err := old.(*network.Network).Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			return reopen(t, nil)
		})
}

// TestFault08_Leftovers: a start with many leftovers does not wait for them, and
// none of them is in the way.
func TestFault08_Leftovers(t *testing.T) {
	count := 300
	if s := os.Getenv("NACRE_LEFTOVERS"); s != "" {
		count, _ = strconv.Atoi(s)
	}
	_ = prepare(t)
	made := time.Now()
	crash(t, count)
	t.Logf("%d leftovers were made in %v", count, time.Since(made))
	began := time.Now()
	n := reopen(t, func(c *network.Config) { c.Ready = 4 })
	if err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	up := time.Since(began)
	began = time.Now()
	g := acquire(t, n, nacre.EgressPolicy{})
	first := time.Since(began)
	if err := g.reaches(fakenet.Example); err != nil {
		t.Errorf("the first new slot while others are reclaimed: %v", err)
	}
	if up > 5*time.Second || first > 5*time.Second {
		t.Errorf("up after %v, the first slot took %v; want less than 5 s", up, first)
	}
	await(t, "the leftovers to go", func() bool { return slotCount(t) <= 1+4 })
	t.Logf("with %d leftovers: up after %v, first slot in %v, all gone after %v", count, up, first, time.Since(began))
}

// slotCount is how many namespaces and how many links there are, the larger.
func slotCount(t testing.TB) int {
	t.Helper()
	ns, err := filepath.Glob("/run/netns/nacre-" + instance + "-*")
	if err != nil {
		t.Fatal(err)
	}
	links, err := filepath.Glob("/proc/sys/net/ipv4/conf/nv" + instance + "-*")
	if err != nil {
		t.Fatal(err)
	}
	return max(len(ns), len(links))
}

// TestThreadsStayHome: making namespaces leaves no thread of the process in one.
func TestThreadsStayHome(t *testing.T) {
	n := start(t, func(c *network.Config) { c.Ready = -1 })
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				id := nacre.NewMachineID()
				if _, err := n.Acquire(t.Context(), id, nacre.EgressPolicy{}); err != nil {
					t.Errorf("Acquire: %v", err)
				}
				if err := n.Release(t.Context(), id); err != nil {
					t.Errorf("Release: %v", err)
				}
			}
		})
	}
	wg.Wait()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatal("no threads", err)
	}
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != home {
			t.Errorf("thread %s is in %s, not in %s", task, ns, home)
		}
	}
}

// TestManySlots: two hundred machines at once, each with its own address and
// policy.
func TestManySlots(t *testing.T) {
	const count = 200
	n := start(t, func(c *network.Config) { c.Ready = 8 })
	guests := make([]guest, count)
	began := time.Now()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := w; i < count; i += 4 {
				id := nacre.NewMachineID()
				s, err := n.Acquire(t.Context(), id, nacre.EgressPolicy{DenyAll: i%2 == 1, Allow: prefixes("8.8.8.8/32")})
				if err != nil {
					t.Errorf("Acquire %d: %v", i, err)
					return
				}
				guests[i] = guest{t, id, s}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%d slots in %v", count, time.Since(began))
	for i, g := range guests {
		if err := g.reaches(fakenet.DNSServer); err != nil {
			t.Errorf("guest %d: %v", i, err)
		}
		if err := g.reaches(fakenet.Example); (err == nil) != (i%2 == 0) {
			t.Errorf("guest %d to %s: %v", i, fakenet.Example, err)
		}
	}
	began = time.Now()
	for w := range 20 {
		wg.Go(func() {
			for i := w; i < count; i += 20 {
				if err := n.Release(t.Context(), guests[i].id); err != nil {
					t.Errorf("Release %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d slots released in %v", count, time.Since(began))
}

// TestPools: which network guests get, and what a collision says.
func TestPools(t *testing.T) {
	t.Run("the next one when the first is in use", func(t *testing.T) {
		_ = prepare(t)
		addHostAddress(t, "10.231.7.1/24")
		n := reopen(t, nil)
		if err := n.Recover(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		g := acquire(t, n, nacre.EgressPolicy{})
		if !netip.MustParsePrefix("10.229.0.0/16").Contains(g.Guest.Addr()) {
			t.Errorf("guest %s", g.Guest)
		}
		if err := g.reaches(fakenet.Example); err != nil {
			t.Error(err)
		}
	})
	t.Run("a configured one that collides is refused", func(t *testing.T) {
		_ = prepare(t)
		_, err := network.New(network.Config{Instance: instance, Pool: netip.MustParsePrefix("192.0.2.0/24")})
		if !nacre.IsCode(err, nacre.CodeInvalid) || !strings.Contains(nacre.ErrorMessage(err), "192.0.2") {
			t.Errorf("got %v, want %s that names the network", err, nacre.CodeInvalid)
		}
	})
	t.Run("slots that exist keep theirs", func(t *testing.T) {
		_ = prepare(t)
		ms := crash(t, 2)
		n := reopen(t, func(c *network.Config) { c.Pool = netip.MustParsePrefix("172.30.0.0/16") })
		if err := n.Recover(t.Context(), ms); err != nil {
			t.Fatal(err)
		}
		ms.check(t, "with another pool configured")
		if !strings.Contains(fmt.Sprint(n.Findings()), "172.30.0.0/16") {
			t.Errorf("nobody is told: %v", n.Findings())
		}
	})
	t.Run("a new one when there are none", func(t *testing.T) {
		_ = prepare(t)
		n := reopen(t, nil)
		if err := n.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		n = reopen(t, func(c *network.Config) { c.Pool = netip.MustParsePrefix("172.30.0.0/16") })
		if err := n.Recover(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if g := acquire(t, n, nacre.EgressPolicy{}); !netip.MustParsePrefix("172.30.0.0/16").Contains(g.Guest.Addr()) {
			t.Errorf("guest %s", g.Guest)
		}
	})
	t.Run("the same when the server was killed between the gateway's address and its route", func(t *testing.T) {
		_ = prepare(t)
		var pools []netip.Prefix
		for range 2 {
			n := reopen(t, nil)
			if err := n.Recover(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			pool := acquire(t, n, nacre.EgressPolicy{}).Guest.Masked()
			pools = append(pools, pool)
			if err := n.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, dst, err := net.ParseCIDR(pool.String())
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.RouteDel(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE, Priority: 4096}); err != nil {
				t.Fatal(err)
			}
		}
		if pools[0] != pools[1] {
			t.Errorf("%s, then %s", pools[0], pools[1])
		}
		if err := network.Destroy(instance); err != nil { // a leak if it leaves the address
			t.Error(err)
		}
	})
	t.Run("each its own when two start at once", func(t *testing.T) {
		_ = prepare(t)
		round := func() {
			var started [4]*network.Network
			var wg sync.WaitGroup
			for i := range started {
				wg.Go(func() {
					n, err := network.New(network.Config{Instance: "at" + strconv.Itoa(i)})
					if err != nil {
						t.Error(err)
						return
					}
					started[i] = n
				})
			}
			wg.Wait()
			var pools []netip.Prefix
			for i, n := range started {
				if n == nil {
					continue
				}
				if err := n.Recover(t.Context(), nil); err != nil {
					t.Error(err)
				}
				slot, err := n.Acquire(t.Context(), nacre.NewMachineID(), nacre.EgressPolicy{})
				if p := slot.Guest.Masked(); err != nil || slices.Contains(pools, p) {
					t.Errorf("a slot in %s beside %v: %v", p, pools, err)
				}
				pools = append(pools, slot.Guest.Masked())
				defer func() {
					if err := errors.Join(n.Close(context.Background()), network.Destroy("at"+strconv.Itoa(i))); err != nil {
						t.Error(err)
					}
				}()
			}
		}
		for range 10 {
			round()
		}
	})
	for _, bad := range []network.Config{{}, {Instance: "TooLong"}, {Instance: "a-b"}, {Instance: "a", Pool: netip.MustParsePrefix("10.0.0.0/8")}, {Instance: "a", Pool: netip.MustParsePrefix("fd00::/64")}} {
		if _, err := network.New(bad); !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Errorf("%+v: got %v, want %s", bad, err, nacre.CodeInvalid)
		}
	}
}

// TestTwoInstances: installations on one host do not disturb each other, and
// their guests are strangers.
func TestTwoInstances(t *testing.T) {
	a := start(t, nil)
	b, err := network.New(network.Config{Instance: "t2", Ready: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Destroy("t2"); err != nil {
			t.Error(err)
		}
	})
	if err := b.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	ga, gb := acquire(t, a, reach.Everywhere()), acquire(t, b, reach.Everywhere())
	gb.listen(t, 9000)
	if c, err := ga.dial("tcp4", gb.Guest.Addr().String(), 9000); err == nil {
		c.Close()
		t.Error("a guest reaches another installation's")
	}
	if c, err := ga.dial("tcp4", gb.Gateway.String(), 53); err == nil {
		c.Close()
		t.Error("a guest reaches another installation's DNS")
	}
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := network.Destroy("t2"); err != nil {
		t.Error(err)
	}
	if err := ga.reaches(fakenet.Example); err != nil {
		t.Errorf("after the other installation was removed: %v", err)
	}
}
