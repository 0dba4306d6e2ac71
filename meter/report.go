package meter

import (
	"context"
	"time"

	"github.com/nacrehq/nacre"
)

// Prices are cents for a second of one unit; zero costs nothing.
type Prices struct {
	VCPU   float64 // of a virtual processor, while running
	Memory float64 // of a GiB of memory, while running
	Disk   float64 // of a GiB of disk, while paused
}

// Cents is what a sum costs.
func (p Prices) Cents(u nacre.UsageSum) float64 {
	const perGiB = 1000 * 1024 // MiB-milliseconds in a GiB-second
	return p.VCPU*float64(u.VCPUMs)/1000 + p.Memory*float64(u.MemoryMs)/perGiB + p.Disk*float64(u.DiskMs)/perGiB
}

// Cost is a sum with its price.
type Cost struct {
	nacre.UsageSum
	Cents float64
}

// Period is a stretch of time; a zero To is open.
type Period struct{ From, To time.Time }

func (m *Meter) filter(team nacre.TeamID, p Period) nacre.UsageFilter {
	return nacre.UsageFilter{TeamID: team, From: p.From, To: p.To, Now: m.Clock().UTC()}
}

// fresh folds what is new, so that an answer is of this moment. One that fails
// answers from what was folded before.
func (m *Meter) fresh(ctx context.Context) {
	if err := m.CatchUp(ctx); err != nil && ctx.Err() == nil {
		m.log.Warn("usage is answered as it was folded last", "err", err)
	}
}

// Sandbox returns what one sandbox used, in all.
func (m *Meter) Sandbox(ctx context.Context, team nacre.TeamID, id nacre.SandboxID) (Cost, error) {
	m.fresh(ctx)
	f := m.filter(team, Period{})
	f.Sandbox = id
	sums, err := m.Usage.SumUsage(ctx, f, "")
	if err != nil || len(sums) == 0 {
		return Cost{UsageSum: nacre.UsageSum{Group: string(id)}}, err
	}
	return m.price(sums)[0], nil
}

// Report returns what a team used in a period, grouped by a label, of those with
// the labels given. group "" is by sandbox.
func (m *Meter) Report(ctx context.Context, team nacre.TeamID, p Period, labels map[string]string, group string) ([]Cost, error) {
	m.fresh(ctx)
	f := m.filter(team, p)
	f.Labels = labels
	sums, err := m.Usage.SumUsage(ctx, f, group)
	return m.price(sums), err
}

// Spans lists a team's runs and pauses, newest first; one sandbox's if it is given.
func (m *Meter) Spans(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, p Period, limit int) ([]nacre.UsageSpan, error) {
	m.fresh(ctx)
	f := m.filter(team, p)
	f.Sandbox = id
	return m.Usage.UsageSpans(ctx, f, limit)
}

// Total sums a report.
func Total(costs []Cost) (t Cost) {
	for _, c := range costs {
		t.Sandboxes += c.Sandboxes
		t.Runs += c.Runs
		t.Running += c.Running
		t.Paused += c.Paused
		t.VCPUMs += c.VCPUMs
		t.MemoryMs += c.MemoryMs
		t.DiskMs += c.DiskMs
		t.Cents += c.Cents
	}
	return t
}

// Balance is what a team was given, has spent, and has left, in cents.
func (m *Meter) Balance(ctx context.Context, team nacre.TeamID) (given, spent, left float64, err error) {
	costs, err := m.Report(ctx, team, Period{}, nil, "")
	spent = Total(costs).Cents
	return m.Credits, spent, m.Credits - spent, err
}

func (m *Meter) price(sums []nacre.UsageSum) []Cost {
	out := make([]Cost, len(sums))
	for i, u := range sums {
		out[i] = Cost{UsageSum: u, Cents: m.Prices.Cents(u)}
	}
	return out
}
