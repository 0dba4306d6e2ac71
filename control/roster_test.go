package control

import (
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
