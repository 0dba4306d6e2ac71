package nacre

import (
	"context"
	"time"
)

// SystemTeam owns what belongs to no tenant, such as the warm snapshots of built-in
// templates. Nobody has a key of it.
const SystemTeam TeamID = "team_system"

// Snapshot is the record: what was kept of one sandbox at one moment, and what a
// sandbox made from it begins with. The files are a SnapshotManifest's, on a node.
type Snapshot struct {
	ID      SnapshotID
	TeamID  TeamID
	Name    string // not unique: the newest ready one is meant; "" for none
	Comment string
	Kind    SnapshotKind
	State   SnapshotState

	Sandbox   SandboxID // it was taken of
	Node      NodeID    // where its files are
	FilesOnly bool      // a sandbox made from it boots, with the files of this one
	// RestoreKey is what it is bound to, see Capabilities; RuntimeOf it is what the
	// sandbox ran on.
	RestoreKey string

	Template   string
	TemplateID TemplateID
	BuildID    BuildID
	Resources  Resources
	Metadata   map[string]string
	Env        map[string]string // secret, as a sandbox's
	Network    NetworkPolicy
	Secure     bool
	Timeout    time.Duration
	OnTimeout  TimeoutAction

	Bytes     int64         // of the files
	DiskBytes int64         // what they occupied when that was last looked at; what quotas count
	Stopped   time.Duration // how long the guest stood still

	CreatedAt  time.Time
	ExpiresAt  time.Time // zero for never
	LastUsedAt time.Time
	Version    int64 // raised by each update
}

// SnapshotKind says what a snapshot is for. Only SnapshotUser is in users' lists.
type SnapshotKind string

const (
	SnapshotUser  SnapshotKind = "user"  // asked for; lives until deleted or expired
	SnapshotPause SnapshotKind = "pause" // a paused sandbox's own; goes when it runs again or ends
	SnapshotFork  SnapshotKind = "fork"  // between a running sandbox and its forks
	SnapshotWarm  SnapshotKind = "warm"  // the state behind a template's start command
)

// SnapshotState is a snapshot's place in its life.
type SnapshotState string

const (
	SnapshotCreating SnapshotState = "creating"
	SnapshotReady    SnapshotState = "ready"
	SnapshotDeleting SnapshotState = "deleting" // decided; its files may still be there
)

// SnapshotFilter selects snapshots; as in SandboxFilter a team or AllTeams must be said.
type SnapshotFilter struct {
	TeamID   TeamID
	AllTeams bool

	Sandbox       SandboxID
	Name          string
	Kinds         []SnapshotKind // none: SnapshotUser alone
	States        []SnapshotState
	ExpiresBefore time.Time // those that expire, at or before this

	// Newest first, then by id. Limit 0 means 100; at most 1000.
	Limit  int
	Cursor string // opaque, from SnapshotPage.Next
}

// SnapshotPage is one page of a list. Next is "" on the last.
type SnapshotPage struct {
	Snapshots []Snapshot
	Next      string
}

// SnapshotStore keeps the records of snapshots. Errors and concurrency as in
// SandboxStore.
//
// A snapshot is held by each sandbox that is alive and whose record names it in
// Sandbox.Snapshot: SandboxStore.Insert and Update that write such a name are
// CodeNotFound unless, in the same transaction, the snapshot is there, belongs to
// the sandbox's team or to SystemTeam, and is not SnapshotDeleting.
type SnapshotStore interface {
	// InsertSnapshot adds a record with its events. An id that exists is CodeConflict.
	InsertSnapshot(ctx context.Context, s Snapshot, events ...Event) error
	GetSnapshot(ctx context.Context, team TeamID, id SnapshotID) (Snapshot, error)
	// FindSnapshot finds a SnapshotUser that is ready by its id, else the newest of the name.
	FindSnapshot(ctx context.Context, team TeamID, nameOrID string) (Snapshot, error)
	ListSnapshots(ctx context.Context, f SnapshotFilter) (SnapshotPage, error)
	// UpdateSnapshot is to snapshots what SandboxStore.Update is to sandboxes.
	UpdateSnapshot(ctx context.Context, team TeamID, id SnapshotID, change func(*Snapshot) ([]Event, error)) (Snapshot, error)
	// RetireSnapshot moves it to SnapshotDeleting and writes the events. While it is
	// held that is a CodeConflict that names at most three holders. A repeat is no error.
	RetireSnapshot(ctx context.Context, team TeamID, id SnapshotID, events ...Event) (Snapshot, error)
	// DropSnapshot forgets one that is SnapshotDeleting. A missing one is no error,
	// any other state CodeConflict.
	DropSnapshot(ctx context.Context, team TeamID, id SnapshotID) error
	// SnapshotUse sums a team's snapshots of all kinds.
	SnapshotUse(ctx context.Context, team TeamID) (count int, diskBytes int64, err error)
}

// SnapshotManifest describes a snapshot's files on a node. It is written last:
// while there is none the snapshot does not exist.
type SnapshotManifest struct {
	ID        SnapshotID
	Sandbox   SandboxID
	Team      TeamID
	Machine   MachineID // it was taken of; the guest's agent knows this one's host token
	Pause     bool      // the machine was to be stopped when the snapshot existed
	Build     BuildID
	Resources Resources
	Hostname  string // of the guest; a sandbox that goes on keeps it, a copy does not
	LogSeq    int64  // of the guest's last log entry that the host had before
	CreatedAt time.Time
	DiskBytes int64 // what it occupies by itself; 0 while that is not known
	Transient bool  // it ends with the process that took it, at the latest
	SnapshotInfo
}

// ArtifactStore keeps snapshots' files on this host. The plain files stay for as
// long as there is room, so that a restore waits for nothing; behind them each is
// kept as chunks named after their content, of which equal ones and zeros cost
// nothing. All methods may run at once.
type ArtifactStore interface {
	// Create makes an empty directory for the snapshot's files. One that exists, or is
	// being written, is CodeConflict; a full disk CodeNoSpace.
	Create(ctx context.Context, id SnapshotID) (dir string, err error)
	// Commit makes what was written durable, the manifest last, and returns it with
	// DiskBytes. From then on the snapshot exists, whenever the host loses power. One
	// that is Transient exists for this process alone, and nothing waits for the disk.
	Commit(ctx context.Context, m SnapshotManifest) (SnapshotManifest, error)
	// Discard removes what was not committed. A repeat is no error.
	Discard(ctx context.Context, id SnapshotID) error
	// Open returns the directory of the plain files, put together from chunks when
	// they are no longer there, verified then. They stay until release is called.
	// An unknown one is CodeNotFound.
	Open(ctx context.Context, id SnapshotID) (dir string, m SnapshotManifest, release func(), err error)
	// Manifests lists what exists, in no order. DiskBytes is what each occupies now:
	// the plain copy while it is there, and of the chunks those that no older snapshot
	// of the team has.
	Manifests(ctx context.Context) ([]SnapshotManifest, error)
	// Delete removes a snapshot: at once for everybody, its files when the last
	// release was called. A repeat is no error.
	Delete(ctx context.Context, id SnapshotID) error
	// Sweep removes what a crash left half-done. It is called once, before Create.
	Sweep(ctx context.Context) error
	// Use tells what the artifacts occupy.
	Use(ctx context.Context) (ArtifactUse, error)
}

// ArtifactUse sums an ArtifactStore, in bytes.
type ArtifactUse struct {
	Snapshots int
	Logical   int64 // the sizes of all files
	Plain     int64 // what the plain copies occupy
	Chunks    int64 // what the chunks occupy, each once
}

// SnapshotService is the half of the domain that keeps and copies sandboxes;
// control implements it. What is said of Service holds here too.
type SnapshotService interface {
	// Pause keeps a running sandbox and ends its machine; the record is paused when
	// it returns, and nothing that the guest did before is lost. A sandbox that is
	// paused already is CodeConflict, one that ended CodeNotFound. When it fails the
	// sandbox runs on; a full disk is CodeNoSpace.
	Pause(ctx context.Context, team TeamID, id SandboxID, r PauseRequest) (Sandbox, error)
	// Resume brings a paused sandbox back, with its id, tokens, metadata and
	// environment; resumed tells whether it did. Of one that runs it only extends the
	// deadline. When it fails the sandbox is paused as before. Many at once resume it once.
	Resume(ctx context.Context, team TeamID, id SandboxID, r ResumeRequest) (s Sandbox, resumed bool, err error)
	// Snapshot keeps a running sandbox, which goes on, or a paused one.
	Snapshot(ctx context.Context, team TeamID, id SandboxID, r SnapshotRequest) (Snapshot, error)
	// Restore puts the same sandbox, running or paused, back to a snapshot of its own
	// or of its ancestors. What it did since is gone. When the snapshot cannot be
	// restored here that is said before anything is given up; when the restore itself
	// fails one that ran is paused at the snapshot, and one that was paused is as before.
	Restore(ctx context.Context, team TeamID, id SandboxID, snap SnapshotID) (Sandbox, error)
	// Fork makes sandboxes that go on where another one is, or where a snapshot was
	// taken. Each has its own outcome; an error of Fork itself means that none was made.
	Fork(ctx context.Context, team TeamID, r ForkRequest) ([]Forked, error)

	GetSnapshot(ctx context.Context, team TeamID, id SnapshotID) (Snapshot, error)
	ListSnapshots(ctx context.Context, team TeamID, f SnapshotFilter) (SnapshotPage, error)
	// DeleteSnapshot deletes a SnapshotUser. One that a paused sandbox would go on
	// from is CodeConflict and names it. A repeat is CodeNotFound.
	DeleteSnapshot(ctx context.Context, team TeamID, id SnapshotID) error
}

// PauseRequest says how to pause.
type PauseRequest struct {
	FilesOnly bool // keep the files alone; a resume boots
	// Healthy refuses with CodeUnavailable while the guest's agent does not answer. A
	// guest whose agent never does comes back by ResumeRequest.Boot alone.
	Healthy bool
}

// ResumeRequest says how long a resumed sandbox runs.
type ResumeRequest struct {
	// Timeout 0 means the sandbox's own. The deadline is never moved to an earlier time.
	Timeout time.Duration
	// Boot asks for a boot with the files: the memory is given up, if it was kept.
	Boot bool
}

// SnapshotRequest describes a snapshot to be taken.
type SnapshotRequest struct {
	Name      string
	Comment   string
	FilesOnly bool
	Keep      time.Duration // it expires after this; 0 never
}

// ForkRequest asks for copies. One of Sandbox and Snapshot is given. Fields that
// are nil or zero are the source's.
type ForkRequest struct {
	Sandbox   SandboxID
	Snapshot  SnapshotID
	Count     int // 1 to 100; 0 means 1
	Timeout   time.Duration
	OnTimeout TimeoutAction
	Metadata  map[string]string
	Env       map[string]string // added to the source's
	OwnEnv    bool              // Env is all that it has; what runs already has what it has
	Name      string
}

// Forked is what became of one copy: a running sandbox or an error.
type Forked struct {
	Sandbox Sandbox
	Err     error
}
