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
)

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
