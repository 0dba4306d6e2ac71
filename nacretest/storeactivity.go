package nacretest

import (
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// ActivityLog is a store of events that come with no change of a record.
type ActivityLog interface {
	nacre.SandboxStore
	nacre.EventLog
	nacre.EventSignal
	nacre.EventWriter
}

// TestActivityLog is the contract of nacre.EventWriter and EventSignal.
func TestActivityLog(t *testing.T, open func(t *testing.T) ActivityLog) {
	store := open(t)
	team := nacre.NewTeamID()
	box := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning), nacre.Event{Kind: nacre.EventCreated, Time: storeEpoch})
	written := store.EventsWritten()
	at := func(kind nacre.EventKind, d time.Duration) nacre.Event {
		return nacre.Event{TeamID: team, SandboxID: box.ID, Kind: kind, Time: storeEpoch.Add(d), Data: map[string]string{"exec": "1"}}
	}
	select {
	case <-written:
		t.Error("a reader was woken for nothing")
	default:
	}
	batch := []nacre.Event{at(nacre.EventExecStarted, 0), at(nacre.EventExecCompleted, time.Second), at(nacre.EventFileChanged, time.Hour)}
	if err := store.AppendEvents(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	select {
	case <-written:
	case <-time.After(10 * time.Second):
		t.Error("nobody told the reader")
	}
	got := waitEvents(t, store, nacre.EventFilter{TeamID: team, SandboxID: box.ID}, 4)
	for i, e := range got[1:] {
		if e.Kind != batch[i].Kind || !e.Time.Equal(batch[i].Time) || e.Seq <= got[i].Seq {
			t.Errorf("event %d is %+v after %d", i, e, got[i].Seq)
		}
	}
	if last, err := store.LastEvent(t.Context()); err != nil || last != got[3].Seq {
		t.Errorf("the last event is %d, want %d: %v", last, got[3].Seq, err)
	}
	written = store.EventsWritten()
	if _, err := store.Update(t.Context(), team, box.ID, noChange); err != nil {
		t.Fatal(err)
	}
	select {
	case <-written:
		t.Error("a change without an event woke the reader")
	default:
	}
	expectCode(t, "an event of no sandbox", store.AppendEvents(t.Context(), []nacre.Event{{TeamID: team, Kind: "x"}}), nacre.CodeInvalid)
	n, err := store.TrimEvents(t.Context(), storeEpoch.Add(time.Minute), 10)
	if n != 2 || err != nil {
		t.Errorf("trimmed %d, %v", n, err)
	}
	waitEvents(t, store, nacre.EventFilter{TeamID: team}, 2)
}
