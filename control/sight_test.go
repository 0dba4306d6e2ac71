package control_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
)

// hookedNode runs a function before it lists its machines, and may refuse a start.
type hookedNode struct {
	nacre.Node
	before *atomic.Pointer[func()]
	refuse *atomic.Bool
}

func (n hookedNode) Start(ctx context.Context, spec nacre.StartSpec) (nacre.Started, error) {
	if n.refuse.Swap(false) {
		return nacre.Started{}, nacre.Errorf(nacre.CodeUnavailable, "not now")
	}
	return n.Node.Start(ctx, spec)
}

func (n hookedNode) Machines(ctx context.Context) ([]nacre.MachineStatus, error) {
	if f := n.before.Swap(nil); f != nil {
		(*f)()
	}
	return n.Node.Machines(ctx)
}

// TestReconcilerSparesWhatWasResumedMeanwhile: a sandbox that is resumed between the
// reconciler's look at the records and its look at the machines keeps its machine.
func TestReconcilerSparesWhatWasResumedMeanwhile(t *testing.T) {
	w := newWorld(t)
	var hook atomic.Pointer[func()]
	var refuse atomic.Bool
	w.rules = func(c *control.Config) {
		c.Node = hookedNode{c.Node, &hook, &refuse}
		c.Reconcile = 5 * time.Millisecond
	}
	w.start()
	for range 5 {
		s := w.create(nacre.CreateRequest{})
		w.write(s.ID, "/tmp/kept", "kept")
		// Paused at a snapshot that stays when the sandbox goes on.
		snap := w.snapshot(s.ID, nacre.SnapshotRequest{})
		refuse.Store(true)
		if _, err := w.svc.Restore(t.Context(), team, s.ID, snap.ID); err == nil || w.get(s.ID).State != nacre.StatePaused {
			t.Fatalf("restored: %v, %s", err, w.get(s.ID).State)
		}
		done := make(chan struct{})
		resume := func() {
			defer close(done)
			if _, _, err := w.svc.Resume(context.Background(), team, s.ID, nacre.ResumeRequest{}); err != nil {
				t.Error(err)
			}
		}
		hook.Store(&resume)
		<-done
		looks := make(chan struct{}) // until the reconciler has come round again
		again := func() { close(looks) }
		hook.Store(&again)
		<-looks
		if got := w.read(s.ID, "/tmp/kept"); got != "kept" || w.get(s.ID).State != nacre.StateRunning {
			t.Fatalf("%s holds %q and is %s", s.ID, got, w.get(s.ID).State)
		}
		if err := w.svc.Kill(t.Context(), team, s.ID); err != nil {
			t.Fatal(err)
		}
	}
}
