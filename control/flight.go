package control

import (
	"context"
	"sync"

	"github.com/nacrehq/nacre"
)

// flight is the set of sandboxes that this process has in its hands: being created,
// paused, resumed, kept or restored, one thing at a time each. The reconciler and
// the watcher of exits leave them alone: whoever began deals with them.
type flight struct {
	mu  sync.Mutex
	ids map[nacre.SandboxID]*trip
}

type trip struct {
	exit  *nacre.Exit   // that came meanwhile
	ended chan struct{} // closed at its end
}

func newFlight() *flight { return &flight{ids: map[nacre.SandboxID]*trip{}} }

// begin returns false, and what to wait for, when something is under way.
func (f *flight) begin(id nacre.SandboxID) (ok bool, ended <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.ids[id]; t != nil {
		return false, t.ended
	}
	f.ids[id] = &trip{ended: make(chan struct{})}
	return true, nil
}

// end returns the exit that came meanwhile, nil when none did.
func (f *flight) end(id nacre.SandboxID) *nacre.Exit {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.ids[id]
	delete(f.ids, id)
	close(t.ended)
	return t.exit
}

func (f *flight) has(id nacre.SandboxID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ids[id] != nil
}

// note keeps an exit for the end of what is under way; false when nothing is.
func (f *flight) note(id nacre.SandboxID, exit nacre.Exit) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.ids[id]
	if t == nil {
		return false
	}
	t.exit = &exit
	return true
}

// take waits until nothing is under way for the sandbox and begins something
// itself, with the record as it is then. What a dead process left half done is
// brought to its end first. release is called once.
func (s *Service) take(ctx context.Context, team nacre.TeamID, id nacre.SandboxID) (rec nacre.Sandbox, release func(), err error) {
	if !id.Valid() || team == "" {
		return nacre.Sandbox{}, nil, errUnknown()
	}
	if err := s.load(ctx); err != nil {
		return nacre.Sandbox{}, nil, err
	}
	for {
		ok, ended := s.flight.begin(id)
		if ok {
			break
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return nacre.Sandbox{}, nil, nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "another change of the sandbox is still under way; try again shortly")
		}
	}
	release = func() { s.landed(ctx, team, id) }
	rec, err = s.cfg.Store.Get(ctx, team, id)
	if err == nil && (rec.State == nacre.StatePausing || rec.State == nacre.StateResuming) {
		if err = s.settleOne(ctx, rec); err == nil {
			rec, err = s.cfg.Store.Get(ctx, team, id)
		}
	}
	if err == nil && !rec.Alive() {
		err = rec.Gone()
	}
	if err != nil {
		release()
		return nacre.Sandbox{}, nil, err
	}
	return rec, release, nil
}

// landed ends what was begun with a sandbox, and deals with an exit that came
// meanwhile.
func (s *Service) landed(ctx context.Context, team nacre.TeamID, id nacre.SandboxID) {
	if exit := s.flight.end(id); exit != nil {
		s.exited(context.WithoutCancel(ctx), team, id, *exit)
	}
}

// inHand is the set of snapshots that this process is making or about to give up.
type inHand struct {
	mu  sync.Mutex
	ids map[nacre.SnapshotID]bool
}

func (h *inHand) add(id nacre.SnapshotID) (remove func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ids[id] = true
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.ids, id)
	}
}

func (h *inHand) has(id nacre.SnapshotID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ids[id]
}

// behind is what is still to be done for requests that were answered. Run waits for it.
type behind struct {
	mu   sync.Mutex
	over bool
	work sync.WaitGroup
}

// do has fn done, now when nobody would wait for it any more.
func (b *behind) do(fn func()) {
	b.mu.Lock()
	if !b.over {
		defer b.mu.Unlock()
		b.work.Go(fn)
		return
	}
	b.mu.Unlock()
	fn()
}

func (b *behind) end() {
	b.mu.Lock()
	b.over = true
	b.mu.Unlock()
	b.work.Wait()
}
