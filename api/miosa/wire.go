package miosa

import (
	"encoding/json"

	"github.com/nacrehq/nacre"
)

// The wire's shapes. A pointer is for what may be null in an answer, or absent in a
// request.

// newSandbox is the body of a create.
type newSandbox struct {
	TemplateID string  `json:"template_id"`
	SnapshotID string  `json:"snapshot_id"`
	Name       *string `json:"name"`
	Slug       *string `json:"slug"`

	Size       string `json:"size"`
	CPUCount   *int   `json:"cpu_count"`
	MemoryMB   *int   `json:"memory_mb"`
	DiskSizeMB *int   `json:"disk_size_mb"`
	DiskMB     *int   `json:"disk_mb"` // the name before

	TimeoutSec     *int `json:"timeout_sec"`
	IdleTimeoutSec *int `json:"idle_timeout_sec"`
	AlwaysOn       bool `json:"always_on"`
	Persistent     bool `json:"persistent"`

	Env        map[string]string          `json:"env"`
	Metadata   map[string]json.RawMessage `json:"metadata"`
	Tags       tags                       `json:"tags"`
	Region     string                     `json:"region"` // every region is here
	Entrypoint string                     `json:"entrypoint"`
	attribution

	// Known, and not offered: refused when set, for ignoring them would give a sandbox
	// that is not what was asked for.
	Services       json.RawMessage `json:"services"`
	ReadinessProbe json.RawMessage `json:"readiness_probe"`
	Database       json.RawMessage `json:"database"`
	Source         json.RawMessage `json:"source"`
	GithubRepoURL  json.RawMessage `json:"github_repo_url"`
	SetupFile      json.RawMessage `json:"setup_file"`
	Environment    json.RawMessage `json:"environment"`
	EnvironmentID  json.RawMessage `json:"environment_id"`
	EnvID          json.RawMessage `json:"env_id"`
	RuntimeProfile json.RawMessage `json:"runtime_profile"`
	AgentProfile   json.RawMessage `json:"agent_runtime_profile_id"`
	Placement      json.RawMessage `json:"compute_placement_request"`
}

// attribution says for whom a sandbox is; it is kept and found by, and means
// nothing here.
type attribution struct {
	WorkspaceID       *string `json:"workspace_id"`
	WorkspaceSlug     *string `json:"workspace_slug"`
	WorkspaceName     *string `json:"workspace_name"`
	ProjectID         *string `json:"project_id"`
	ProjectSlug       *string `json:"project_slug"`
	ProjectName       *string `json:"project_name"`
	ExternalSpaceID   *string `json:"external_workspace_id"`
	ExternalUserID    *string `json:"external_user_id"`
	ExternalProjectID *string `json:"external_project_id"`
}

// sandbox is the object that every sandbox call answers with.
type sandbox struct {
	ID     string `json:"id"`
	State  string `json:"state"`
	Status string `json:"status"` // the same, for one of the clients
	Ready  bool   `json:"ready"`

	Name       *string `json:"name"`
	Slug       *string `json:"slug"`
	TemplateID string  `json:"template_id"`
	ImageID    string  `json:"image_id"`
	ParentID   *string `json:"parent_id"`

	Size       *string `json:"size"`
	Contract   *string `json:"resource_contract"`
	CPUCount   int     `json:"cpu_count"`
	MemoryMB   int     `json:"memory_mb"`
	DiskSizeMB int     `json:"disk_size_mb"`

	TimeoutSec         int    `json:"timeout_sec"`
	TimeoutRemainingMS *int64 `json:"timeout_remaining_ms"`
	IdleTimeoutSec     int    `json:"idle_timeout_sec"`
	AlwaysOn           bool   `json:"always_on"`
	Persistent         bool   `json:"persistent"`

	BootPath      *string `json:"boot_path"`
	BootMS        *int64  `json:"boot_ms"`
	Runtime       string  `json:"runtime,omitempty"` // ours
	PreviewURL    *string `json:"preview_url"`
	PreviewDomain *string `json:"preview_domain"`

	Metadata map[string]json.RawMessage `json:"metadata"`
	Tags     []string                   `json:"tags,omitempty"` // some clients die on an empty list
	TenantID string                     `json:"tenant_id"`
	OwnerID  *string                    `json:"owner_id"`
	attribution

	CreatedAt       string  `json:"created_at"`
	StartedAt       *string `json:"started_at"`
	ReadyAt         *string `json:"ready_at"`
	PausedAt        *string `json:"paused_at"`
	DestroyedAt     *string `json:"destroyed_at"`
	DestroyReason   *string `json:"destroy_reason"`
	LastActivityAt  *string `json:"last_activity_at"`
	TotalRuntimeSec *int64  `json:"total_runtime_sec"`
}

// editSandbox is the body of an update.
type editSandbox struct {
	Name           *string                    `json:"name"`
	Slug           *string                    `json:"slug"`
	Tags           *tags                      `json:"tags"`
	Metadata       map[string]json.RawMessage `json:"metadata"`
	AlwaysOn       *bool                      `json:"always_on"`
	TimeoutSec     *int                       `json:"timeout_sec"`
	IdleTimeoutSec *int                       `json:"idle_timeout_sec"`
}

// tags is a list of words, or an object of which each pair becomes "key=value", or
// the key alone when the value is empty.
type tags []string

func (t *tags) UnmarshalJSON(b []byte) error {
	var words []string
	if json.Unmarshal(b, &words) == nil {
		*t = words
		return nil
	}
	var pairs map[string]string
	if json.Unmarshal(b, &pairs) != nil {
		return nacre.Invalidf("tags", "tags must be a list of strings")
	}
	*t = tagsOf(pairs)
	return nil
}

type extendBody struct {
	TimeoutSec *int `json:"timeout_sec"`
}

type resumeBody struct {
	Env map[string]string `json:"env"`
}

type forkBody struct {
	SnapshotID string                     `json:"snapshot_id"`
	Name       string                     `json:"name"`
	Metadata   map[string]json.RawMessage `json:"metadata"`
	TimeoutSec *int                       `json:"timeout_sec"`
	TemplateID string                     `json:"template_id"`
	Env        map[string]string          `json:"env"`
	attribution
}

type execBody struct {
	Command    string            `json:"command"`
	Cwd        string            `json:"cwd"`
	Dir        string            `json:"dir"`
	WorkingDir string            `json:"working_dir"`
	Env        map[string]string `json:"env"`
	Timeout    *float64          `json:"timeout"`
	TimeoutSec *float64          `json:"timeout_sec"`
	Detached   bool              `json:"detached"`
	Name       string            `json:"name"`
}

type execResult struct {
	Stdout     string `json:"stdout"`
	Stderr     string `json:"stderr"`
	ExitCode   int    `json:"exit_code"`
	DurationMS int64  `json:"duration_ms"`
	Output     string `json:"output"` // both, when they are not long
	Success    bool   `json:"success"`
	TimedOut   bool   `json:"timed_out,omitempty"`
	Truncated  bool   `json:"truncated,omitempty"`
}

// streamEvent is one line of output, or the end.
type streamEvent struct {
	Type       string  `json:"type"`
	Line       *string `json:"line,omitempty"`
	ExitCode   *int    `json:"exit_code,omitempty"`
	DurationMS *int64  `json:"duration_ms,omitempty"`
	TimedOut   bool    `json:"timed_out,omitempty"`
	Message    string  `json:"message,omitempty"`
}

// process is a job; pid is a string for the clients' sake.
type process struct {
	PID        string  `json:"pid"`
	ID         string  `json:"id"`
	JobID      string  `json:"job_id"`
	CommandID  string  `json:"command_id"`
	Name       string  `json:"name"`
	Command    string  `json:"command"`
	Cwd        string  `json:"cwd"`
	Status     string  `json:"status"` // running, exited, killed
	State      string  `json:"state"`
	StartedAt  string  `json:"started_at"`
	EndedAt    *string `json:"ended_at"`
	ExitCode   *int    `json:"exit_code"`
	DurationMS *int64  `json:"duration_ms"`
}

type commandBody struct {
	Command        string            `json:"command"`
	Cwd            string            `json:"cwd"`
	Env            map[string]string `json:"env"`
	TimeoutSeconds *float64          `json:"timeout_seconds"`
	Stdin          *string           `json:"stdin"`
	Detached       bool              `json:"detached"`
	Name           string            `json:"name"`
	TTY            bool              `json:"tty"`
	Interactive    bool              `json:"interactive"`
	Sudo           bool              `json:"sudo"`
	User           string            `json:"user"`
}

type terminalBody struct {
	Cols  *int              `json:"cols"`
	Rows  *int              `json:"rows"`
	Shell string            `json:"shell"`
	Cwd   string            `json:"cwd"`
	Env   map[string]string `json:"env"`
}

type terminalSession struct {
	SessionID string `json:"session_id"`
	ID        string `json:"id"`
	WSURL     string `json:"ws_url"`
	URL       string `json:"url"`
	Token     string `json:"token"`
	ExpiresAt string `json:"expires_at"`
	Cols      int    `json:"cols"`
	Rows      int    `json:"rows"`
	Shell     string `json:"shell"`
	PID       string `json:"pid"`
}
