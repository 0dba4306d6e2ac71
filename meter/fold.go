package meter

import (
	"context"
	"time"

	"github.com/nacrehq/nacre"
)

// atOnce is how many events one fold takes.
const atOnce = 500

// minStep is the least difference of the clocks that counts as a step. A clock that
// is slewed drifts by less between two looks.
const minStep = 500 * time.Millisecond

// reading is what the clocks showed at one moment.
type reading struct {
	wall   time.Time
	steady time.Duration
	boot   string
}

func (m *Meter) clocks() reading {
	up, boot := m.Steady()
	return reading{wall: m.Clock().UTC(), steady: up, boot: boot}
}

// stepSince tells how far the wall clock was set forward since the mark; 0 when it
// was not, and when the host was started since.
func (r reading) stepSince(mark nacre.UsageMark) time.Duration {
	if mark.Boot != r.boot || mark.Wall.IsZero() {
		return 0
	}
	step := r.wall.Sub(mark.Wall) - (r.steady - mark.Steady)
	if step.Abs() < minStep {
		return 0
	}
	return step
}

// fold takes the next events. more tells that there may be others.
func (m *Meter) fold(ctx context.Context) (more bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	mark, err := m.Usage.UsageMark(ctx)
	if err != nil {
		return false, err
	}
	m.read = max(m.read, mark.Seq)
	events, more, err := m.next(ctx, m.read)
	if err != nil {
		return false, err
	}
	now := m.clocks() // after the events: none is from later
	step := now.stepSince(mark)
	for more && step != 0 { // all that may be from before it belongs to this fold
		var rest []nacre.Event
		if rest, more, err = m.next(ctx, events[len(events)-1].Seq); err != nil {
			return false, err
		}
		events = append(events, rest...)
		now = m.clocks()
		step = now.stepSince(mark)
	}
	b := &batch{meter: m, open: map[nacre.SandboxID]nacre.UsageSpan{}, changed: map[int64]nacre.UsageSpan{}}
	if err := b.load(ctx, events, step); err != nil {
		return false, err
	}
	last := m.before(events, step, now, mark)
	for i, e := range events {
		if i < last {
			e.Time = e.Time.Add(step)
		}
		if err := b.add(ctx, e); err != nil {
			return false, err
		}
	}
	seq := m.read
	if n := len(events); n > 0 {
		seq = events[n-1].Seq
	}
	if len(b.changed) > 0 || step != 0 || mark.Boot != now.boot || more {
		to := nacre.UsageMark{Seq: seq, Wall: now.wall, Steady: now.steady, Boot: now.boot}
		if err := m.Usage.FoldUsage(ctx, mark, to, b.spans()); err != nil {
			m.read = 0
			return false, err
		}
	}
	m.read, m.seen = seq, now
	return more, nil
}

// next reads the events after seq.
func (m *Meter) next(ctx context.Context, seq int64) (events []nacre.Event, more bool, err error) {
	events, err = m.Events.Events(ctx, nacre.EventFilter{AllTeams: true, After: seq, Limit: m.page})
	return events, len(events) == m.page, err
}

// before returns how many of the events are from before a step of the clock.
//
// Events come in the order in which they were written, so a clock that was set back
// shows between two of them, or between the mark and the first. One that was set
// forward was set since the last look, d ago: what is from after it is no older than
// d. At the first look of a process the last one may be long ago, but nobody wrote
// while there was no process: events are from before unless the clock cannot have
// shown their time then.
func (m *Meter) before(events []nacre.Event, step time.Duration, now reading, mark nacre.UsageMark) int {
	if step == 0 {
		return 0
	}
	if step < 0 {
		last := mark.Wall
		for i, e := range events {
			if e.Time.Before(last.Add(step / 2)) {
				return i
			}
			last = e.Time
		}
	}
	since := now.wall.Add(-step + 1) // what the clock would show without the step
	if m.seen.boot == now.boot {
		since = now.wall.Add(-(now.steady - m.seen.steady)).Add(-time.Millisecond) // events are cut to milliseconds
	}
	for i := len(events); i > 0; i-- {
		if t := events[i-1].Time; t.Before(since) || t.After(now.wall) {
			return i
		}
	}
	return 0
}

// batch is the spans that one fold touches.
type batch struct {
	meter   *Meter
	open    map[nacre.SandboxID]nacre.UsageSpan
	changed map[int64]nacre.UsageSpan
}

// load reads the open spans of the events' sandboxes; of all when they must be moved.
func (b *batch) load(ctx context.Context, events []nacre.Event, step time.Duration) error {
	ids := make([]nacre.SandboxID, 0, len(events))
	seen := map[nacre.SandboxID]bool{}
	for _, e := range events {
		if counts(e.Kind) && !seen[e.SandboxID] {
			seen[e.SandboxID] = true
			ids = append(ids, e.SandboxID)
		}
	}
	if step == 0 && len(ids) == 0 {
		return nil
	}
	if step != 0 {
		ids = nil
	}
	spans, err := b.meter.Usage.OpenUsage(ctx, ids)
	if err != nil {
		return err
	}
	for _, s := range spans {
		if step != 0 {
			s.Start = s.Start.Add(step).Truncate(time.Millisecond)
			b.changed[s.Seq] = s
		}
		b.open[s.Sandbox] = s
	}
	return nil
}

func (b *batch) spans() []nacre.UsageSpan {
	out := make([]nacre.UsageSpan, 0, len(b.changed))
	for _, s := range b.changed {
		out = append(out, s)
	}
	return out
}

// counts tells whether events of this kind begin or end something.
func counts(k nacre.EventKind) bool {
	_, ok := begins(k)
	return ok || k == nacre.EventEnded
}

// begins tells what goes on after an event.
func begins(k nacre.EventKind) (nacre.UsageKind, bool) {
	switch k {
	case nacre.EventRunning, nacre.EventResumed, nacre.EventRestored:
		return nacre.UsageRunning, true
	case nacre.EventPaused:
		return nacre.UsagePaused, true
	}
	return "", false
}

// add carries one event out.
func (b *batch) add(ctx context.Context, e nacre.Event) error {
	if !counts(e.Kind) {
		return nil
	}
	at := e.Time.UTC().Truncate(time.Millisecond)
	now, isOpen := b.open[e.SandboxID]
	kind, begin := begins(e.Kind)
	if isOpen && begin && now.Kind == kind {
		return nil // it goes on as it was
	}
	next := nacre.UsageSpan{TeamID: e.TeamID, Sandbox: e.SandboxID, Seq: e.Seq, Kind: kind, Start: at, Resources: now.Resources, Labels: now.Labels}
	if begin {
		known, err := b.describe(ctx, &next)
		if err != nil {
			return err
		}
		begin = known || isOpen
	}
	if isOpen {
		now.End = at
		if now.End.Before(now.Start) {
			now.End = now.Start
		}
		b.changed[now.Seq] = now
		delete(b.open, e.SandboxID)
	}
	if begin {
		b.changed[next.Seq], b.open[e.SandboxID] = next, next
	}
	return nil
}

// describe fills a span in from its sandbox's record.
func (b *batch) describe(ctx context.Context, s *nacre.UsageSpan) (known bool, err error) {
	rec, err := b.meter.Records.Get(ctx, s.TeamID, s.Sandbox)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		b.meter.log.Error("usage of a sandbox without a record cannot be counted", "sandbox", s.Sandbox)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s.Resources = nacre.Resources{CPUs: rec.Resources.CPUs, MemoryMiB: rec.Resources.MemoryMiB, DiskMiB: rec.Resources.DiskMiB}
	s.Labels = map[string]string{}
	for _, key := range b.meter.Labels {
		if v, ok := rec.Metadata[key]; ok {
			s.Labels[key] = v
		}
	}
	return true, nil
}
