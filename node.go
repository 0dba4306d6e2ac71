package nacre

import (
	"context"
	"net"
	"time"
)

// Node is one host that runs machines; the same over HTTP as in this process.
// All methods may run at once. A sandbox that has no machine here is
// CodeNotFound.
type Node interface {
	ID() NodeID

	// Start gives the sandbox a machine: a standby when one fits, else a new one.
	// It returns when the agent has confirmed its Init, and the node will find the
	// machine again after a crash from then on. What does not fit is CodeExhausted
	// and hurts nothing that runs; a Runtime that makes no machines here is
	// CodeUnsupported. A sandbox that has a machine is CodeConflict.
	Start(ctx context.Context, spec StartSpec) (Started, error)

	// Stop ends the sandbox's machine and forgets it, keeping its log. It returns
	// when nothing of it is left. A repeat, and one that ended by itself, is no error.
	Stop(ctx context.Context, id SandboxID) error

	// SetEgress replaces the outbound policy of a running sandbox.
	SetEgress(ctx context.Context, id SandboxID, p EgressPolicy) error

	// Machines lists every sandbox that has a machine here, ended ones that were
	// not stopped yet too. It is the truth that the records are compared with.
	Machines(ctx context.Context) ([]MachineStatus, error)

	// WatchExits calls fn for each machine that ended by itself, those that ended
	// before the call and were not stopped yet first, until ctx ends.
	WatchExits(ctx context.Context, fn func(SandboxID, Exit)) error

	// Snapshot keeps a running sandbox as spec.ID. It exists, durably, when it
	// returns. With Pause the machine is killed then and forgotten: traffic ends before
	// the guest stands still, and a crash at any moment leaves either a running machine
	// and no snapshot, or a snapshot and no machine. What the killed machine held is
	// free a moment later, counts until then, and is waited for by Stop. When it
	// fails the sandbox runs on, reachable as before. A full disk is CodeNoSpace, a
	// second one of the sandbox at once CodeConflict.
	Snapshot(ctx context.Context, id SandboxID, spec SnapshotSpec) (SnapshotManifest, error)

	// Snapshots lists what exists here: the truth that the records are compared with.
	Snapshots(ctx context.Context) ([]SnapshotManifest, error)

	// CheckSnapshot tells whether its files are here and as they were written, without
	// starting anything: nil, or what Start would return of them. Memory's pages are
	// compared by size.
	CheckSnapshot(ctx context.Context, id SnapshotID) error

	// DeleteSnapshot removes one; what restores from it at the moment goes on. A
	// repeat is no error.
	DeleteSnapshot(ctx context.Context, id SnapshotID) error

	// Capacity tells how full the host is.
	Capacity(ctx context.Context) (Capacity, error)
}

// StartSpec is what a node needs to know of a sandbox.
type StartSpec struct {
	Sandbox    SandboxID
	Team       TeamID
	Build      BuildID
	Runtime    RuntimeName // "" is the snapshot's, else the node's default
	Resources  Resources
	Env        map[string]string
	Network    NetworkPolicy
	Secure     bool
	TokenEpoch int
	// Snapshot is restored instead of booting the build; its Build, Runtime and
	// Resources must be these. "" boots. One that is not here is CodeNotFound, one that cannot be
	// restored here CodeMismatch, a damaged one CodeConflict.
	Snapshot SnapshotID
	// Boot has of the Snapshot the files alone, whatever else it keeps.
	Boot bool
	// Chosen, when set, is called at most once, with a machine whose guest lived before
	// (a standby, a restored one) and is to become the sandbox's, before the guest learns
	// of that: what else takes its time may begin. Start may fail yet, or come back with another machine. A node that
	// dies in between ends the machine with EndFailed. It must not block.
	Chosen func(Started) `json:"-"`
}

// SnapshotSpec is what a node needs to know to keep a sandbox.
type SnapshotSpec struct {
	ID        SnapshotID
	Pause     bool
	FilesOnly bool
	// Healthy refuses a guest whose agent does not answer; CodeUnavailable.
	Healthy bool
	// Transient has a snapshot that ends with this process at the latest: it exists when
	// Snapshot returns, and nothing of it is made durable. Not with Pause.
	Transient bool
}

// Started is what became of a Start.
type Started struct {
	Machine  MachineID
	Runtime  RuntimeName // that it is of
	BootPath BootPath
	BootTime time.Duration
}

// MachineStatus is one line of Node.Machines.
type MachineStatus struct {
	Sandbox SandboxID
	Team    TeamID
	Machine MachineID
	Started time.Time
	Exit    *Exit // nil while it runs
}

// Capacity of a host. Promised is the sum of limits, which may exceed Total by
// the configured overcommit.
type Capacity struct {
	Sandboxes, MaxSandboxes int
	Standbys                int
	CPUs                    int
	MemoryTotal, MemoryFree int64
	MemoryPromised          int64
	MemoryPromises          int64 // what may be promised; 0 where nobody says
	DiskTotal, DiskFree     int64
	// Runtime tells what machines are made of here.
	Runtime Capabilities
}

// Traffic is the node's data plane: how the edge reaches guests. It answers from
// memory and works while the store does not.
type Traffic interface {
	// Route returns how to treat traffic for a sandbox; ok is false when it has
	// no running machine here.
	Route(id SandboxID) (r Route, ok bool)
	// Routes calls fn for each running sandbox until it returns false.
	Routes(fn func(Route) bool)
	// Dial connects to a TCP port of a guest, on its address or its loopback.
	// Nobody listening is CodeUnavailable, no machine CodeNotFound.
	Dial(ctx context.Context, id SandboxID, port int) (net.Conn, error)
	// Agent returns the agent of a running sandbox.
	Agent(ctx context.Context, id SandboxID) (Agent, error)
}

// Route is what the edge knows of a running sandbox.
type Route struct {
	Sandbox    SandboxID
	Machine    MachineID // connections of another one are stale
	Team       TeamID
	TokenEpoch int
	Secure     bool
	Network    NetworkPolicy
}

// Telemetry reads what a node recorded about its sandboxes, ended ones too while
// their records are kept.
type Telemetry interface {
	// Metrics returns samples between from and to (zero = open), oldest first.
	Metrics(ctx context.Context, id SandboxID, from, to time.Time) ([]Metric, error)
	// Logs returns at most q.Limit entries. An unknown sandbox has none.
	Logs(ctx context.Context, id SandboxID, q LogQuery) ([]LogEntry, error)
}

// LogQuery selects log entries. Backward means newest first.
type LogQuery struct {
	After    time.Time // exclusive; Before when Backward
	Limit    int
	Backward bool
	Type     LogType // "" = all
}

// Metric is one sample of a sandbox's use.
type Metric struct {
	Time                        time.Time
	CPUCount                    int
	CPUUsedPct                  float64 // 100 = one processor
	MemUsed, MemTotal, MemCache int64
	DiskUsed, DiskTotal         int64
}
