package node_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
)

// linger has machines that were killed stay until let is called, and tells of each on
// stays when the node begins to wait for it. A daemon that was killed clears nothing.
func (w *world) linger() (stays chan nacre.MachineID, let func()) {
	stays = make(chan nacre.MachineID, 100)
	gone := make(chan struct{})
	w.host.SetHook(func(op string, id nacre.MachineID) error {
		if op != "machine.stop" {
			return nil
		}
		stays <- id
		<-gone
		if w.fake.Killed() {
			return errors.New("nobody does this any more")
		}
		return nil
	})
	return stays, func() { close(gone) }
}

func (w *world) pause(id nacre.SandboxID) nacre.SnapshotID {
	w.tb.Helper()
	m, err := w.n.Snapshot(w.tb.Context(), id, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true})
	if err != nil {
		w.tb.Fatal(err)
	}
	return m.ID
}

func (w *world) promised() int64 {
	w.tb.Helper()
	c, err := w.n.Capacity(w.tb.Context())
	if err != nil {
		w.tb.Fatal(err)
	}
	return c.MemoryPromised >> 20
}

// TestAPauseDoesNotWaitForItsMachine: it is answered when the snapshot exists and the
// machine is killed; what that held still counts, hinders nobody, and is gone when the
// sandbox's stop has returned.
func TestAPauseDoesNotWaitForItsMachine(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	spec, st := w.begin()
	w.write(spec.Sandbox, "held")
	old := w.host.Machine(st.Machine)
	stays, let := w.linger()
	spec.Snapshot = w.pause(spec.Sandbox)
	if <-stays != st.Machine {
		t.Fatal("another machine is cleared away")
	}
	if _, err := old.Guest.Listen(1234); err == nil {
		t.Error("the machine was not killed")
	}
	if w.machine(spec.Sandbox) != "" {
		t.Error("the sandbox still has it")
	}
	if _, err := os.Stat(filepath.Join(w.dir, "node", "handles", string(st.Machine)+".json")); err == nil {
		t.Error("a later process would take it for the sandbox's")
	}
	if got := w.promised(); got != 256 {
		t.Errorf("%d MiB are promised while it holds its memory", got)
	}
	again, err := n.Start(t.Context(), spec) // while the old one is there
	if err != nil || again.Machine == st.Machine {
		t.Fatalf("%+v, %v", again, err)
	}
	if got := w.read(spec.Sandbox); got != "held" {
		t.Errorf("it has %q", got)
	}
	if got := w.promised(); got != 512 {
		t.Errorf("%d MiB are promised to the old and the new one", got)
	}
	let()
	w.eventually("the memory is given back", func() bool { return w.promised() == 256 })
	if l := w.leaks(); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
	if w.machine(spec.Sandbox) != again.Machine || w.read(spec.Sandbox) != "held" {
		t.Error("the end of the old one harmed the new one")
	}
}

// TestAStopWaitsForWhatAPauseLeft: whoever deletes a sandbox that was just paused, or
// resumed since, leaves nothing of it.
func TestAStopWaitsForWhatAPauseLeft(t *testing.T) {
	for _, resumed := range []bool{false, true} {
		t.Run(fmt.Sprint("resumed ", resumed), func(t *testing.T) {
			w := newWorld(t)
			n := w.start()
			spec, st := w.begin()
			stays, gone := make(chan struct{}), make(chan struct{})
			w.host.SetHook(func(op string, id nacre.MachineID) error {
				if op == "machine.stop" && id == st.Machine {
					close(stays)
					<-gone
				}
				return nil
			})
			spec.Snapshot = w.pause(spec.Sandbox)
			<-stays
			if resumed {
				if _, err := n.Start(t.Context(), spec); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.DeleteSnapshot(t.Context(), spec.Snapshot); err != nil {
				t.Fatal(err)
			}
			late, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			wantCode(t, n.Stop(late, spec.Sandbox), nacre.CodeDeadline) // it does not say that all is gone
			close(gone)
			if err := n.Stop(t.Context(), spec.Sandbox); err != nil {
				t.Fatal(err)
			}
			if l := w.host.Leaks(); len(l) > 0 {
				t.Errorf("left behind: %v", l)
			}
			if got := w.promised(); got != 0 {
				t.Errorf("%d MiB are promised to nobody", got)
			}
		})
	}
}

// TestAResumeAtOnceFitsAFullHost: the room that a sandbox had until its pause is its
// own again, once the host has it back; it is never promised twice.
func TestAResumeAtOnceFitsAFullHost(t *testing.T) {
	for name, limit := range map[string]node.Admission{
		"sandboxes": {MaxSandboxes: 1},
		"memory":    {Overcommit: 256.0 / (64 << 10)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.tweak = func(c *node.Config) { c.Admission = limit }
			n := w.start()
			spec, st := w.begin()
			w.write(spec.Sandbox, "held")
			gone := make(chan struct{})
			var free, early atomic.Bool
			begun := make(chan struct{})
			w.host.SetHook(func(op string, id nacre.MachineID) error {
				switch {
				case op == "machine.stop" && id == st.Machine:
					close(begun)
					<-gone
					free.Store(true)
				case op == "runtime.restore" && !free.Load():
					early.Store(true)
				}
				return nil
			})
			spec.Snapshot = w.pause(spec.Sandbox)
			<-begun
			done := make(chan error)
			go func() { _, err := n.Start(t.Context(), spec); done <- err }()
			select {
			case err := <-done:
				t.Fatalf("it did not wait: %v", err)
			case <-time.After(20 * time.Millisecond): // it may as well come later
			}
			close(gone)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if early.Load() {
				t.Error("the room was promised twice")
			}
			if got := w.read(spec.Sandbox); got != "held" {
				t.Errorf("it has %q", got)
			}
			if _, err := n.Start(t.Context(), w.spec()); !nacre.IsCode(err, nacre.CodeExhausted) {
				t.Errorf("another one on the full host: %v", err)
			}
		})
	}
}

// TestCloseWaitsForWhatAPauseLeft: an orderly end of the server leaves nothing for the
// next start to sweep.
func TestCloseWaitsForWhatAPauseLeft(t *testing.T) {
	w := newWorld(t)
	w.start()
	spec, _ := w.begin()
	stays, let := w.linger()
	w.pause(spec.Sandbox)
	<-stays
	closed := make(chan struct{})
	go func() { w.stop(); close(closed) }()
	let()
	<-closed
	if l := w.host.Leaks(); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

// TestKilledMachineThatStays: when a killed machine cannot be cleared away at first
// it is tried again, by the node, by a stop, or by the next daemon.
func TestKilledMachineThatStays(t *testing.T) {
	for _, how := range []string{"by itself", "stop", "restart"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t)
			n := w.start()
			spec, st := w.begin()
			w.write(spec.Sandbox, "held")
			failed := make(chan struct{}, 10)
			w.host.SetHook(func(op string, _ nacre.MachineID) error {
				if op == "machine.stop" {
					failed <- struct{}{}
					return nacre.Errorf(nacre.CodeInternal, "its group stays")
				}
				return nil
			})
			snap := w.pause(spec.Sandbox)
			<-failed
			if w.machine(spec.Sandbox) != "" {
				t.Error("the sandbox has the dead machine")
			}
			wantCode(t, n.Stop(t.Context(), spec.Sandbox), nacre.CodeUnavailable)
			if got := w.promised(); got != 256 {
				t.Errorf("%d MiB are promised while it stays", got)
			}
			w.host.SetHook(nil)
			switch how {
			case "stop":
				if err := n.Stop(t.Context(), spec.Sandbox); err != nil {
					t.Fatal(err)
				}
			case "restart":
				w.restart()
			}
			w.eventually("it is gone", func() bool { return w.host.Machine(st.Machine) == nil && w.promised() == 0 })
			w.whole(spec, snap, "held")
		})
	}
}

// TestFault03_KilledBehindAPause: the daemon is killed at any step of a pause, the
// resume that follows at once, and what clears the old machine away meanwhile. The
// sandbox is in one place with what it held, and the old machine is nowhere.
func TestFault03_KilledBehindAPause(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		t.Run(fmt.Sprint("its snapshot is deleted ", deleted), func(t *testing.T) {
			steps(t, func(w *world, at int) bool {
				spec, st := w.begin()
				w.write(spec.Sandbox, "held")
				stays, let := w.linger()
				w.fake.KillAt(at, nil)
				m, err := w.n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true})
				paused, resumed := err == nil, false
				if paused {
					spec.Snapshot = m.ID
					_, err = w.n.Start(t.Context(), spec)
					resumed = err == nil
				}
				gone := resumed && deleted && w.n.DeleteSnapshot(t.Context(), m.ID) == nil
				if paused {
					w.eventually("the old machine is cleared away, or the daemon dead", func() bool {
						select {
						case id := <-stays:
							if id != st.Machine {
								t.Fatalf("step %d: another machine is cleared away", at)
							}
							return true
						default:
							return w.fake.Killed() // behind the pause, at any moment
						}
					})
				}
				let()
				if resumed {
					w.eventually("the old machine is gone, or the daemon", func() bool { return w.fake.Killed() || w.promised() == 256 })
				}
				burnt := w.fake.Killed()
				if err != nil && !burnt {
					t.Fatalf("step %d: %v", at, err)
				}
				w.restart()
				w.eventually("the old machine is gone, or runs on", func() bool {
					return len(w.leaks()) == 0 && (!paused || w.host.Machine(st.Machine) == nil)
				})
				running := w.machine(spec.Sandbox) != ""
				kept := false
				for _, s := range w.snapshots() {
					kept = kept || s.ID == m.ID
				}
				switch {
				case !running && (resumed || !kept && !paused && len(w.snapshots()) == 0):
					t.Fatalf("step %d: it is nowhere; resumed %v", at, resumed)
				case paused && !kept && !deleted:
					t.Fatalf("step %d: its snapshot is lost", at)
				case gone && kept:
					t.Fatalf("step %d: its snapshot is there again", at)
				}
				if !running {
					spec.Snapshot = w.snapshots()[0].ID
					if _, err := w.n.Start(t.Context(), spec); err != nil {
						t.Fatalf("step %d: it cannot go on: %v", at, err)
					}
				}
				if got := w.read(spec.Sandbox); got != "held" {
					t.Fatalf("step %d: it has %q", at, got)
				}
				return burnt
			})
		})
	}
}
