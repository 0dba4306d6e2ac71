package event

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// How much of what is done in sandboxes is recorded. Nothing is billed or decided by
// it, so what is beyond is dropped.
const (
	flushEvery = 50 * time.Millisecond
	flushTime  = 5 * time.Second
	maxWaiting = 4096 // events in memory
	maxPerSec  = 20   // of one sandbox
	atOnce     = 500  // in one transaction
	trimEvery  = time.Minute
	keepFor    = 24 * time.Hour
)

// Recorder writes activity into the log, some at a time.
type Recorder struct {
	to    nacre.EventWriter
	clock nacre.Clock
	log   *slog.Logger

	mu      sync.Mutex
	waiting []nacre.Event
	second  int64 // that counts are of
	counts  map[nacre.SandboxID]int
	wake    chan struct{}
}

// NewRecorder returns a recorder that Run empties.
func NewRecorder(to nacre.EventWriter, clock nacre.Clock, log *slog.Logger) *Recorder {
	if clock == nil {
		clock = time.Now
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Recorder{to: to, clock: clock, log: log, counts: map[nacre.SandboxID]int{}, wake: make(chan struct{}, 1)}
}

// Record takes an event and returns at once. Of one sandbox it takes twenty a second,
// those that were first; a crash loses what was recorded in the last moments.
func (r *Recorder) Record(e nacre.Event) {
	if e.Time.IsZero() {
		e.Time = r.clock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.clock().Unix(); now != r.second {
		r.second = now
		clear(r.counts)
	}
	if r.counts[e.SandboxID] >= maxPerSec || len(r.waiting) >= maxWaiting {
		return
	}
	r.counts[e.SandboxID]++
	r.waiting = append(r.waiting, e)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run writes what is recorded until ctx ends, and then the rest.
func (r *Recorder) Run(ctx context.Context) error {
	trim := time.NewTicker(trimEvery)
	defer trim.Stop()
	for {
		select {
		case <-ctx.Done():
			r.flush(ctx)
			return ctx.Err()
		case <-trim.C:
			r.trim(ctx)
		case <-r.wake:
			r.flush(ctx)
			pause := time.NewTimer(flushEvery)
			select {
			case <-ctx.Done():
				pause.Stop()
			case <-pause.C:
			}
		}
	}
}

// flush writes what waits, also when ctx has ended.
func (r *Recorder) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	for {
		r.mu.Lock()
		n := min(len(r.waiting), atOnce)
		batch := r.waiting[:n:n]
		r.waiting = r.waiting[n:]
		r.mu.Unlock()
		if n == 0 {
			return
		}
		if err := r.to.AppendEvents(ctx, batch); err != nil {
			r.log.Warn("what was done in sandboxes could not be recorded; it is dropped", "events", n, "err", err)
		}
	}
}

func (r *Recorder) trim(ctx context.Context) {
	if _, err := r.to.TrimEvents(ctx, r.clock().Add(-keepFor), 10000); err != nil && ctx.Err() == nil {
		r.log.Warn("old activity could not be trimmed; it is tried again", "err", err)
	}
}
