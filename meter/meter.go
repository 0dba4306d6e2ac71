// Package meter folds events into usage: what ran with which resources for how
// long, and what was paused. Each fold reads the events after the last one, and
// writes the spans that they begin and end together with how far it came, so that a
// crash at any moment neither loses nor doubles a millisecond.
//
// Time is that of the wall clock, but a step of it is no usage: the mark remembers
// what a clock that nobody sets showed as well, and when the two disagree the spans
// that go on are moved along.
package meter

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// Records reads sandboxes, for the resources and labels of what runs.
type Records interface {
	Get(ctx context.Context, team nacre.TeamID, id nacre.SandboxID) (nacre.Sandbox, error)
}

// Config is what a meter needs. Events, Usage and Records are required.
type Config struct {
	Events  nacre.EventLog
	Signal  nacre.EventSignal // nil: it only asks now and then
	Usage   nacre.UsageStore
	Records Records

	// Labels are the keys of metadata that usage can be grouped by.
	Labels []string
	Prices Prices
	// Credits is what every team was given, in cents.
	Credits   float64
	Retention time.Duration // how long spans are kept after they ended; 0 means 400 days

	Poll   time.Duration // between looks at events and clocks; 0 means a second
	Clock  nacre.Clock   // nil means time.Now
	Steady SteadyClock   // nil means the host's
	Logger *slog.Logger  // nil means none
}

// SteadyClock tells how long the host has been up and which time that is: boot names
// what the time is counted from. It counts on while the host sleeps, as sandboxes'
// deadlines do.
type SteadyClock func() (up time.Duration, boot string)

// Meter folds events and answers what was used. All methods may run at once.
type Meter struct {
	Config
	log *slog.Logger

	mu   sync.Mutex // held by a fold
	seen reading    // the clocks at the last look; zero before the first
	read int64      // events up to this Seq begin and end nothing
	page int
}

// New returns a meter. It answers at once; Run folds.
func New(c Config) *Meter {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Steady == nil {
		c.Steady = hostClock()
	}
	if c.Poll <= 0 {
		c.Poll = time.Second
	}
	if c.Retention <= 0 {
		c.Retention = 400 * 24 * time.Hour
	}
	m := &Meter{Config: c, log: c.Logger, page: atOnce}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	return m
}

const purgeEvery = time.Hour

// foldAfter is how long after an event it is folded: whoever was told that a sandbox
// runs gives it its first command now, and what several do within it is one write. A
// question is answered with all that is written.
const foldAfter = 250 * time.Millisecond

// Run folds what is written until ctx ends.
func (m *Meter) Run(ctx context.Context) error {
	tick := time.NewTicker(m.Poll)
	defer tick.Stop()
	purged := time.Now()
	for {
		var written <-chan struct{} // before the look, so that nothing falls between
		if m.Signal != nil {
			written = m.Signal.EventsWritten()
		}
		if err := m.CatchUp(ctx); err != nil && ctx.Err() == nil {
			m.log.Error("usage could not be folded; it is tried again", "err", err)
			written = nil
		}
		if time.Since(purged) > purgeEvery {
			purged = time.Now()
			if _, err := m.Usage.PurgeUsage(ctx, m.Clock().Add(-m.Retention), 10000); err != nil && ctx.Err() == nil {
				m.log.Error("old usage could not be purged; it is tried again", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-written:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(foldAfter):
			}
		case <-tick.C:
		}
	}
}

// CatchUp folds all that is written now. Run it once before records can be purged.
func (m *Meter) CatchUp(ctx context.Context) error {
	for {
		more, err := m.fold(ctx)
		if err != nil && !nacre.IsCode(err, nacre.CodeConflict) || err == nil && !more {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
