package nacre

import (
	"context"
	"encoding/json"
	"net"
	"time"
)

// Capabilities are what a driver can do, as plain data: nobody compares names.
type Capabilities struct {
	Isolation    string // for people: "gVisor (systrap)", "Firecracker microVM"
	MemoryInKiB  int    // what an idle machine costs the host, roughly
	ResizableRAM bool
}

// MachineSpec is everything a driver needs to boot a machine.
type MachineSpec struct {
	ID        MachineID
	Hostname  string
	Root      RootFS
	Slot      Slot
	Resources Resources
	// AgentPath is the guest agent's static binary on this host; the driver makes
	// it PID 1 of the guest. It listens on AgentPort of the guest's address.
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
	Runtime string
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
	// Name is the driver's word in handles, flags and records: "gvisor".
	Name() string
	Capabilities() Capabilities

	// Start boots a machine and returns when its init process runs; whether the
	// agent answers yet is the caller's to ask. When it fails, or ctx ends first,
	// nothing is left. The machine outlives this process.
	Start(ctx context.Context, spec MachineSpec) (Machine, error)

	// Recover takes back a machine that an earlier process started. One that is
	// gone is returned ended, its Wait says why, and what it left is cleared. It
	// never touches a process that only has the same number (PID reuse).
	Recover(ctx context.Context, h Handle) (Machine, error)

	// Sweep removes what machines left behind that keep does not know: processes,
	// cgroups, mounts and directories, found by name.
	Sweep(ctx context.Context, keep func(MachineID) bool) error
}

// Machine is one running sandbox on this host. All methods may run at once.
// After the machine has ended all but Wait, Stop, ID and Handle return
// CodeNotFound.
type Machine interface {
	ID() MachineID
	Handle() Handle

	// Dial connects to a TCP port of the guest. Nobody listening is CodeUnavailable.
	Dial(ctx context.Context, port int) (net.Conn, error)

	// Stop ends the machine at once and returns when no process and no cgroup of
	// it is left. A repeat, and a machine that has ended, is no error.
	Stop(ctx context.Context) error

	// Wait returns when the machine has ended, and why. Any number may wait.
	Wait(ctx context.Context) (Exit, error)

	// Usage reads the host's accounts: at most a few file reads.
	Usage(ctx context.Context) (Usage, error)
}
