package control_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
)

// deletedBehind is a store in which something happens right after a snapshot was
// looked up.
type deletedBehind struct {
	nacre.SnapshotStore
	then *atomic.Pointer[func()]
}

func (s deletedBehind) GetSnapshot(ctx context.Context, team nacre.TeamID, id nacre.SnapshotID) (nacre.Snapshot, error) {
	n, err := s.SnapshotStore.GetSnapshot(ctx, team, id)
	if f := s.then.Swap(nil); f != nil {
		(*f)()
	}
	return n, err
}

// TestFault26_DeletedWhileAForkLooksItUp: it is no longer there, and not out of reach.
func TestFault26_DeletedWhileAForkLooksItUp(t *testing.T) {
	w := newWorld(t)
	var then atomic.Pointer[func()]
	w.rules = func(c *control.Config) { c.Snapshots = deletedBehind{c.Snapshots, &then} }
	w.start()
	s := w.create(nacre.CreateRequest{})
	n := w.snapshot(s.ID, nacre.SnapshotRequest{})
	remove := func() {
		if err := w.svc.DeleteSnapshot(t.Context(), team, n.ID); err != nil {
			t.Error(err)
		}
	}
	then.Store(&remove)
	_, err := w.svc.Fork(t.Context(), team, nacre.ForkRequest{Snapshot: n.ID})
	wantCode(t, err, nacre.CodeNotFound)
	w.settles("deleted")
}
