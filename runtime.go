package nacre

import (
	"cmp"
	"context"
	"encoding/json"
	"net"
	"strings"
	"time"
)

// RuntimeName names a driver, in flags, handles and records. "" is the one that a
// host makes machines of when nobody asks for another.
type RuntimeName string

// The drivers that there are.
const (
	RuntimeGVisor      RuntimeName = "gvisor"
	RuntimeFirecracker RuntimeName = "firecracker"
)

// RuntimeOf returns the driver that a RestoreKey belongs to, "" for "".
func RuntimeOf(restoreKey string) RuntimeName {
	name, _, _ := strings.Cut(restoreKey, "/")
	return RuntimeName(name)
}

// Capabilities are what a driver can do, as plain data: nobody compares names.
type Capabilities struct {
	Runtime     RuntimeName // the driver's name
	Isolation   string      // for people: "gVisor (systrap)", "Firecracker microVM"
	MemoryInKiB int         // what an idle machine costs the host, roughly
	// Snapshots tells whether Machine.Snapshot, Machine.Resume and Runtime.Restore
	// work; where it is false they return CodeUnsupported.
	Snapshots bool
	// RestoreKey names what a snapshot is bound to: "driver/version/processor". A
	// snapshot is restored only where it equals SnapshotInfo.RestoreKey.
	RestoreKey string
	// SparesOnOOM tells what a sandbox's want of memory ends: where it is true the process
	// that wants it, and the sandbox only when that is the agent; else the sandbox.
	SparesOnOOM bool
	// HugePages tells whether Resources.HugePages is obeyed.
	HugePages bool
	// Kept is true of a driver that makes no machines here: it runs those that an
	// earlier process made.
	Kept bool
	// Others are those of the further drivers, of a Runtime that has several.
	Others []Capabilities
}

// Of returns what the driver can do, which may be Kept; "" is the default one.
func (c Capabilities) Of(name RuntimeName) (Capabilities, bool) {
	others := c.Others
	if c.Others = nil; name == "" || c.Runtime == name {
		return c, true
	}
	for _, d := range others {
		if d.Runtime == name {
			return d, true
		}
	}
	return Capabilities{}, false
}

// Offers is Of for a driver that makes machines. Another is CodeUnsupported, of the
// field Runtime, and the error says which ones do.
func (c Capabilities) Offers(name RuntimeName) (Capabilities, error) {
	d, ok := c.Of(name)
	if ok && !d.Kept {
		return d, nil
	}
	err := Errorf(CodeUnsupported, "the runtime %.40q is not offered here; this host offers %s", name, c.offered())
	if ok {
		err = Errorf(CodeUnsupported, "the runtime %s makes no new machines here, it only runs those that there are; this host offers %s", name, c.offered())
	}
	err.Field = "Runtime"
	return Capabilities{}, err
}

func (c Capabilities) offered() string {
	var names []string
	for _, d := range append([]Capabilities{c}, c.Others...) {
		if !d.Kept {
			names = append(names, string(d.Runtime))
		}
	}
	return strings.Join(names, " and ")
}

// CanRestore returns nil when a snapshot of that RestoreKey can be restored, else a
// CodeMismatch that names what it is bound to, what there is and what helps.
func (c Capabilities) CanRestore(id SnapshotID, key string) error {
	d, err := c.Offers(RuntimeOf(key))
	switch {
	case err != nil:
		return Errorf(CodeMismatch, "snapshot %s does not fit this host: it was taken on %s, and this host offers %s; it can be restored where %s is offered again (`nacre up --runtime`)",
			id, key, c.offered(), cmp.Or(string(RuntimeOf(key)), "that"))
	case !d.Snapshots:
		return Errorf(CodeMismatch, "snapshot %s does not fit this host: the runtime %s restores no snapshots here", id, d.Runtime)
	case d.RestoreKey != key:
		return Mismatch("snapshot "+string(id), key, d.RestoreKey)
	}
	return nil
}

// Mismatch is the CodeMismatch of a snapshot that was taken on another version or
// processor of the same runtime: was and is are RestoreKeys.
func Mismatch(snapshot, was, is string) *Error {
	differs, help := "processor", "on a host whose processor is like the one it was taken on"
	if name, rest, _ := strings.Cut(was, "/"); name != string(RuntimeOf(is)) {
		differs, help = "runtime", "on a host that offers it"
	} else if v, _, _ := strings.Cut(rest, "/"); !strings.HasPrefix(is+"/", name+"/"+v+"/") {
		differs, help = "version of "+name, "by the version of nacre and "+name+" that it was taken with"
	}
	return Errorf(CodeMismatch, "%s does not fit this host: it was taken on another %s (%s, and this host is %s); it can be restored %s", snapshot, differs, was, is, help)
}

// MachineSpec is everything a driver needs to boot a machine.
type MachineSpec struct {
	ID MachineID
	// Runtime is the driver's name or "". Any other is CodeUnsupported.
	Runtime   RuntimeName
	Hostname  string
	Root      RootFS
	Slot      Slot
	Resources Resources
	// AgentPath is the guest agent's static binary on this host; the driver makes
	// it PID 1 of the guest. It listens on AgentPort of the guest's address. The
	// driver may keep files of its own beside it, named after its content.
	AgentPath string
	// StateDir is the driver's own directory for this machine; it exists, is
	// empty, has mode 0700 and is removed by the node after Stop.
	StateDir string
}

// AgentPort is where the agent listens inside the guest (envd's port).
const AgentPort = 49983

// Handle is what a later process needs to find a machine again: small, opaque
// but to its driver, kept on disk by the node.
type Handle struct {
	Machine MachineID
	Runtime RuntimeName
	State   json.RawMessage
}

// Exit says how a machine ended.
type Exit struct {
	Machine MachineID
	Reason  EndReason // EndKilled after Stop, else EndOOM or EndCrash
	Detail  string    // a sentence for people
	At      time.Time
}

// Usage is what a machine uses now, as the host accounts it.
type Usage struct {
	CPUTime     time.Duration // since it started
	MemoryBytes int64         // resident
	PIDs        int           // host tasks
}

// Runtime makes machines. All methods may run at once.
type Runtime interface {
	// Name is the driver's word in handles, flags and records; of a Runtime that has
	// several drivers it is the default one's.
	Name() RuntimeName
	// Capabilities do not change. Their Runtime is Name.
	Capabilities() Capabilities

	// Start boots a machine and returns when its init process runs; whether the
	// agent answers yet is the caller's to ask. When it fails, or ctx ends first,
	// nothing is left. The machine outlives this process.
	//
	// A guest that makes too many processes is refused more (EAGAIN) and goes on; one
	// that uses more memory than it has ends as a whole, with EndOOM.
	Start(ctx context.Context, spec MachineSpec) (Machine, error)

	// Recover takes back a machine that an earlier process started. One that is
	// gone is returned ended, its Wait says why, and what it left is cleared. It
	// never touches a process that only has the same number (PID reuse).
	Recover(ctx context.Context, h Handle) (Machine, error)

	// Restore boots a new machine that goes on where the snapshot in dir was taken,
	// with its processes, memory and files; several at once from one snapshot, each
	// its own. dir is only read, and may be deleted when Restore has returned. What
	// spec says anew is taken up: ID, hostname, slot, state directory and the (empty)
	// writable layer. The rest must be as it was when the snapshot was taken, or
	// Restore is CodeConflict and says what differs: Root.Image's content,
	// Root.UpperMiB, CPUs, MemoryMiB. AgentPath is not started, the guest goes on with the
	// agent that it has; the driver keeps that beside it.
	//
	// The guest goes on before Restore returns and has its old identity until the
	// agent's Init: nobody may reach it before. Listening sockets, Unix sockets and
	// pipes survive; connections to outside end with an error at once.
	//
	// Before anything is started the snapshot's small files are verified, and the
	// sizes of all: a damaged one is CodeConflict, one of another RestoreKey
	// CodeMismatch, a directory without one CodeNotFound. When it fails, or ctx
	// ends first, nothing is left but the snapshot.
	Restore(ctx context.Context, spec MachineSpec, dir string) (Machine, error)

	// VerifySnapshot reads all of the snapshot in dir and returns nil when it is as
	// it was written; else what Restore would return. The pages are compared only
	// when their sum was recorded (SnapshotOptions.SumPages). It is for snapshots
	// that enter this host; a restore does not need it.
	VerifySnapshot(ctx context.Context, dir string) error

	// Sweep removes what machines left behind that keep does not know: processes,
	// cgroups, mounts and directories, found by name.
	Sweep(ctx context.Context, keep func(MachineID) bool) error
}

// Machine is one running sandbox on this host. All methods may run at once.
// After the machine has ended all but Wait, Kill, Stop, ID and Handle return
// CodeNotFound.
type Machine interface {
	ID() MachineID
	Handle() Handle

	// Dial connects to a TCP port of the guest. Nobody listening is CodeUnavailable.
	Dial(ctx context.Context, port int) (net.Conn, error)

	// Kill ends the machine at once. When it returns nothing of the guest runs any more
	// and its connections are cut; Stop, which follows, waits until what it held is the
	// host's again. A repeat, and a machine that has ended, is no error.
	Kill(ctx context.Context) error

	// Stop ends the machine at once and returns when no process and no cgroup of
	// it is left. A repeat, and a machine that has ended, is no error.
	Stop(ctx context.Context) error

	// Wait returns when the machine has ended, and why. Any number may wait.
	Wait(ctx context.Context) (Exit, error)

	// Usage reads the host's accounts: at most a few file reads.
	Usage(ctx context.Context) (Usage, error)

	// Snapshot writes the machine's memory, processes and writable layer to dir, an
	// empty directory of the caller's. It stops the guest between two instructions:
	// whatever the guest wrote to a file before is in it. With KeepRunning the guest
	// goes on before Snapshot returns; without, it stands still until Resume or Stop,
	// so that the caller can first record the snapshot: this is how a pause loses
	// nothing, whenever the host's daemon dies.
	//
	// When it fails, or ctx ends first (noticed when what was begun is written), the
	// guest goes on as if nothing had been, and what was written is removed. A full
	// disk is CodeNoSpace; a second snapshot at once, and one of a guest that stands
	// still, CodeConflict. Nothing is synced to the disk: that is the caller's, as
	// are the directory's own durability and its removal after a crash.
	Snapshot(ctx context.Context, dir string, opt SnapshotOptions) (SnapshotInfo, error)

	// Resume lets a guest go on that stands still after Snapshot. One that runs is
	// left alone. A daemon that dies during a snapshot may leave the guest standing
	// still: Recover leaves it so, and whoever recovers a machine calls Resume or Stop.
	Resume(ctx context.Context) error
}

// SnapshotOptions says how to take a snapshot.
type SnapshotOptions struct {
	KeepRunning bool // the guest goes on by itself
	// SumPages records the checksum of the memory's pages too, which means to read
	// them once more; the guest does not stand still for it.
	SumPages bool
	// Transient records no checksum at all: what is restored from it is, by this process
	// and at once, or nothing.
	Transient bool
	// FilesOnly keeps the writable layer alone: Restore then starts AgentPath in a
	// guest that boots, with these files and perhaps other CPUs and MemoryMiB. Unix
	// sockets are not kept, nor extended attributes whose value is no UTF-8 text; files'
	// times may be rounded to seconds.
	FilesOnly bool
}

// SnapshotInfo describes a snapshot that was taken.
type SnapshotInfo struct {
	RestoreKey string
	FilesOnly  bool
	Files      []SnapshotFile // all that is in the directory
	Stopped    time.Duration  // how long the guest stood still; so far, without KeepRunning
}

// SnapshotFile is one file of a snapshot, by its name in the directory. The sizes
// are in bytes; Disk is what it occupies by itself, 0 when it is shared with other files.
type SnapshotFile struct {
	Name string
	Size int64
	Disk int64
}

// Bytes is the sum of the files' sizes.
func (s SnapshotInfo) Bytes() (n int64) {
	for _, f := range s.Files {
		n += f.Size
	}
	return n
}
