package nacre

import (
	"context"
	"time"
)

// Event is a fact about a sandbox, written in the same transaction as the
// change that it tells of.
type Event struct {
	Seq       int64 // given by the store; grows, may have gaps
	Time      time.Time
	TeamID    TeamID
	SandboxID SandboxID
	Kind      EventKind
	Data      map[string]string // never a secret
}

// EventKind names what happened.
type EventKind string

const (
	EventCreated  EventKind = "sandbox.created"
	EventRunning  EventKind = "sandbox.running"
	EventDeadline EventKind = "sandbox.deadline_changed"
	EventNetwork  EventKind = "sandbox.network_changed"
	EventPaused   EventKind = "sandbox.paused"
	EventResumed  EventKind = "sandbox.resumed"
	EventRestored EventKind = "sandbox.restored" // Data: snapshot
	EventEnded    EventKind = "sandbox.ended"    // Data: reason, detail

	EventSnapshotCreated EventKind = "snapshot.created" // Data: snapshot, kind, name
	EventSnapshotDeleted EventKind = "snapshot.deleted" // Data: snapshot

	// What is done in a sandbox, see EventWriter.
	EventExecStarted   EventKind = "exec.started"   // Data: exec, command
	EventExecCompleted EventKind = "exec.completed" // Data: exec, exit_code, duration_ms
	EventFileChanged   EventKind = "file.changed"   // Data: path, op
	EventPreviewReady  EventKind = "preview.ready"  // Data: preview, port, url
)

// ActivityEvents are the kinds that tell of what is done in a sandbox rather than of
// what became of it. They are for people who watch: written behind the deed, not
// with it, and no longer kept than a day.
var ActivityEvents = []EventKind{EventExecStarted, EventExecCompleted, EventFileChanged, EventPreviewReady}

// EventFilter selects events of one team, oldest first.
type EventFilter struct {
	TeamID    TeamID
	AllTeams  bool
	SandboxID SandboxID
	Kinds     []EventKind
	After     int64 // Seq
	Limit     int   // 0 means 100; at most 1000
}

// EventLog reads what SandboxStore wrote.
type EventLog interface {
	// Events returns the events that the filter selects in the order of Seq. None
	// turns up behind one that has been shown, so a reader may go on from the last
	// Seq it saw; a store may hold an event back for a moment to keep that.
	Events(ctx context.Context, f EventFilter) ([]Event, error)
}

// EventSignal wakes readers, so that they need not ask all the time.
type EventSignal interface {
	// EventsWritten returns a channel that is closed when this process next writes
	// events. Those of other processes are not told: a reader asks now and then, too.
	EventsWritten() <-chan struct{}
	// LastEvent returns the Seq of the newest event that EventLog shows, 0 when there
	// is none.
	LastEvent(ctx context.Context) (int64, error)
}

// EventWriter writes events that come with no change of a record.
type EventWriter interface {
	// AppendEvents writes them in one transaction. Team and sandbox must be set.
	AppendEvents(ctx context.Context, events []Event) error
	// TrimEvents deletes ActivityEvents of before the time, at most limit of them, and
	// returns how many.
	TrimEvents(ctx context.Context, before time.Time, limit int) (int, error)
}
