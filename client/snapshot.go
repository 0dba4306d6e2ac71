package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/nacrehq/nacre"
)

// Snapshot is what was kept of one sandbox at one moment. It outlives the sandbox.
type Snapshot struct {
	// ID is what Create, Fork, Restore and DeleteSnapshot take. It names this very
	// snapshot, also when a later one gets its Name.
	ID         string    `json:"id"`
	Name       string    `json:"name,omitempty"` // the newest of a name is meant by it
	Comment    string    `json:"comment,omitempty"`
	SandboxID  string    `json:"sandbox_id"` // it was taken of
	TemplateID string    `json:"template_id"`
	Memory     bool      `json:"memory"` // false: the files alone
	CPUCount   int       `json:"cpu_count"`
	MemoryMB   int       `json:"memory_mb"`
	DiskMB     int       `json:"disk_mb"`
	Size       int64     `json:"size"`      // of its files, in bytes
	DiskUsed   int64     `json:"disk_used"` // what it occupies by itself
	CreatedAt  time.Time `json:"created_at"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
	LastUsedAt time.Time `json:"last_used_at,omitzero"`

	// Runtime is what it was taken on, and what it goes on; "" from servers other than
	// Nacre.
	Runtime nacre.RuntimeName `json:"runtime,omitempty"`
	// Stopped is how long the sandbox stood still for it.
	Stopped time.Duration `json:"stopped_ns"`
}

// snapshotAnswer is the wire's. A server other than Nacre sends the first two.
type snapshotAnswer struct {
	SnapshotID string    `json:"snapshotID"`
	Names      []string  `json:"names"`
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Comment    string    `json:"comment"`
	SandboxID  string    `json:"sandboxID"`
	TemplateID string    `json:"templateID"`
	Memory     bool      `json:"memory"`
	CPUCount   int       `json:"cpuCount"`
	MemoryMB   int       `json:"memoryMB"`
	DiskSizeMB int       `json:"diskSizeMB"`
	SizeBytes  int64     `json:"sizeBytes"`
	DiskBytes  int64     `json:"diskBytes"`
	StoppedMS  float64   `json:"stoppedMs"`
	CreatedAt  time.Time `json:"createdAt"`
	ExpiresAt  time.Time `json:"expiresAt"`
	LastUsedAt time.Time `json:"lastUsedAt"`

	Runtime nacre.RuntimeName `json:"runtime"`
}

func (a snapshotAnswer) snapshot() Snapshot {
	s := Snapshot{ID: a.ID, Name: a.Name, Comment: a.Comment, SandboxID: a.SandboxID, TemplateID: a.TemplateID, Memory: a.Memory,
		CPUCount: a.CPUCount, MemoryMB: a.MemoryMB, DiskMB: a.DiskSizeMB, Size: a.SizeBytes, DiskUsed: a.DiskBytes,
		CreatedAt: a.CreatedAt, ExpiresAt: a.ExpiresAt, LastUsedAt: a.LastUsedAt, Runtime: a.Runtime,
		Stopped: time.Duration(a.StoppedMS * float64(time.Millisecond))}
	if s.ID == "" {
		s.ID = a.SnapshotID
	}
	if s.Name == "" && len(a.Names) > 0 {
		s.Name = a.Names[0]
	}
	return s
}

// A SnapshotOption shapes a Snapshot.
type SnapshotOption interface{ snapshot(*snapshotRequest) }

type snapshotRequest struct {
	Name      string `json:"name,omitempty"`
	Comment   string `json:"comment,omitempty"`
	Memory    *bool  `json:"memory,omitempty"`
	ExpiresIn int    `json:"expiresIn,omitempty"`
}

type snapshotOption func(*snapshotRequest)

func (f snapshotOption) snapshot(r *snapshotRequest) { f(r) }

// Comment is a text for people.
func Comment(text string) SnapshotOption {
	return snapshotOption(func(r *snapshotRequest) { r.Comment = text })
}

// Keep makes the snapshot expire after d, rounded up to seconds. Without it the
// snapshot stays until it is deleted.
func Keep(d time.Duration) SnapshotOption {
	return snapshotOption(func(r *snapshotRequest) { r.ExpiresIn = seconds(d) })
}

// A SnapshotListOption narrows Snapshots.
type SnapshotListOption interface{ snapshots(url.Values) }

// NameOption is what Name returns.
type NameOption string

// Name names a snapshot, for Snapshot, or selects those of the name, for
// Snapshots. Several may have one name; the newest is meant by it.
func Name(name string) NameOption { return NameOption(name) }

func (o NameOption) snapshot(r *snapshotRequest) { r.Name = string(o) }
func (o NameOption) snapshots(v url.Values)      { v.Set("name", string(o)) }

type snapshotListOption func(url.Values)

func (f snapshotListOption) snapshots(v url.Values) { f(v) }

// Of selects the snapshots of one sandbox.
func Of(sandboxID string) SnapshotListOption {
	return snapshotListOption(func(v url.Values) { v.Set("sandboxID", sandboxID) })
}

// Snapshot keeps the sandbox as it is now, with its processes; it goes on. A
// paused one can be kept too.
func (s *Sandbox) Snapshot(ctx context.Context, opts ...SnapshotOption) (Snapshot, error) {
	return s.client.Snapshot(ctx, s.ID, opts...)
}

// Snapshot is Sandbox.Snapshot by id.
func (c *Client) Snapshot(ctx context.Context, id string, opts ...SnapshotOption) (Snapshot, error) {
	var body snapshotRequest
	for _, o := range opts {
		o.snapshot(&body)
	}
	var out snapshotAnswer
	_, err := c.do(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/snapshots"), in: body, out: &out, long: true})
	return out.snapshot(), err
}

// Snapshots goes through the snapshots, newest first, reading pages as they are
// needed. An error ends it.
func (c *Client) Snapshots(ctx context.Context, opts ...SnapshotListOption) iter.Seq2[Snapshot, error] {
	query := url.Values{"limit": {"100"}}
	for _, o := range opts {
		o.snapshots(query)
	}
	return pages(ctx, c, "/snapshots", query, snapshotAnswer.snapshot)
}

// DeleteSnapshot deletes a snapshot by its id, or all that have a name. One that a
// paused sandbox would go on from is ErrConflict and names the sandbox; one that
// is not there ErrNotFound.
func (c *Client) DeleteSnapshot(ctx context.Context, idOrName string) error {
	_, err := c.do(ctx, request{method: http.MethodDelete, path: "/templates/" + url.PathEscape(idOrName)})
	return err
}

// CreateFromSnapshot makes a sandbox that goes on where a snapshot was taken, with
// a machine id, a host name, an address and random numbers of its own. It is
// Create with the Template set.
func (c *Client) CreateFromSnapshot(ctx context.Context, idOrName string, opts ...CreateOption) (*Sandbox, error) {
	return c.Create(ctx, append(opts, Template(idOrName))...)
}

// A ForkOption shapes forks. What none is given for is the source's.
type ForkOption interface{ fork(*forkRequest) }

type forkRequest struct {
	Count     int               `json:"count"`
	Timeout   int               `json:"timeout,omitempty"`
	AutoPause *bool             `json:"autoPause,omitempty"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	EnvVars   map[string]string `json:"envVars,omitempty"`

	InheritTimeout bool  `json:"inheritTimeout,omitempty"`
	InheritEnv     *bool `json:"inheritEnv,omitempty"`
}

type forkOption func(*forkRequest)

func (f forkOption) fork(r *forkRequest) { f(r) }

// OwnEnv gives forks the variables of Env alone and none of their source's. What runs
// in the source goes on in the fork with those that it has.
func OwnEnv() ForkOption {
	return forkOption(func(r *forkRequest) { no := false; r.InheritEnv = &no })
}

// Forked is what became of one fork: a running sandbox or an error.
type Forked struct {
	Sandbox *Sandbox
	Err     error
}

// Fork makes one more sandbox that goes on where this one is.
func (s *Sandbox) Fork(ctx context.Context, opts ...ForkOption) (*Sandbox, error) {
	all, err := s.client.Fork(ctx, s.ID, 1, opts...)
	if err != nil {
		return nil, err
	}
	return all[0].Sandbox, all[0].Err
}

// Fork makes 1 to 100 sandboxes that go on where a sandbox is, or where a snapshot
// was taken. The sandbox stands still for a moment and goes on. Each fork has an
// outcome of its own; an error of Fork itself means that none was made.
func (c *Client) Fork(ctx context.Context, sandboxOrSnapshot string, count int, opts ...ForkOption) ([]Forked, error) {
	body := forkRequest{Count: count}
	for _, o := range opts {
		o.fork(&body)
	}
	path := sandboxPath(sandboxOrSnapshot, "/fork")
	if !nacre.SandboxID(sandboxOrSnapshot).Valid() {
		path = "/snapshots/" + url.PathEscape(sandboxOrSnapshot) + "/fork"
	} else {
		body.InheritTimeout = body.Timeout == 0 // or it would be E2B's 15 seconds
	}
	var answer []struct {
		Sandbox *sandboxAnswer `json:"sandbox"`
		Error   *struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	if _, err := c.do(ctx, request{method: http.MethodPost, path: path, in: body, out: &answer, long: true}); err != nil {
		return nil, err
	}
	if len(answer) == 0 {
		return nil, &Error{Code: nacre.CodeUnavailable, Message: "the server's answer names no fork"}
	}
	out := make([]Forked, len(answer))
	for i, a := range answer {
		switch {
		case a.Sandbox != nil:
			out[i].Sandbox, out[i].Err = c.handle(*a.Sandbox)
		case a.Error != nil:
			out[i].Err = &Error{Code: codeOfStatus(a.Error.Code), Status: a.Error.Code, Message: a.Error.Message}
		default:
			out[i].Err = &Error{Code: nacre.CodeUnavailable, Message: "the server's answer says nothing of this fork"}
		}
	}
	return out, nil
}
