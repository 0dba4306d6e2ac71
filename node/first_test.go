package node_test

import (
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
	if after := a.of("agent.logs", st.Machine)[0].Sub(begin); after < 200*time.Millisecond {
		t.Errorf("its log was asked for %s after its start", after)
	}
	w.eventually("the line is there", func() bool { return w.lines(spec.Sandbox) == "the first line" })

	spec, st = w.begin()
	w.host.Machine(st.Machine).Guest.Log(nacre.LogStdout, "its only line", nil)
	if err := w.n.Stop(t.Context(), spec.Sandbox); err != nil {
		t.Fatal(err)
	}
	if got := w.lines(spec.Sandbox); got != "its only line" {
		t.Errorf("the log of a sandbox that was stopped at once: %q", got)
	}
	if n := len(a.of("agent.logs", st.Machine)); n != 1 {
		t.Errorf("its log was asked for %d times", n)
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
	begin := time.Now()
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
	for _, at := range a.of("agent.healthy", other) {
		if after := at.Sub(begin); after > 10*time.Millisecond && after < 250*time.Millisecond {
			t.Errorf("the standby was asked %s after a start", after)
		}
	}
}
