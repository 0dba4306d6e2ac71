package event

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/sqlstore"
)

func open(t testing.TB) *sqlstore.DB {
	t.Helper()
	db, err := sqlstore.Open(context.Background(), filepath.Join(t.TempDir(), "nacre.db"), sqlstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// run runs a loop until the test ends.
func run(t testing.TB, loop func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = loop(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func write(t testing.TB, db *sqlstore.DB, s nacre.Sandbox, n int) {
	t.Helper()
	events := make([]nacre.Event, n)
	for i := range events {
		events[i] = nacre.Event{TeamID: s.TeamID, SandboxID: s.ID, Kind: nacre.EventExecStarted, Data: map[string]string{"i": fmt.Sprint(i)}}
	}
	if err := db.AppendEvents(context.Background(), events); err != nil {
		t.Fatal(err)
	}
}

func insert(t testing.TB, db *sqlstore.DB, team nacre.TeamID) nacre.Sandbox {
	t.Helper()
	s := nacretest.SampleSandbox(team, nacre.StateRunning)
	if err := db.Insert(context.Background(), s, nacre.Event{Kind: nacre.EventCreated}, nacre.Event{Kind: nacre.EventRunning}); err != nil {
		t.Fatal(err)
	}
	return s
}

var errEnough = errors.New("enough")

// take reads n events of a stream.
func take(t testing.TB, h *Hub, team nacre.TeamID, id nacre.SandboxID, after int64, n int) []nacre.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var got []nacre.Event
	err := h.Stream(ctx, team, id, after, func(e nacre.Event) error {
		if got = append(got, e); len(got) == n {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatalf("%d of %d events, then %v", len(got), n, err)
	}
	return got
}

// TestStreamGoesOnWhereItWas: a stream that is cut anywhere and taken up again by
// the last event seen shows each event once, in order, also those that were written
// meanwhile, before the hub began, and beyond what it keeps in memory.
func TestStreamGoesOnWhereItWas(t *testing.T) {
	db := open(t)
	team := nacre.NewTeamID()
	s := insert(t, db, team)
	write(t, db, s, 700)
	h := New(Config{Log: db, Signal: db})
	run(t, h.Run)
	write(t, db, insert(t, db, nacre.NewTeamID()), 5) // not ours
	var last int64
	for i, n := range []int{1, 2, 3, 600, 50} {
		if i == 3 {
			write(t, db, s, 900)
		}
		for _, e := range take(t, h, team, s.ID, last, n) {
			if e.Seq <= last || e.SandboxID != s.ID || e.TeamID != team {
				t.Fatalf("event %+v after %d", e, last)
			}
			last = e.Seq
		}
	}
	rest := take(t, h, team, "", last, 702+900-656)
	want, err := db.LastEvent(t.Context())
	if err != nil || rest[len(rest)-1].Seq != want {
		t.Errorf("the stream ended at %d, the log at %d (%v)", rest[len(rest)-1].Seq, want, err)
	}
}

// TestStreamIsWoken: a reader that waits is told of the next event at once, of other
// sandboxes' events never.
func TestStreamIsWoken(t *testing.T) {
	db := open(t)
	team := nacre.NewTeamID()
	s, other := insert(t, db, team), insert(t, db, team)
	h := New(Config{Log: db, Signal: db, Poll: time.Hour})
	run(t, h.Run)
	seen := make(chan nacre.Event)
	run(t, func(ctx context.Context) error {
		return h.Stream(ctx, team, s.ID, 0, func(e nacre.Event) error {
			select {
			case seen <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	next := func() nacre.Event {
		t.Helper()
		select {
		case e := <-seen:
			return e
		case <-time.After(30 * time.Second):
			t.Fatal("no event came")
			return nacre.Event{}
		}
	}
	for _, kind := range []nacre.EventKind{nacre.EventCreated, nacre.EventRunning} {
		if e := next(); e.Kind != kind {
			t.Errorf("%+v, want %s", e, kind)
		}
	}
	for i := range 20 {
		write(t, db, other, 1)
		write(t, db, s, 1)
		if e := next(); e.Kind != nacre.EventExecStarted || e.SandboxID != s.ID {
			t.Errorf("event %d is %+v", i, e)
		}
	}
}

// TestEventsOfOtherProcesses: what another process writes is found by asking.
func TestEventsOfOtherProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nacre.db")
	var dbs [2]*sqlstore.DB
	for i := range dbs {
		db, err := sqlstore.Open(t.Context(), path, sqlstore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		dbs[i] = db
	}
	team := nacre.NewTeamID()
	s := insert(t, dbs[1], team)
	h := New(Config{Log: dbs[0], Signal: dbs[0], Poll: 5 * time.Millisecond})
	run(t, h.Run)
	take(t, h, team, s.ID, 0, 2)
	last, err := h.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan []nacre.Event)
	go func() { done <- take(t, h, team, "", last, 3) }()
	write(t, dbs[1], s, 3)
	if got := <-done; got[2].Data["i"] != "2" {
		t.Errorf("%+v", got)
	}
}

// quietLog counts how often it is read.
type quietLog struct {
	mu     sync.Mutex
	events []nacre.Event
	reads  int
	next   chan struct{}
}

func (l *quietLog) Events(_ context.Context, f nacre.EventFilter) ([]nacre.Event, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	return slices.Clone(l.events[f.After:]), nil
}

func (l *quietLog) LastEvent(context.Context) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	return int64(len(l.events)), nil
}

func (l *quietLog) EventsWritten() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == nil {
		l.next = make(chan struct{})
	}
	return l.next
}

func (l *quietLog) write(team nacre.TeamID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, nacre.Event{Seq: int64(len(l.events)) + 1, TeamID: team})
	if l.next != nil {
		close(l.next)
		l.next = nil
	}
}

// TestNobodyReadsForNobody: while there is no stream the log is not read, and the next
// stream misses nothing of what was written meanwhile.
func TestNobodyReadsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, team := &quietLog{}, nacre.NewTeamID()
		h := New(Config{Log: log, Signal: log})
		run(t, h.Run)
		for round := range 3 {
			synctest.Wait()
			log.mu.Lock()
			before := log.reads
			log.mu.Unlock()
			for range 5 {
				log.write(team)
				time.Sleep(time.Minute)
			}
			log.mu.Lock()
			if n := log.reads - before; n != 0 {
				t.Errorf("round %d: the log was read %d times for nobody", round, n)
			}
			log.mu.Unlock()
			after := int64(round * 6)
			done := make(chan []nacre.Event)
			go func() { done <- take(t, h, team, "", after, 6) }()
			synctest.Wait() // it has seen five, and waits
			log.write(team)
			for i, e := range <-done {
				if e.Seq != after+int64(i)+1 {
					t.Errorf("round %d: event %d after %d", round, e.Seq, after)
				}
			}
			time.Sleep(2 * h.Poll) // a look was under way
		}
	})
}

// TestThousandStreams: a thousand readers of one sandbox cost a few kilobytes each
// and all see everything.
func TestThousandStreams(t *testing.T) {
	const readers, events = 1000, 50
	db := open(t)
	team := nacre.NewTeamID()
	s := insert(t, db, team)
	h := New(Config{Log: db, Signal: db})
	run(t, h.Run)
	take(t, h, team, s.ID, 0, 2)
	last, err := h.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() { take(t, h, team, s.ID, last, events) })
	}
	for range events {
		write(t, db, s, 1)
	}
	during := heap()
	wg.Wait()
	after := heap()
	if grown := int64(during) - int64(before); grown > readers*16<<10 {
		t.Errorf("%d readers hold %d bytes", readers, grown)
	}
	if grown := int64(after) - int64(before); grown > 4<<20 {
		t.Errorf("%d bytes are left after them", grown)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// TestRecorder: activity is in the log soon, at its end all of it, and a sandbox that
// does much takes nothing from another.
func TestRecorder(t *testing.T) {
	db := open(t)
	team := nacre.NewTeamID()
	busy, quiet := insert(t, db, team), insert(t, db, team)
	now := time.Unix(1_800_000_000, 0)
	r := NewRecorder(db, func() time.Time { return now }, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	for range 500 {
		r.Record(nacre.Event{TeamID: team, SandboxID: busy.ID, Kind: nacre.EventExecStarted})
	}
	r.Record(nacre.Event{TeamID: team, SandboxID: quiet.ID, Kind: nacre.EventFileChanged})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for id, want := range map[nacre.SandboxID]int{busy.ID: 20, quiet.ID: 1} {
		got, err := db.Events(t.Context(), nacre.EventFilter{TeamID: team, SandboxID: id, Kinds: nacre.ActivityEvents})
		if err != nil || len(got) != want {
			t.Errorf("%d events, want %d: %v", len(got), want, err)
		}
	}
}
