package meter

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/sqlstore"
	"pgregory.net/rapid"
)

// memory is a nacre.UsageStore, an EventLog and Records in memory.
type memory struct {
	mu      sync.Mutex
	mark    nacre.UsageMark
	spans   map[int64]nacre.UsageSpan
	events  []nacre.Event
	records map[nacre.SandboxID]nacre.Sandbox
	fail    string // of the next fold: "before" or "after" the commit
}

func newMemory() *memory {
	return &memory{spans: map[int64]nacre.UsageSpan{}, records: map[nacre.SandboxID]nacre.Sandbox{}}
}

func (m *memory) UsageMark(context.Context) (nacre.UsageMark, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mark, nil
}

func (m *memory) OpenUsage(_ context.Context, ids []nacre.SandboxID) (out []nacre.UsageSpan, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.spans {
		if s.End.IsZero() && (ids == nil || slices.Contains(ids, s.Sandbox)) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b nacre.UsageSpan) int { return cmp.Compare(a.Seq, b.Seq) })
	return out, nil
}

var errBroken = errors.New("the store broke down")

func (m *memory) FoldUsage(_ context.Context, from, to nacre.UsageMark, spans []nacre.UsageSpan) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	fail := m.fail
	m.fail = ""
	if fail == "before" {
		return errBroken
	}
	if m.mark != from {
		return nacre.Errorf(nacre.CodeConflict, "folded by another")
	}
	m.mark = to
	for _, s := range spans {
		m.spans[s.Seq] = s
	}
	if fail == "after" {
		return errBroken
	}
	return nil
}

func (m *memory) select_(f nacre.UsageFilter) (out []nacre.UsageSpan) {
	for _, s := range m.spans {
		match := f.TeamID == s.TeamID && (f.Sandbox == "" || f.Sandbox == s.Sandbox) && (f.To.IsZero() || s.Start.Before(f.To)) &&
			(s.End.IsZero() || s.End.After(f.From)) && !f.Now.IsZero()
		for k, v := range f.Labels {
			match = match && s.Labels[k] == v
		}
		if !match {
			continue
		}
		if s.Start.Before(f.From) {
			s.Start = f.From
		}
		if !f.To.IsZero() && s.End.After(f.To) {
			s.End = f.To
		}
		out = append(out, s)
	}
	return out
}

func (m *memory) SumUsage(_ context.Context, f nacre.UsageFilter, group string) ([]nacre.UsageSum, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sums, seen := map[string]nacre.UsageSum{}, map[string]bool{}
	for _, s := range m.select_(f) {
		key := string(s.Sandbox)
		if group != "" {
			key = s.Labels[group]
		}
		end := s.End
		if end.IsZero() {
			if end = f.Now; !f.To.IsZero() && f.To.Before(end) {
				end = f.To
			}
		}
		d, u := max(0, end.Sub(s.Start)), sums[key]
		u.Group = key
		if id := key + string(s.Sandbox); !seen[id] {
			seen[id] = true
			u.Sandboxes++
		}
		if s.Kind == nacre.UsageRunning {
			u.Runs, u.Running = u.Runs+1, u.Running+d
			u.VCPUMs += int64(s.Resources.CPUs) * d.Milliseconds()
			u.MemoryMs += int64(s.Resources.MemoryMiB) * d.Milliseconds()
		} else {
			u.Paused += d
			u.DiskMs += int64(s.Resources.DiskMiB) * d.Milliseconds()
		}
		sums[key] = u
	}
	out := slices.Collect(maps.Values(sums))
	slices.SortFunc(out, func(a, b nacre.UsageSum) int { return cmp.Compare(a.Group, b.Group) })
	return out, nil
}

func (m *memory) UsageSpans(_ context.Context, f nacre.UsageFilter, limit int) ([]nacre.UsageSpan, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.select_(f)
	slices.SortFunc(out, func(a, b nacre.UsageSpan) int { return cmp.Or(b.Start.Compare(a.Start), cmp.Compare(b.Seq, a.Seq)) })
	return out[:min(limit, len(out))], nil
}

func (m *memory) PurgeUsage(_ context.Context, before time.Time, _ int) (n int, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for seq, s := range m.spans {
		if !s.End.IsZero() && s.End.Before(before) {
			delete(m.spans, seq)
			n++
		}
	}
	return n, nil
}

func (m *memory) Events(_ context.Context, f nacre.EventFilter) (out []nacre.Event, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.events {
		if e.Seq > f.After && len(out) < f.Limit {
			out = append(out, e)
		}
	}
	return out, nil
}

func (m *memory) Get(_ context.Context, _ nacre.TeamID, id nacre.SandboxID) (nacre.Sandbox, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.records[id]
	if !ok {
		return s, nacre.Errorf(nacre.CodeNotFound, "no such sandbox")
	}
	return s, nil
}

// TestMemoryKeepsTheContract: what the properties are tried on is as a store is.
func TestMemoryKeepsTheContract(t *testing.T) {
	nacretest.TestUsageStore(t, func(*testing.T) nacre.UsageStore { return newMemory() })
}

var epoch = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// box is what is true of a sandbox: what it used by a clock that nobody sets.
type box struct {
	nacre.Sandbox
	phase   nacre.UsageKind // "" while neither
	since   time.Duration
	running time.Duration
	paused  time.Duration
}

// world has sandboxes, a wall clock that may be set, and a meter that may die.
type world struct {
	store  *memory
	meter  *Meter
	team   nacre.TeamID
	boxes  []*box
	steady time.Duration
	offset time.Duration // what the wall clock shows beyond steady
	looked time.Duration // when the meter last saw events and clocks
	moved  bool          // the clock was set since
}

func newWorld() *world {
	w := &world{store: newMemory(), team: nacre.NewTeamID()}
	w.start()
	return w
}

func (w *world) now() time.Time { return epoch.Add(w.steady + w.offset) }

// start makes a new meter, as after a crash, which catches up before anything else.
func (w *world) start() {
	w.meter = New(Config{Events: w.store, Usage: w.store, Records: w.store, Labels: []string{"ws"}, Clock: w.now,
		Steady: func() (time.Duration, string) { return w.steady, "boot" }})
	w.meter.page = 3
	for w.meter.CatchUp(context.Background()) != nil {
	}
	w.looked, w.moved = w.steady, false
}

func (w *world) event(b *box, kind nacre.EventKind) {
	w.store.events = append(w.store.events, nacre.Event{Seq: int64(len(w.store.events) + 1), Time: w.now(), TeamID: w.team, SandboxID: b.ID, Kind: kind})
}

// enter ends what b was doing and begins another.
func (w *world) enter(b *box, phase nacre.UsageKind, kind nacre.EventKind) {
	b.settle(w.steady)
	b.phase = phase
	w.event(b, kind)
}

func (b *box) settle(now time.Duration) {
	switch b.phase {
	case nacre.UsageRunning:
		b.running += now - b.since
	case nacre.UsagePaused:
		b.paused += now - b.since
	}
	b.since = now
}

func (w *world) check(t *rapid.T) {
	if err := w.meter.CatchUp(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, b := range w.boxes {
		b.settle(w.steady)
		got, err := used(w.meter, w.team, b.ID)
		if err != nil {
			t.Fatal(err)
		}
		r := b.Resources
		if got.Running != b.running || got.Paused != b.paused || got.VCPUMs != int64(r.CPUs)*b.running.Milliseconds() ||
			got.MemoryMs != int64(r.MemoryMiB)*b.running.Milliseconds() || got.DiskMs != int64(r.DiskMiB)*b.paused.Milliseconds() {
			t.Fatalf("sandbox %s ran %v and was paused %v; counted: %+v", b.ID, b.running, b.paused, got)
		}
	}
	w.looked, w.moved = w.steady, false
}

// TestUsageEqualsAModel: whatever happens to sandboxes, to the meter and to the
// clock, each millisecond of running and of pausing is counted once.
func TestUsageEqualsAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		pick := func(phases ...nacre.UsageKind) *box {
			var fit []*box
			for _, b := range w.boxes {
				if slices.Contains(phases, b.phase) && b.State != nacre.StateEnded {
					fit = append(fit, b)
				}
			}
			if len(fit) == 0 {
				t.Skip("there is no such sandbox")
			}
			return rapid.SampledFrom(fit).Draw(t, "box")
		}
		ms := func(lo, hi int, what string) time.Duration {
			return time.Duration(rapid.IntRange(lo, hi).Draw(t, what)) * time.Millisecond
		}
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				b := &box{Sandbox: nacre.Sandbox{ID: nacre.NewSandboxID(), Metadata: map[string]string{"ws": "1"}, Resources: nacre.Resources{
					CPUs: rapid.IntRange(1, 8).Draw(t, "cpus"), MemoryMiB: rapid.IntRange(1, 8192).Draw(t, "mem"), DiskMiB: rapid.IntRange(1, 10240).Draw(t, "disk")}}}
				w.boxes = append(w.boxes, b)
				w.store.records[b.ID] = b.Sandbox
				w.event(b, nacre.EventCreated)
			},
			"run":    func(*rapid.T) { w.enter(pick(""), nacre.UsageRunning, nacre.EventRunning) },
			"pause":  func(*rapid.T) { w.enter(pick(nacre.UsageRunning), nacre.UsagePaused, nacre.EventPaused) },
			"resume": func(*rapid.T) { w.enter(pick(nacre.UsagePaused), nacre.UsageRunning, nacre.EventResumed) },
			"restore": func(*rapid.T) {
				w.enter(pick(nacre.UsagePaused, nacre.UsageRunning), nacre.UsageRunning, nacre.EventRestored)
			},
			"end": func(*rapid.T) {
				b := pick("", nacre.UsageRunning, nacre.UsagePaused)
				b.State = nacre.StateEnded
				w.enter(b, "", nacre.EventEnded)
			},
			"use":  func(*rapid.T) { w.event(pick(nacre.UsageRunning), nacre.EventExecStarted) },
			"wait": func(t *rapid.T) { w.wait(ms(0, 100000, "ms")) },
			"set the clock": func(t *rapid.T) {
				if w.moved {
					t.Skip("once between two looks")
				}
				w.moved = true
				w.offset += ms(3600_000, 9*3600_000, "step") * time.Duration(rapid.SampledFrom([]int{1, -1}).Draw(t, "way"))
			},
			"fold": func(t *rapid.T) {
				w.store.fail = rapid.SampledFrom([]string{"", "", "before", "after"}).Draw(t, "failure")
				if w.meter.CatchUp(context.Background()) == nil {
					w.looked, w.moved = w.steady, false
				}
				w.store.fail = ""
			},
			"crash": func(t *rapid.T) {
				w.meter = nil
				w.start() // what was written before the crash is seen with the clock of before
				w.steady += ms(0, 1000000, "down")
				if rapid.Bool().Draw(t, "set meanwhile") {
					w.offset += ms(1000, 9*3600_000, "step")
				}
				w.start()
			},
			"look up": w.check,
		})
		w.check(t)
	})
}

// wait lets time pass. The meter looks each second; here it may be late by half an hour.
func (w *world) wait(d time.Duration) {
	w.steady += d
	if w.steady-w.looked > 30*time.Minute {
		for w.meter.CatchUp(context.Background()) != nil {
		}
		w.looked, w.moved = w.steady, false
	}
}

// TestFoldedOnce: many meters over one SQLite store, each at any time, count as one.
func TestFoldedOnce(t *testing.T) {
	db, err := sqlstore.Open(t.Context(), filepath.Join(t.TempDir(), "nacre.db"), sqlstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range 4 {
		m := New(Config{Events: db, Signal: db, Usage: db, Records: db})
		wg.Go(func() { _ = m.Run(ctx) })
	}
	team := nacre.NewTeamID()
	want := map[nacre.SandboxID]time.Duration{}
	for i := range 40 {
		s := nacretest.SampleSandbox(team, nacre.StateRunning)
		ran := time.Duration(i) * time.Second
		err := db.Insert(t.Context(), s, nacre.Event{Kind: nacre.EventCreated, Time: epoch}, nacre.Event{Kind: nacre.EventRunning, Time: epoch.Add(time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = db.Update(t.Context(), team, s.ID, func(s *nacre.Sandbox) ([]nacre.Event, error) {
			return []nacre.Event{{Kind: nacre.EventEnded, Time: epoch.Add(time.Minute + ran)}}, s.Move(nacre.StateEnded)
		})
		if err != nil {
			t.Fatal(err)
		}
		want[s.ID] = ran
	}
	cancel()
	wg.Wait()
	m := New(Config{Events: db, Usage: db, Records: db, Prices: Prices{VCPU: 1, Memory: 2}})
	for id, ran := range want {
		got, err := used(m, team, id)
		if err != nil {
			t.Fatal(err)
		}
		if got.Running != ran || got.VCPUMs != 2*ran.Milliseconds() || got.Cents != 2*ran.Seconds()+2*ran.Seconds()/2 {
			t.Errorf("%s ran %v; counted %+v", id, ran, got)
		}
	}
}

// signalled is a memory that tells of its events and counts its folds.
type signalled struct {
	*memory
	written chan struct{}
	folds   []time.Time
}

func (s *signalled) EventsWritten() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written
}

func (s *signalled) LastEvent(context.Context) (int64, error) { return 0, nil }

func (s *signalled) FoldUsage(ctx context.Context, from, to nacre.UsageMark, spans []nacre.UsageSpan) error {
	s.mu.Lock()
	s.folds = append(s.folds, time.Now())
	s.mu.Unlock()
	return s.memory.FoldUsage(ctx, from, to, spans)
}

// counted returns when folds were written, and how many spans there are.
func (s *signalled) counted() (folds []time.Time, spans int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.folds), len(s.spans)
}

// begin writes that a sandbox runs.
func (s *signalled) begin() {
	rec := nacretest.SampleSandbox(nacre.NewTeamID(), nacre.StateRunning)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[rec.ID] = rec
	s.events = append(s.events, nacre.Event{Seq: int64(len(s.events) + 1), TeamID: rec.TeamID, SandboxID: rec.ID, Kind: nacre.EventRunning, Time: time.Now()})
	close(s.written)
	s.written = make(chan struct{})
}

// TestAFoldLeavesTheFirstCommandAlone: what begins is counted a moment later, a burst
// at once, and a report has what was written just before it.
func TestAFoldLeavesTheFirstCommandAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &signalled{memory: newMemory(), written: make(chan struct{})}
		m := New(Config{Events: s, Signal: s, Usage: s, Records: s, Poll: time.Hour,
			Steady: func() (time.Duration, string) { return time.Second, "boot" }})
		ended := make(chan struct{})
		go func() { defer close(ended); _ = m.Run(ctx) }()
		synctest.Wait()
		s.mu.Lock()
		s.folds = nil // the first look, which notes the host's start
		s.mu.Unlock()
		begin := time.Now()
		for range 10 {
			s.begin()
			time.Sleep(10 * time.Millisecond)
		}
		synctest.Wait()
		if folds, _ := s.counted(); len(folds) > 0 {
			t.Errorf("folded %s after a sandbox began", folds[0].Sub(begin))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if folds, spans := s.counted(); len(folds) != 1 || spans != 10 {
			t.Errorf("%d folds of %d spans", len(folds), spans)
		}
		s.begin()
		if _, err := m.Report(ctx, nacre.UsageFilter{TeamID: s.events[10].TeamID}, ""); err != nil {
			t.Fatal(err)
		}
		if _, spans := s.counted(); spans != 11 {
			t.Errorf("a report knows of %d sandboxes", spans)
		}
		cancel()
		<-ended
	})
}

// TestPriceOfAnHour: two processors and two GiB for an hour, then a day's pause with 3 GiB.
func TestPriceOfAnHour(t *testing.T) {
	p := Prices{VCPU: 0.0014, Memory: 0.00045, Disk: 0.000003}
	u := nacre.UsageSum{VCPUMs: 2 * 3600_000, MemoryMs: 2048 * 3600_000, DiskMs: 3072 * 86400_000}
	want := 0.0014*2*3600 + 0.00045*2*3600 + 0.000003*3*86400
	if got := p.Cents(u); got < want-1e-9 || got > want+1e-9 {
		t.Errorf("%v cents, want %v", got, want)
	}
	if got := (Prices{}).Cents(u); got != 0 {
		t.Errorf("without prices it costs %v", got)
	}
}

// used is what one sandbox used, in all.
func used(m *Meter, team nacre.TeamID, id nacre.SandboxID) (sum nacre.UsageSum, err error) {
	sums, err := m.Report(context.Background(), nacre.UsageFilter{TeamID: team, Sandbox: id}, "")
	for _, s := range sums {
		sum.Add(s)
	}
	return sum, err
}
