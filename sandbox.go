package nacre

import (
	"context"
	"slices"
	"time"
)

// Sandbox is the record: who owns it, what it is made of, its state and its
// deadline. The running thing is a Machine.
type Sandbox struct {
	ID     SandboxID
	TeamID TeamID

	// Template is the name that the create asked for; TemplateID and BuildID
	// what it resolved to.
	Template   string
	TemplateID TemplateID
	BuildID    BuildID

	Name   string    // the owner's, not unique; "" for none
	Parent SandboxID // it was forked from this one, or from a snapshot of it

	Node    NodeID
	Runtime RuntimeName // what its machines are of; "" in records of servers that had one
	Machine MachineID   // "" while there is none

	State     State
	EndReason EndReason // set when State is StateEnded (and while stopping)
	Detail    string    // a sentence for people: why it ended or failed

	Resources Resources
	Metadata  map[string]string
	Env       map[string]string // secret: never logged, never in an event
	Network   NetworkPolicy
	Secure    bool // agent calls need the access token

	Timeout    time.Duration // what the deadline was last set from
	OnTimeout  TimeoutAction
	AutoResume bool // traffic wakes it when it is paused
	FilesOnly  bool // a pause at the deadline keeps the files alone
	TokenEpoch int  // raised to make earlier access tokens worthless

	IdleTimeout time.Duration // without activity it ends after this (EndIdle); 0 never
	AlwaysOn    bool          // it has no deadline

	// Snapshot is what it goes on from when it gets a machine: set while a fork is
	// created, while it is paused or resumed. It is held, see SnapshotStore.
	Snapshot SnapshotID
	Origin   SnapshotID // what its machine was restored from; "" when it booted

	CreatedAt time.Time
	StartedAt time.Time // of the current run; a resume renews it
	Deadline  time.Time // when OnTimeout happens; of a paused one when it would have; zero when AlwaysOn
	PausedAt  time.Time // zero while it is not paused
	EndedAt   time.Time

	BootPath BootPath
	BootTime time.Duration
	Version  int64 // raised by each Update
}

// State is a sandbox's place in its life. Transitions is the one table of moves.
type State string

const (
	StateCreating State = "creating" // a machine is being made
	StateRunning  State = "running"
	StatePausing  State = "pausing"
	StatePaused   State = "paused" // no machine; memory and disk are kept
	StateResuming State = "resuming"
	StateStopping State = "stopping" // EndReason is decided, the machine may still be there
	StateEnded    State = "ended"    // final
)

// Transitions holds every legal move. A move that is not here is a CodeConflict.
var Transitions = map[State][]State{
	StateCreating: {StateRunning, StateStopping, StateEnded},
	StateRunning:  {StatePausing, StateResuming, StateStopping, StateEnded}, // resuming: back to a snapshot
	StatePausing:  {StatePaused, StateRunning, StateStopping, StateEnded},
	StatePaused:   {StateResuming, StateStopping, StateEnded},
	StateResuming: {StateRunning, StatePaused, StateStopping, StateEnded},
	StateStopping: {StateEnded},
	StateEnded:    {},
}

// CanMove tells whether the table allows the move.
func CanMove(from, to State) bool { return slices.Contains(Transitions[from], to) }

// Move changes the state, or returns a CodeConflict that names both.
func (s *Sandbox) Move(to State) error {
	if !CanMove(s.State, to) {
		return Errorf(CodeConflict, "sandbox %s is %s; it cannot become %s", s.ID, s.State, to)
	}
	s.State = to
	return nil
}

// Alive tells whether the sandbox has not ended and is not ending.
func (s *Sandbox) Alive() bool { return s.State != StateEnded && s.State != StateStopping }

// Gone is what a call for a sandbox that is not Alive answers its own team:
// CodeNotFound, with why it ended and when.
func (s *Sandbox) Gone() *Error {
	why := string(s.EndReason)
	if why != "" && !s.EndedAt.IsZero() {
		why += ", " + s.EndedAt.UTC().Format(time.RFC3339)
	}
	if why != "" {
		why = " (" + why + ")"
	}
	if s.Detail != "" {
		why += ": " + s.Detail
	}
	return Errorf(CodeNotFound, "sandbox %s has ended%s", s.ID, why)
}

// EndReason says why a sandbox ended. Clients, lists, events and logs show it.
type EndReason string

const (
	EndKilled   EndReason = "killed"    // by its owner
	EndTimeout  EndReason = "timeout"   // its deadline passed
	EndIdle     EndReason = "idle"      // its idle deadline passed
	EndOOM      EndReason = "oom"       // it used more memory than its limit
	EndCrash    EndReason = "crash"     // the machine ended by itself
	EndFailed   EndReason = "failed"    // it never started
	EndNodeLost EndReason = "node lost" // its host is gone
)

// TimeoutAction is what happens at the deadline.
type TimeoutAction string

const (
	TimeoutKill  TimeoutAction = "kill"
	TimeoutPause TimeoutAction = "pause"
)

// BootPath tells how a machine came to be.
type BootPath string

const (
	BootStandby BootPath = "standby" // it ran already and was handed over
	BootWarm    BootPath = "warm"    // restored from a snapshot
	BootCold    BootPath = "cold"    // booted
)

// Resources are hard limits. Zero means the template's default.
type Resources struct {
	CPUs      int // virtual processors; the share of host CPU time
	MemoryMiB int
	DiskMiB   int // writable layer; a write beyond it is ENOSPC
	MaxPIDs   int // host tasks of the machine; a guest may have about a third as many
	// HugePages has the memory be pages of 2 MiB that the host has set apart; on a driver
	// without Capabilities.HugePages it means nothing. No request asks for it, templates do.
	HugePages bool `json:",omitempty"`
}

// NetworkPolicy is what a sandbox may reach and who may reach it.
type NetworkPolicy struct {
	// DenyInternet closes egress altogether unless AllowOut opens a part.
	DenyInternet bool
	// AllowOut wins over DenyOut. Entries are IP addresses and CIDRs; Egress says where
	// AllowOut may have a domain name.
	AllowOut []string
	DenyOut  []string
	// PrivateTraffic makes previews demand the traffic access token.
	PrivateTraffic bool
	// MaskRequestHost replaces the Host header of preview requests;
	// "${PORT}" stands for the port.
	MaskRequestHost string
}

// SandboxFilter selects sandboxes. The zero value of a field does not restrict,
// but for the team: without one, AllTeams must be said, so that forgetting it
// finds nothing.
type SandboxFilter struct {
	TeamID   TeamID
	AllTeams bool

	IDs            []SandboxID
	Name           string
	States         []State
	Metadata       map[string]string // all must match exactly
	Node           NodeID
	DeadlineBefore time.Time // alive, with Deadline <= this

	// Newest StartedAt first, then by id, or the other way round. Limit 0 means
	// 100; at most 1000.
	OldestFirst bool
	Limit       int
	Cursor      string // opaque, from SandboxPage.Next
}

// SandboxPage is one page of a list. Next is "" on the last.
type SandboxPage struct {
	Sandboxes []Sandbox
	Next      string
}

// SandboxStore keeps the records.
//
// All methods may run at once. A record that does not exist, or is of another
// team, is CodeNotFound. A store that cannot be reached is CodeUnavailable.
// What a method has returned without error survives a power cut.
type SandboxStore interface {
	// Insert adds a record and its first events in one transaction. An id that
	// exists is CodeConflict.
	Insert(ctx context.Context, s Sandbox, events ...Event) error

	// Get returns one record. An empty team is CodeNotFound.
	Get(ctx context.Context, team TeamID, id SandboxID) (Sandbox, error)

	// List returns a page, newest StartedAt first. A bad cursor is CodeInvalid.
	List(ctx context.Context, f SandboxFilter) (SandboxPage, error)

	// Count counts what the filter selects; Limit and Cursor do not matter.
	Count(ctx context.Context, f SandboxFilter) (int, error)

	// Update reads the record, calls change, and writes what change left
	// together with the events it returned, in one transaction; Version goes up
	// by one. Concurrent updates of one record happen one after the other, and
	// change must not have side effects: it may run more than once. An error of
	// change is returned as it is and nothing is written. ID, TeamID and
	// CreatedAt cannot be changed. It returns the record as written.
	Update(ctx context.Context, team TeamID, id SandboxID, change func(*Sandbox) ([]Event, error)) (Sandbox, error)

	// Purge deletes records that ended before the time, with their events, at
	// most limit of them, and returns how many it deleted.
	Purge(ctx context.Context, endedBefore time.Time, limit int) (int, error)
}
