package control

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// TestOldRecordDoesNotBringBack: a sandbox that ends while the records are read, by a
// start or by the reconciler, holds no place of its team when they are in.
func TestOldRecordDoesNotBringBack(t *testing.T) {
	for _, known := range []bool{false, true} {
		r := newRoster()
		rec := nacre.Sandbox{ID: "i1", TeamID: "t", State: nacre.StateRunning}
		if known {
			r.enter("t", rec.ID, 0)
		}
		c := r.beginCensus()
		r.leave(rec.ID)
		r.enroll(c, rec, time.Minute)
		r.endCensus(c)
		if _, ok := r.get(rec.ID); ok || r.tally("t") != (tally{}) {
			t.Fatalf("known before: %v: it is on the roster again: %+v", known, r.tally("t"))
		}
		later := r.beginCensus()
		r.enroll(later, rec, time.Minute)
		r.endCensus(later)
		if _, ok := r.get(rec.ID); !ok || len(r.counts) != 0 {
			t.Fatalf("a later reading does not count: %v, %d open", ok, len(r.counts))
		}
	}
}

// TestCensusSparesWhatHasNoRecordYet: a sandbox that is being created while the records
// are read stays on the roster, or nobody would hear of its end.
func TestCensusSparesWhatHasNoRecordYet(t *testing.T) {
	s := &Service{roster: newRoster(), flight: newFlight()}
	var recorded sync.Map
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		for ctx.Err() == nil {
			id := nacre.NewSandboxID()
			if !s.expect(nacre.Sandbox{ID: id, TeamID: "team_aaaaaaaaaaaaaaaa"}, 0) {
				t.Error("it is refused")
			}
			recorded.Store(id, true)
			s.flight.end(id)
			s.roster.leave(id)
		}
	})
	for range 100_000 {
		c := s.beginCensus()
		for _, id := range c.before {
			if _, ok := recorded.Load(id); !ok {
				t.Errorf("the census expects a record of %s, which has none yet", id)
			}
		}
		s.roster.endCensus(c)
		if t.Failed() {
			break
		}
	}
	cancel()
	wg.Wait()
}
