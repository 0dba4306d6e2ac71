package node_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
)

// TestFault22_HundredPauses: what was written just before each of a hundred pauses is
// there after it, and the processes are.
func TestFault22_HundredPauses(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	spec, _ := w.begin()
	agent, err := n.Agent(t.Context(), spec.Sandbox)
	if err != nil {
		t.Fatal(err)
	}
	p, err := agent.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "/bin/sh", Args: []string{"-c", "sleep 1000"}})
	if err != nil {
		t.Fatal(err)
	}
	pid := p.PID()
	_ = p.Close()
	for i := range 100 {
		text := fmt.Sprint("before pause ", i)
		w.write(spec.Sandbox, text)
		m, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true})
		if err != nil {
			t.Fatalf("pause %d: %v", i, err)
		}
		if i%10 == 9 { // whoever resumes it
			n = w.restart()
		}
		spec.Snapshot = m.ID
		if _, err := n.Start(t.Context(), spec); err != nil {
			t.Fatalf("resume %d: %v", i, err)
		}
		if got := w.read(spec.Sandbox); got != text {
			t.Fatalf("after pause %d it has %q", i, got)
		}
		agent, err := n.Agent(t.Context(), spec.Sandbox)
		if err != nil {
			t.Fatal(err)
		}
		if list, err := agent.Processes().List(t.Context()); err != nil || len(list) != 1 || list[0].PID != pid {
			t.Fatalf("after pause %d: %+v, %v", i, list, err)
		}
		if err := n.DeleteSnapshot(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	w.eventually("nothing is left behind", func() bool { return len(w.leaks()) == 0 })
}

// TestFault24_ClockStepsWhilePaused: the host's clock is set an hour forward or back
// while a sandbox is paused. It is told the time of now before anybody reaches it; a
// copy is, too.
func TestFault24_ClockStepsWhilePaused(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		t.Run(step.String(), func(t *testing.T) {
			w := newWorld(t)
			var off atomic.Int64
			clock := func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
			w.tweak = func(c *node.Config) { c.Clock = clock }
			n := w.start()
			spec, _ := w.begin()
			m, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true})
			if err != nil {
				t.Fatal(err)
			}
			off.Store(int64(step))
			copied := w.spec()
			for _, s := range []*nacre.StartSpec{&spec, &copied} {
				reached := false
				w.host.SetHook(func(at string, _ nacre.MachineID) error {
					if _, ok := n.Route(s.Sandbox); at == "agent.init" && ok {
						reached = true
					}
					return nil
				})
				s.Snapshot = m.ID
				st, err := n.Start(t.Context(), *s)
				if err != nil {
					t.Fatal(err)
				}
				in, _ := w.host.Machine(st.Machine).Guest.Init()
				if d := clock().Sub(in.Time).Abs(); d > 5*time.Second { // this machine may be slow
					t.Errorf("it was told a time that is %s off", d)
				}
				if reached {
					t.Error("it could be reached before it was told the time")
				}
			}
		})
	}
}

// TestProgress: while a snapshot is taken one can see how far it is, and else nothing.
func TestProgress(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	spec, _ := w.begin()
	var total atomic.Int64
	w.host.SetHook(func(at string, _ nacre.MachineID) error {
		if at == "machine.snapshot" {
			done, of := n.Progress(spec.Sandbox)
			if done != 0 {
				t.Errorf("%d bytes are written before it begins", done)
			}
			total.Store(of)
		}
		return nil
	})
	if _, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID()}); err != nil {
		t.Fatal(err)
	}
	if total.Load() <= 0 {
		t.Error("nobody knew how much it may come to be")
	}
	for _, id := range []nacre.SandboxID{spec.Sandbox, nacre.NewSandboxID()} {
		if done, of := n.Progress(id); done != 0 || of != 0 {
			t.Errorf("of nothing there are %d of %d bytes", done, of)
		}
	}
}
