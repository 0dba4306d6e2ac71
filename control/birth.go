package control

import (
	"context"
	"sync/atomic"

	"github.com/nacrehq/nacre"
)

// birth writes the record of a create, once: as it is when the first asks for it.
// That is when a standby is chosen for it, so that the store and the guest take their
// time side by side; when a start has taken a moment; or when it has ended.
type birth struct {
	s      *Service
	rec    nacre.Sandbox
	failed func() // called when it could not be written

	asked atomic.Bool
	done  chan struct{} // closed when the rest is valid
	err   error
	as    *nacre.Started // it was written as one that runs; nil: as one that is being created
}

func (s *Service) newBirth(rec nacre.Sandbox, failed func()) *birth {
	return &birth{s: s, rec: rec, failed: failed, done: make(chan struct{})}
}

// begin begins to write the record, unless somebody has: as one that runs on what it
// was started on, or as one that is being created.
func (b *birth) begin(ctx context.Context, as *nacre.Started) {
	if b.asked.Swap(true) {
		return
	}
	go func() { // waited for by end
		defer close(b.done)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.s.cfg.StoreTime)
		defer cancel()
		if b.as = as; as != nil {
			b.rec, b.err = b.s.insertRunning(ctx, b.rec, *as)
		} else {
			b.err = b.s.cfg.Store.Insert(ctx, b.rec, createdEvent(b.rec))
		}
		if b.err != nil {
			b.failed()
		}
	}()
}

// end waits for the record, which was begun.
func (b *birth) end() error {
	<-b.done
	return b.err
}

// runsOn tells whether the record, which was written, says that it runs on the machine.
func (b *birth) runsOn(m nacre.MachineID) bool { return b.as != nil && b.as.Machine == m }
