package node_test

import (
	"context"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
)

// asked counts what the host asks of its guests.
type asked struct {
	mu    sync.Mutex
	times map[string][]time.Time // by operation and machine
}

func (w *world) asked() *asked {
	a := &asked{times: map[string][]time.Time{}}
	w.host.SetHook(func(op string, id nacre.MachineID) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		key := op + " " + string(id)
		a.times[key] = append(a.times[key], time.Now())
		return nil
	})
	return a
}

func (a *asked) of(op string, id nacre.MachineID) []time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.times[op+" "+string(id)]
}

// TestAFirstCommandHasTheGuestToItself: the host asks a sandbox for nothing while its
// first command runs, and loses nothing of its log by that.
func TestAFirstCommandHasTheGuestToItself(t *testing.T) {
	w := newWorld(t)
	w.start()
	a := w.asked()
	begin := time.Now()
	spec, st := w.begin()
	guest := w.host.Machine(st.Machine).Guest
	guest.Log(nacre.LogStdout, "the first line", nil)
	w.eventually("its log is asked for", func() bool { return len(a.of("agent.logs", st.Machine)) > 0 })
	if after := a.of("agent.logs", st.Machine)[0].Sub(begin); after < 50*time.Millisecond {
		t.Errorf("its log was asked for %s after its start", after)
	}
	w.eventually("the line is there", func() bool { return w.lines(spec.Sandbox) == "the first line" })

	for {
		begin = time.Now()
		spec, st = w.begin()
		w.host.Machine(st.Machine).Guest.Log(nacre.LogStdout, "its only line", nil)
		if err := w.n.Stop(t.Context(), spec.Sandbox); err != nil {
			t.Fatal(err)
		}
		if got := w.lines(spec.Sandbox); got != "its only line" {
			t.Errorf("the log of a sandbox that was stopped at once: %q", got)
		}
		asked := a.of("agent.logs", st.Machine)
		if len(asked) == 1 {
			break
		}
		if len(asked) == 0 || asked[0].Sub(begin) < 50*time.Millisecond {
			t.Fatalf("its log was asked for %d times", len(asked))
		} // else a busy host did not stop it at once
	}
}

func (w *world) lines(id nacre.SandboxID) string {
	w.tb.Helper()
	list, err := w.n.Logs(w.tb.Context(), id, nacre.LogQuery{})
	if err != nil {
		w.tb.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Message)
	}
	return strings.Join(out, "\n")
}

// dials remembers the connections to the machines of a runtime.
type dials struct {
	nacre.Runtime
	mu   sync.Mutex
	made map[net.Conn]bool
}

type dialedMachine struct {
	nacre.Machine
	all *dials
}

func (d *dials) Start(ctx context.Context, spec nacre.MachineSpec) (nacre.Machine, error) {
	m, err := d.Runtime.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	return dialedMachine{m, d}, nil
}

func (m dialedMachine) Dial(ctx context.Context, port int) (net.Conn, error) {
	c, err := m.Machine.Dial(ctx, port)
	m.all.mu.Lock()
	defer m.all.mu.Unlock()
	m.all.made[c] = true
	return c, err
}

func (d *dials) sofar() map[net.Conn]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.made)
}

// TestTheFirstConnectionIsThere: a client's first request to the agent waits for no
// connection, the second has one of its own, and nobody waits for one that is not used.
func TestTheFirstConnectionIsThere(t *testing.T) {
	w := newWorld(t)
	d := &dials{made: map[net.Conn]bool{}}
	w.tweak = func(c *node.Config) { d.Runtime, c.Runtime = c.Runtime, d }
	w.start()
	spec, _ := w.begin()
	found := 0
	ask := func() bool {
		before := d.sofar()
		conn, err := w.n.Dial(t.Context(), spec.Sandbox, nacre.AgentPort)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		if before[conn] {
			found++
		}
		return found > 0
	}
	w.eventually("the connection is there", ask)
	for range 10 {
		ask()
	}
	if found != 1 {
		t.Errorf("%d connections were there before they were asked for", found)
	}
	w.begin()
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("the end of the node waited %s", took)
	}
}

// TestAStandbyHasRunCommands: a client's first command is not the guest's first.
func TestAStandbyHasRunCommands(t *testing.T) {
	w := newWorld(t)
	w.tweak = func(c *node.Config) { c.Standby = node.Standby{Count: 1, Quiet: time.Millisecond} }
	w.start()
	a := w.asked()
	w.n.KeepReady(node.Shape{Build: build, Resources: resources})
	w.eventually("a standby is ready", func() bool { return w.standbys() == 1 })
	if n := len(a.of("agent.start", w.host.Machines()[0].Spec.ID)); n != 3 {
		t.Errorf("it has run %d commands", n)
	}
}

// TestStandbysAreNotAskedWhileSandboxesStart: not even whether they answer.
func TestStandbysAreNotAskedWhileSandboxesStart(t *testing.T) {
	w := newWorld(t)
	w.tweak = func(c *node.Config) {
		c.Standby = node.Standby{Count: 2, Quiet: 300 * time.Millisecond, Patience: time.Hour, Check: 5 * time.Millisecond}
	}
	w.start()
	w.n.KeepReady(node.Shape{Build: build, Resources: resources})
	w.eventually("two standbys are ready", func() bool { return w.standbys() == 2 })
	a := w.asked()
	_, st := w.begin()
	begin := a.of("agent.init", st.Machine)[0] // the start had begun, and had not ended
	var other nacre.MachineID
	for _, m := range w.host.Machines() {
		if m.Spec.ID != st.Machine {
			other = m.Spec.ID
		}
	}
	w.eventually("the other is asked", func() bool {
		all := a.of("agent.healthy", other)
		return len(all) > 0 && all[len(all)-1].After(begin)
	})
	early := 0
	for _, at := range a.of("agent.healthy", other) {
		if after := at.Sub(begin); after > 0 && after < 250*time.Millisecond {
			early++
		}
	}
	if early > 1 { // one may have been on its way; they are asked every 5 ms
		t.Errorf("the standby was asked %d times while a sandbox started", early)
	}
}
