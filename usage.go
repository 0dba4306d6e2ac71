package nacre

import (
	"context"
	"time"
)

// UsageSpan is one stretch of a sandbox's life that counts: it ran with these
// resources, or was paused and kept its disk. A sandbox has at most one open span.
// Times are whole milliseconds.
type UsageSpan struct {
	TeamID  TeamID
	Sandbox SandboxID
	Seq     int64 // of the event that began it; unique
	Kind    UsageKind
	Start   time.Time
	End     time.Time // zero while it goes on; never before Start

	Resources Resources
	Labels    map[string]string // by which usage is grouped
}

// UsageKind says what a span costs.
type UsageKind string

const (
	UsageRunning UsageKind = "running" // processors and memory
	UsagePaused  UsageKind = "paused"  // disk
)

// UsageMark is how far the events have been folded into spans, and what the clocks
// showed then: from the difference of the two a step of the wall clock is told.
type UsageMark struct {
	Seq    int64
	Wall   time.Time
	Steady time.Duration // a clock that nobody sets, within Boot
	Boot   string
}

// UsageSum is what the spans of one group amount to within a period, exactly.
type UsageSum struct {
	Group     string // the label's value, or the sandbox's id
	Sandboxes int    // one whose label changed counts in both groups
	Runs      int    // spans of UsageRunning
	Running   time.Duration
	Paused    time.Duration
	VCPUMs    int64 // processors x milliseconds, while running
	MemoryMs  int64 // MiB x milliseconds, while running
	DiskMs    int64 // MiB x milliseconds, while paused

	Cents float64 // what it costs; a UsageStore leaves it 0
}

// Add adds what v counts; Group stays.
func (u *UsageSum) Add(v UsageSum) {
	u.Sandboxes += v.Sandboxes
	u.Runs += v.Runs
	u.Running += v.Running
	u.Paused += v.Paused
	u.VCPUMs += v.VCPUMs
	u.MemoryMs += v.MemoryMs
	u.DiskMs += v.DiskMs
	u.Cents += v.Cents
}

// UsageFilter selects a team's spans and cuts them to [From, To). A zero To does not:
// after a step of the clock there are spans that ended in the future.
type UsageFilter struct {
	TeamID   TeamID
	Sandbox  SandboxID
	Labels   map[string]string // all must match
	From, To time.Time
	Now      time.Time // the end of what goes on; must be set
}

// UsageStore keeps spans. Errors and concurrency as in SandboxStore.
type UsageStore interface {
	// UsageMark returns the zero mark before the first fold.
	UsageMark(ctx context.Context) (UsageMark, error)
	// OpenUsage returns the open spans of these sandboxes, of all when ids is nil.
	OpenUsage(ctx context.Context, ids []SandboxID) ([]UsageSpan, error)
	// FoldUsage writes the spans, each over one of the same Seq, and moves the mark, in
	// one transaction. Unless the mark is still from it is CodeConflict and nothing is
	// written: somebody else folded. What EventCreated tells between the two marks is
	// counted for TemplateStore.TemplateUse with it.
	FoldUsage(ctx context.Context, from, to UsageMark, spans []UsageSpan) error
	// SumUsage sums the spans that the filter selects, grouped by a label; by sandbox
	// when group is "". Spans without the label are group "".
	SumUsage(ctx context.Context, f UsageFilter, group string) ([]UsageSum, error)
	// UsageSpans lists spans, newest first, at most limit, cut to the period.
	UsageSpans(ctx context.Context, f UsageFilter, limit int) ([]UsageSpan, error)
	// PurgeUsage forgets spans that ended before the time, at most limit of them.
	PurgeUsage(ctx context.Context, endedBefore time.Time, limit int) (int, error)
}
