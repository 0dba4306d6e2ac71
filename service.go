package nacre

import (
	"context"
	"time"
)

// Service is the domain: what every dialect, the dashboard and the command call.
// control implements it. All methods may run at once. A sandbox of another team
// is CodeNotFound, exactly as one that never was.
type Service interface {
	// Create returns a running sandbox whose guest answers. A bad field is
	// CodeInvalid, an unknown template CodeNotFound, a full host or quota
	// CodeExhausted. When it fails nothing is left but an ended record that says
	// why (none at all for a bad request).
	Create(ctx context.Context, team TeamID, r CreateRequest) (Sandbox, error)

	// Get returns a record, an ended one too.
	Get(ctx context.Context, team TeamID, id SandboxID) (Sandbox, error)

	// List pages through a team's records; f.TeamID is set by the service.
	List(ctx context.Context, team TeamID, f SandboxFilter) (SandboxPage, error)

	// Kill ends a sandbox and returns when its machine is gone. One that has
	// ended already is CodeNotFound.
	Kill(ctx context.Context, team TeamID, id SandboxID) error

	// SetDeadline moves the deadline to now + d. With extendOnly an earlier
	// deadline is left as it is. A sandbox that is not running is CodeNotFound
	// when it ended, CodeConflict otherwise.
	SetDeadline(ctx context.Context, team TeamID, id SandboxID, d time.Duration, extendOnly bool) (Sandbox, error)

	// SetNetwork replaces the outbound half of the policy.
	SetNetwork(ctx context.Context, team TeamID, id SandboxID, p NetworkPolicy) error

	// Metrics and Logs work for ended sandboxes too.
	Metrics(ctx context.Context, team TeamID, id SandboxID, from, to time.Time) ([]Metric, error)
	Logs(ctx context.Context, team TeamID, id SandboxID, q LogQuery) ([]LogEntry, error)

	// Templates lists what the team can create from: its own and the public ones.
	Templates(ctx context.Context, team TeamID) ([]Template, error)
}

// Waker brings paused sandboxes back when traffic comes for them (Sandbox.AutoResume).
type Waker interface {
	// Asleep returns the route that a paused sandbox would have; ok is false for one
	// that traffic does not wake. It answers from memory.
	Asleep(id SandboxID) (r Route, ok bool)
	// Sleepers calls fn for each one that Asleep knows until it returns false: a
	// signed URL names no sandbox and is tried against all.
	Sleepers(fn func(Route) bool)
	// Wake resumes it, or waits for the resume that is under way. The caller has
	// checked that the traffic may reach the sandbox.
	Wake(ctx context.Context, id SandboxID) error
}

// Activity is told when a sandbox is used, which moves an idle deadline: commands,
// file writes, previews and terminal input; not reads.
type Activity interface {
	// Touch is cheap and does not block.
	Touch(id SandboxID)
	// LastUse is when a sandbox that has not ended was touched last; zero when it was
	// not since this process began.
	LastUse(id SandboxID) time.Time
}

// CreateRequest is what a create asks for. Zero fields mean the defaults.
type CreateRequest struct {
	Template  string        // name or id of a template, or of a snapshot of the team's; "" means "base"
	Timeout   time.Duration // 0 means 5 minutes
	OnTimeout TimeoutAction // "" means kill
	// AutoResume lets traffic wake it when it is paused; FilesOnly keeps no memory
	// when it is paused at its deadline. Not both.
	AutoResume bool
	FilesOnly  bool
	Runtime    RuntimeName // "" means the snapshot's, the template's, or the host's default
	Resources  Resources
	Metadata   map[string]string
	Env        map[string]string
	Network    NetworkPolicy
	Secure     bool

	Name        string
	IdleTimeout time.Duration // see Sandbox; at most 24 hours
	AlwaysOn    bool
}

// EditRequest changes what its fields that are not nil name, all of it or nothing.
type EditRequest struct {
	Name *string
	// Metadata returns what takes the place of the metadata it is given, reserved keys
	// included. It is part of the update, so that edits at once lose nothing of each
	// other, and may be called more than once. Its error ends the edit.
	Metadata    func(map[string]string) (map[string]string, error)
	Timeout     *time.Duration // counts from now on; of a paused sandbox, when it runs again
	IdleTimeout *time.Duration
	AlwaysOn    *bool // false gives it a deadline of its Timeout from now
}
