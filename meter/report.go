package meter

import (
	"context"

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

// fresh folds what is new, so that an answer is of this moment. One that fails
// answers from what was folded before.
func (m *Meter) fresh(ctx context.Context) {
	if err := m.CatchUp(ctx); err != nil && ctx.Err() == nil {
		m.log.Warn("usage is answered as it was folded last", "err", err)
	}
}

// Report returns what the spans of the filter amount to and cost, grouped by a label,
// or by sandbox when group is "". What goes on counts up to now, which the meter sets.
func (m *Meter) Report(ctx context.Context, f nacre.UsageFilter, group string) ([]nacre.UsageSum, error) {
	m.fresh(ctx)
	f.Now = m.Clock().UTC()
	sums, err := m.Usage.SumUsage(ctx, f, group)
	for i := range sums {
		sums[i].Cents = m.Prices.Cents(sums[i])
	}
	return sums, err
}

// Spans lists runs and pauses, newest first.
func (m *Meter) Spans(ctx context.Context, f nacre.UsageFilter, limit int) ([]nacre.UsageSpan, error) {
	m.fresh(ctx)
	f.Now = m.Clock().UTC()
	return m.Usage.UsageSpans(ctx, f, limit)
}

// Balance is what a team was given and what it has spent, in cents. Spans that were
// purged count no more.
func (m *Meter) Balance(ctx context.Context, team nacre.TeamID) (given, spent float64, err error) {
	sums, err := m.Report(ctx, nacre.UsageFilter{TeamID: team}, "")
	for _, u := range sums {
		spent += u.Cents
	}
	return m.Credits, spent, err
}
