package nacretest

import (
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// EventStore is a store whose events can be read.
type EventStore interface {
	nacre.SandboxStore
	nacre.EventLog
}

// TestEventLog is the contract of nacre.EventLog, with the SandboxStore that
// writes it.
func TestEventLog(t *testing.T, open func(t *testing.T) EventStore) {
	store := open(t)
	t.Run("WithTheChange", func(t *testing.T) { eventsWithChange(t, store) })
	t.Run("Filters", func(t *testing.T) { eventFilters(t, store) })
	t.Run("ReadersMissNothing", func(t *testing.T) { eventsConcurrently(t, store) })
}

// waitEvents reads until n events are shown: a store may hold one back while
// older transactions are open.
func waitEvents(t *testing.T, store EventStore, f nacre.EventFilter, n int) []nacre.Event {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		events, err := store.Events(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) >= n || time.Now().After(deadline) {
			if len(events) != n {
				t.Errorf("%d events for %+v, want %d", len(events), f, n)
			}
			return events
		}
		time.Sleep(time.Millisecond) // nothing tells when the others are done
	}
}

func eventsWithChange(t *testing.T, store EventStore) {
	team := nacre.NewTeamID()
	s := SampleSandbox(team, nacre.StateRunning)
	data := map[string]string{"reason": "killed", "detail": "é\n\x00"}
	mustInsert(t, store, s,
		nacre.Event{Time: storeEpoch.Add(1500 * time.Nanosecond), TeamID: team, SandboxID: s.ID, Kind: nacre.EventCreated, Data: data},
		nacre.Event{Time: storeEpoch, Kind: nacre.EventRunning})
	before := time.Now().Add(-time.Minute)
	_, err := store.Update(t.Context(), team, s.ID, func(*nacre.Sandbox) ([]nacre.Event, error) {
		return []nacre.Event{{Kind: nacre.EventDeadline}, {Kind: nacre.EventPaused, Time: storeEpoch}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got := waitEvents(t, store, nacre.EventFilter{TeamID: team}, 4)
	want := []nacre.Event{
		{Time: storeEpoch.Add(time.Microsecond), TeamID: team, SandboxID: s.ID, Kind: nacre.EventCreated, Data: data},
		{Time: storeEpoch, TeamID: team, SandboxID: s.ID, Kind: nacre.EventRunning},
		{TeamID: team, SandboxID: s.ID, Kind: nacre.EventDeadline},
		{Time: storeEpoch, TeamID: team, SandboxID: s.ID, Kind: nacre.EventPaused},
	}
	last := int64(0)
	for i, e := range got {
		if e.Seq <= last {
			t.Errorf("Seq %d comes after %d", e.Seq, last)
		}
		last, got[i].Seq = e.Seq, 0
		if e.Kind == nacre.EventDeadline {
			if e.Time.Before(before) {
				t.Errorf("an event without a time was given %v", e.Time)
			}
			got[i].Time = time.Time{}
		}
	}
	expectSame(t, "events", got, want)

	other := SampleSandbox(team, nacre.StateRunning)
	for _, e := range []nacre.Event{{Kind: nacre.EventEnded, SandboxID: other.ID}, {Kind: nacre.EventEnded, TeamID: nacre.NewTeamID()}, {}} {
		_, err := store.Update(t.Context(), team, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
			r.State = nacre.StateEnded
			return []nacre.Event{e}, nil
		})
		expectCode(t, "a false event", err, nacre.CodeInvalid)
	}
	if r, err := store.Get(t.Context(), team, s.ID); err != nil || r.State != nacre.StateRunning {
		t.Errorf("a change whose event was refused was kept: %s, %v", r.State, err)
	}
	waitEvents(t, store, nacre.EventFilter{TeamID: team}, 4)
}

func eventFilters(t *testing.T, store EventStore) {
	ann, bob := nacre.NewTeamID(), nacre.NewTeamID()
	one := mustInsert(t, store, SampleSandbox(ann, nacre.StateRunning), nacre.Event{Kind: nacre.EventCreated}, nacre.Event{Kind: nacre.EventRunning})
	two := mustInsert(t, store, SampleSandbox(ann, nacre.StateRunning), nacre.Event{Kind: nacre.EventCreated})
	foe := mustInsert(t, store, SampleSandbox(bob, nacre.StateRunning), nacre.Event{Kind: nacre.EventCreated})
	all := waitEvents(t, store, nacre.EventFilter{TeamID: ann}, 3)
	waitEvents(t, store, nacre.EventFilter{TeamID: bob}, 1)
	if t.Failed() {
		return
	}
	for _, c := range []struct {
		name string
		f    nacre.EventFilter
		want int
	}{
		{"a sandbox", nacre.EventFilter{TeamID: ann, SandboxID: one.ID}, 2},
		{"a sandbox of all teams", nacre.EventFilter{AllTeams: true, SandboxID: foe.ID}, 1},
		{"a kind", nacre.EventFilter{TeamID: ann, Kinds: []nacre.EventKind{nacre.EventCreated}}, 2},
		{"kinds", nacre.EventFilter{TeamID: ann, Kinds: []nacre.EventKind{nacre.EventRunning, nacre.EventCreated, "\x00"}}, 3},
		{"an unknown kind", nacre.EventFilter{TeamID: ann, Kinds: []nacre.EventKind{"\x00"}}, 0},
		{"a kind of a sandbox", nacre.EventFilter{TeamID: ann, SandboxID: one.ID, Kinds: []nacre.EventKind{nacre.EventRunning}}, 1},
		{"after the first", nacre.EventFilter{TeamID: ann, After: all[0].Seq}, 2},
		{"after the last", nacre.EventFilter{TeamID: ann, After: all[2].Seq}, 0},
		{"limit", nacre.EventFilter{TeamID: ann, Limit: 2}, 2},
		{"Fault36: another team's sandbox", nacre.EventFilter{TeamID: ann, SandboxID: foe.ID}, 0},
		{"a team restricts, whatever else is said", nacre.EventFilter{TeamID: ann, AllTeams: true, SandboxID: foe.ID}, 0},
		{"no team", nacre.EventFilter{SandboxID: two.ID}, 0},
		{"Fault30: a hostile id", nacre.EventFilter{TeamID: ann, SandboxID: "' OR 1=1 --"}, 0},
	} {
		got, err := store.Events(t.Context(), c.f)
		if err != nil || len(got) != c.want {
			t.Errorf("%s: %d events, %v; want %d", c.name, len(got), err, c.want)
		}
	}
}

// eventsConcurrently: a reader who goes on from the last Seq it saw sees each
// event once, whatever commits meanwhile.
func eventsConcurrently(t *testing.T, store EventStore) {
	const writers, each = 12, 25
	team := nacre.NewTeamID()
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if err := store.Insert(t.Context(), SampleSandbox(team, nacre.StateRunning), nacre.Event{Kind: nacre.EventCreated}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	seen := map[nacre.SandboxID]bool{}
	after, finished := int64(0), false
	deadline := time.Now().Add(time.Minute)
	for len(seen) < writers*each && time.Now().Before(deadline) {
		select {
		case <-done:
			finished = true
		default:
		}
		events, err := store.Events(t.Context(), nacre.EventFilter{TeamID: team, After: after, Limit: 7})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if seen[e.SandboxID] {
				t.Errorf("event %d was shown twice", e.Seq)
			}
			seen[e.SandboxID], after = true, e.Seq
		}
		if finished && len(events) == 0 {
			time.Sleep(time.Millisecond)
			if time.Now().After(deadline.Add(-40 * time.Second)) {
				break
			}
		}
	}
	<-done
	if len(seen) != writers*each {
		t.Errorf("the reader saw %d of %d events", len(seen), writers*each)
	}
}
