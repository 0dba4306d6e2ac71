// Package event gives the event log to readers who stay: one tail of the log feeds
// any number of streams, each of which goes on from the last event that its reader
// saw. It also writes what is done in sandboxes into the log, behind the deed.
package event

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// Config is what a hub needs. Log and Signal are required.
type Config struct {
	Log    nacre.EventLog
	Signal nacre.EventSignal
	Poll   time.Duration // for events of other processes; 0 means a second
	Logger *slog.Logger  // nil means none
}

// Hub follows the log and wakes the streams that an event concerns.
type Hub struct {
	Config

	mu     sync.Mutex
	ready  bool
	head   int64         // everything up to here was seen
	floor  int64         // recent holds everything after this, up to head
	recent []nacre.Event // oldest first
	wakers map[topic]chan struct{}

	streams int
	begun   chan struct{} // holds one when there are streams again
}

// topic is whose events somebody waits for: a sandbox's, or a team's.
type topic struct {
	team    nacre.TeamID
	sandbox nacre.SandboxID
}

const (
	maxRecent = 4096 // events in memory
	page      = 500  // events read at once
	heldBack  = 20 * time.Millisecond
)

// New returns a hub that Run feeds.
func New(c Config) *Hub {
	if c.Poll <= 0 {
		c.Poll = time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Hub{Config: c, wakers: map[topic]chan struct{}{}, begun: make(chan struct{}, 1)}
}

// Run follows the log until ctx ends, while there are streams: what is written when
// nobody waits for it, as a create's events mostly are, is read by nobody. Streams
// stand still while nobody runs it.
func (h *Hub) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if h.rest() {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-h.begun:
			}
			continue
		}
		written := h.Signal.EventsWritten() // before the look, so that nothing falls between
		n, err := h.look(ctx)
		if err != nil && ctx.Err() == nil {
			h.Logger.Warn("the event log cannot be read; it is tried again", "err", err)
		}
		if n == page {
			continue
		}
		timer.Reset(h.Poll)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-written:
			if n, err := h.look(ctx); n == 0 && err == nil {
				// The store holds it back for a moment.
				timer.Reset(heldBack)
				select {
				case <-timer.C:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
	}
}

// rest tells whether there are no streams. What is known of the log is forgotten then:
// it is out of date when there is one again.
func (h *Hub) rest() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams > 0 {
		return false
	}
	h.ready, h.recent = false, nil
	clear(h.wakers)
	return true
}

// join counts a stream in until leave is called.
func (h *Hub) join() (leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.streams++
	select {
	case h.begun <- struct{}{}:
	default:
	}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.streams--
	}
}

// look reads what is new and wakes whom it concerns.
func (h *Hub) look(ctx context.Context) (int, error) {
	h.mu.Lock()
	ready, head := h.ready, h.head
	h.mu.Unlock()
	if !ready {
		last, err := h.Signal.LastEvent(ctx)
		if err != nil {
			return 0, err
		}
		h.mu.Lock()
		h.ready, h.head, h.floor = true, last, last
		for _, ch := range h.wakers {
			close(ch)
		}
		clear(h.wakers)
		h.mu.Unlock()
		head = last
	}
	events, err := h.Log.Events(ctx, nacre.EventFilter{AllTeams: true, After: head, Limit: page})
	if err != nil || len(events) == 0 {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.head = events[len(events)-1].Seq
	h.recent = append(h.recent, events...)
	if extra := len(h.recent) - maxRecent; extra > 0 {
		h.floor = h.recent[extra-1].Seq
		h.recent = slices.Clone(h.recent[extra:])
	}
	for _, e := range events {
		for _, t := range []topic{{e.TeamID, ""}, {e.TeamID, e.SandboxID}} {
			if ch, ok := h.wakers[t]; ok {
				close(ch)
				delete(h.wakers, t)
			}
		}
	}
	return len(events), nil
}

// Stream calls fn with the events of a team, or of one of its sandboxes, that follow
// after, in their order, until ctx ends or fn returns an error, which it returns. A
// slow fn costs nobody but its own reader.
func (h *Hub) Stream(ctx context.Context, team nacre.TeamID, sandbox nacre.SandboxID, after int64, fn func(nacre.Event) error) error {
	if team == "" {
		return nacre.Errorf(nacre.CodeNotFound, "events are a team's")
	}
	defer h.join()()
	for {
		events, next, wake, err := h.next(ctx, topic{team, sandbox}, after)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := fn(e); err != nil {
				return err
			}
		}
		after = next
		if wake == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		}
	}
}

// Last returns where a stream of what is to come begins.
func (h *Hub) Last(ctx context.Context) (int64, error) { return h.Signal.LastEvent(ctx) }

// next returns the events of a topic after one, and after which to go on. wake is nil
// when there may be more at once.
func (h *Hub) next(ctx context.Context, t topic, after int64) (events []nacre.Event, next int64, wake <-chan struct{}, err error) {
	h.mu.Lock()
	head, floor, ready := h.head, h.floor, h.ready
	if ready && after >= floor {
		for _, e := range h.recent {
			if e.Seq > after && e.TeamID == t.team && (t.sandbox == "" || e.SandboxID == t.sandbox) {
				events = append(events, e)
			}
		}
	}
	wake = h.waker(t)
	h.mu.Unlock()
	if ready && after >= floor {
		return events, max(after, head), wake, nil
	}
	events, err = h.Log.Events(ctx, nacre.EventFilter{TeamID: t.team, SandboxID: t.sandbox, After: after, Limit: page})
	if err != nil {
		return nil, after, nil, err
	}
	if len(events) == page {
		return events, events[page-1].Seq, nil, nil
	}
	if next = after; len(events) > 0 {
		next = events[len(events)-1].Seq
	}
	return events, max(next, head), wake, nil // the log showed head before it was asked
}

// waker returns the channel that is closed at the topic's next event; h.mu is held.
func (h *Hub) waker(t topic) <-chan struct{} {
	ch, ok := h.wakers[t]
	if !ok {
		ch = make(chan struct{})
		h.wakers[t] = ch
	}
	return ch
}
