package control_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
)

// hookedNode runs a function before it lists its machines.
type hookedNode struct {
	nacre.Node
	before *atomic.Pointer[func()]
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
	w.rules = func(c *control.Config) {
		c.Node = hookedNode{c.Node, &hook}
		c.Reconcile = 5 * time.Millisecond
	}
	w.start()
	for range 20 {
		s := w.create(nacre.CreateRequest{})
		w.write(s.ID, "/tmp/kept", "kept")
		w.pause(s.ID)
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
