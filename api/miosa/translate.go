package miosa

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nacrehq/nacre"
)

// What a create may ask for, and what it gets when it does not.
const (
	defaultTemplate = "miosa-sandbox"

	defaultTimeout = 300
	maxTimeout     = 86400

	maxCPUs      = 8
	maxMemoryMB  = 8192
	maxDiskMB    = 10240
	defaultCPUs  = 1
	defaultMemMB = 1024
	defaultDisk  = 3072

	// A machine does not work with less; a smaller size is within the range and gets this.
	leastMemoryMB = 128
	leastDiskMB   = 64
)

// Keys of reserved metadata that only this dialect reads; the others are nacre's labels.
const (
	keySize       = nacre.ReservedMetadata + "size"
	keyPersistent = nacre.ReservedMetadata + "persistent"
	keyTag        = nacre.ReservedMetadata + "tag:"  // and a tag: a list filters by it
	keyTyped      = nacre.ReservedMetadata + "typed" // names of metadata that are no strings, as a JSON list

	keyWorkspaceSlug = nacre.ReservedMetadata + "workspace_slug"
	keyWorkspaceName = nacre.ReservedMetadata + "workspace_name"
	keyProjectSlug   = nacre.ReservedMetadata + "project_slug"
	keyProjectName   = nacre.ReservedMetadata + "project_name"
)

const (
	maxTags = 32
	maxWord = 255 // bytes of a name, a slug, a tag, an external id
)

func createRequest(in newSandbox) (nacre.CreateRequest, error) {
	if err := in.refuse(); err != nil {
		return nacre.CreateRequest{}, err
	}
	timeout, err := number("timeout_sec", in.TimeoutSec, defaultTimeout, 1, maxTimeout)
	if err != nil {
		return nacre.CreateRequest{}, err
	}
	idle, err := number("idle_timeout_sec", in.IdleTimeoutSec, 0, 0, maxTimeout)
	if err != nil {
		return nacre.CreateRequest{}, err
	}
	res, err := in.resources()
	if err != nil {
		return nacre.CreateRequest{}, err
	}
	meta, err := in.reserved()
	if err != nil {
		return nacre.CreateRequest{}, err
	}
	runtime, user, err := takeRuntime(in.Metadata)
	if err != nil {
		return nacre.CreateRequest{}, err
	}
	if err := addMetadata(meta, user); err != nil {
		return nacre.CreateRequest{}, err
	}
	out := nacre.CreateRequest{
		Template: defaultTemplate, Runtime: runtime, Timeout: seconds(timeout), IdleTimeout: seconds(idle), AlwaysOn: in.AlwaysOn,
		Resources: res, Env: in.Env, Metadata: meta, Secure: true,
		Network: nacre.NetworkPolicy{PrivateTraffic: true}, // previews open ports, and nothing else
	}
	if in.TemplateID != "" {
		out.Template = in.TemplateID
	}
	if in.SnapshotID != "" {
		out.Template, out.Resources = in.SnapshotID, nacre.Resources{}
	}
	if in.Name != nil {
		if out.Name, err = word("name", *in.Name); err != nil {
			return out, err
		}
	}
	if in.Persistent {
		out.OnTimeout = nacre.TimeoutPause
		meta[keyPersistent] = "true"
	}
	return out, nil
}

func (in *editSandbox) request() (out nacre.EditRequest, err error) {
	if in.Name != nil {
		name, err := word("name", *in.Name)
		if err != nil {
			return out, err
		}
		out.Name = &name
	}
	if out.Timeout, err = duration("timeout_sec", in.TimeoutSec, 1); err != nil {
		return out, err
	}
	if out.IdleTimeout, err = duration("idle_timeout_sec", in.IdleTimeoutSec, 0); err != nil {
		return out, err
	}
	out.AlwaysOn = in.AlwaysOn
	if in.Slug != nil || in.Tags != nil || in.Metadata != nil {
		out.Metadata = in.metadata
	}
	return out, nil
}

// metadata returns what becomes of a record's metadata.
func (in *editSandbox) metadata(meta map[string]string) (map[string]string, error) {
	user := userMetadata(meta)
	for k, v := range in.Metadata {
		if string(v) == "null" {
			delete(user, k)
		} else {
			user[k] = v
		}
	}
	if meta == nil {
		meta = map[string]string{}
	}
	if err := addMetadata(meta, user); err != nil {
		return nil, err
	}
	if in.Tags != nil {
		if err := setTags(meta, *in.Tags); err != nil {
			return nil, err
		}
	}
	return meta, setSlug(meta, in.Slug)
}

func (in *newSandbox) refuse() error {
	for _, f := range []struct {
		name string
		raw  json.RawMessage
	}{
		{"services", in.Services}, {"readiness_probe", in.ReadinessProbe}, {"database", in.Database}, {"source", in.Source},
		{"github_repo_url", in.GithubRepoURL}, {"setup_file", in.SetupFile}, {"environment", in.Environment},
		{"environment_id", in.EnvironmentID}, {"env_id", in.EnvID}, {"runtime_profile", in.RuntimeProfile},
		{"agent_runtime_profile_id", in.AgentProfile}, {"compute_placement_request", in.Placement},
	} {
		switch string(f.raw) {
		case "", "null", "[]", "{}", `""`, "false":
			continue
		}
		return &nacre.Error{Code: nacre.CodeUnsupported, Field: f.name, Message: f.name + " is not offered by this server; leave the field out"}
	}
	return nil
}

// tier is a named size.
type tier struct{ cpus, memory, disk int }

// tiers are the clients' named sizes as far as they are within the ranges.
var tiers = map[string]tier{
	"xs": {1, 2048, 10240}, "small": {2, 4096, 10240}, "medium": {4, 8192, maxDiskMB},
}

func (in *newSandbox) resources() (nacre.Resources, error) {
	t := tier{defaultCPUs, defaultMemMB, defaultDisk}
	if in.Size != "" {
		named, ok := tiers[in.Size]
		if !ok {
			return nacre.Resources{}, nacre.Invalidf("size", "size must be xs, small or medium: larger ones are beyond %d vCPU, %d MiB of memory and %d MiB of disk", maxCPUs, maxMemoryMB, maxDiskMB)
		}
		t = named
	}
	disk, name := in.DiskSizeMB, "disk_size_mb"
	if disk == nil && in.DiskMB != nil {
		disk, name = in.DiskMB, "disk_mb"
	}
	var out nacre.Resources
	var err error
	if out.CPUs, err = number("cpu_count", in.CPUCount, t.cpus, 1, maxCPUs); err != nil {
		return out, err
	}
	if out.MemoryMiB, err = number("memory_mb", in.MemoryMB, t.memory, 1, maxMemoryMB); err != nil {
		return out, err
	}
	if out.DiskMiB, err = number(name, disk, t.disk, 1, maxDiskMB); err != nil {
		return out, err
	}
	out.MemoryMiB, out.DiskMiB = max(out.MemoryMiB, leastMemoryMB), max(out.DiskMiB, leastDiskMB)
	return out, nil
}

// number checks a whole number; absent is def.
func number(field string, n *int, def, lo, hi int) (int, error) {
	if n == nil {
		return def, nil
	}
	if *n < lo || *n > hi {
		return 0, nacre.Invalidf(field, "%s must be between %d and %d, not %d", field, lo, hi, *n)
	}
	return *n, nil
}

// duration is number for seconds up to maxTimeout; absent is nil.
func duration(field string, n *int, lo int) (*time.Duration, error) {
	if n == nil {
		return nil, nil
	}
	d := seconds(*n)
	_, err := number(field, n, 0, lo, maxTimeout)
	return &d, err
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

// word checks a short text.
func word(field, s string) (string, error) {
	if len(s) > maxWord || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", nacre.Invalidf(field, "%s must have at most %d bytes and no control characters", field, maxWord)
	}
	return s, nil
}

// The words for a sandbox's state.
const (
	stateProvisioning = "provisioning"
	stateRunning      = "running"
	statePaused       = "paused"
	stateDestroyed    = "destroyed"
	stateError        = "error"
)

func stateOf(s nacre.Sandbox) string {
	switch s.State {
	case nacre.StateCreating:
		return stateProvisioning
	case nacre.StateRunning, nacre.StatePausing:
		return stateRunning
	case nacre.StatePaused, nacre.StateResuming:
		return statePaused
	}
	if failed(s.EndReason) {
		return stateError
	}
	return stateDestroyed
}

// failed tells an end that nobody asked for.
func failed(r nacre.EndReason) bool {
	switch r {
	case nacre.EndFailed, nacre.EndCrash, nacre.EndOOM, nacre.EndNodeLost:
		return true
	}
	return false
}

// states expands the wire's words for a filter.
var states = map[string][]nacre.State{
	stateProvisioning: {nacre.StateCreating},
	stateRunning:      {nacre.StateRunning, nacre.StatePausing},
	statePaused:       {nacre.StatePaused, nacre.StateResuming},
	stateDestroyed:    {nacre.StateStopping, nacre.StateEnded},
	stateError:        {nacre.StateStopping, nacre.StateEnded},
}

// reasons are the wire's words for why a sandbox was destroyed.
var reasons = map[nacre.EndReason]string{
	nacre.EndKilled: "api", nacre.EndTimeout: "timeout", nacre.EndIdle: "idle",
	nacre.EndOOM: "oom", nacre.EndCrash: "crash", nacre.EndFailed: "failed", nacre.EndNodeLost: "node_lost",
}

// timestamp is empty, hence null, for the zero time.
func timestamp(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := t.UTC().Format("2006-01-02T15:04:05.000Z")
	return &s
}

func filled(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// sandbox is the object of a record.
func (a *API) sandbox(s nacre.Sandbox) sandbox {
	now := a.Clock()
	out := sandbox{
		ID: string(s.ID), State: stateOf(s), Name: filled(s.Name), Slug: filled(s.Metadata[nacre.LabelSlug]),
		TemplateID: s.Template, ImageID: string(s.BuildID), ParentID: filled(string(s.Parent)),
		Size: filled(s.Metadata[keySize]), CPUCount: s.Resources.CPUs, MemoryMB: s.Resources.MemoryMiB, DiskSizeMB: s.Resources.DiskMiB,
		TimeoutSec: int(s.Timeout / time.Second), IdleTimeoutSec: int(s.IdleTimeout / time.Second),
		AlwaysOn: s.AlwaysOn, Persistent: s.Metadata[keyPersistent] != "",
		PreviewDomain: filled(a.Domain), Metadata: userMetadata(s.Metadata), TenantID: string(s.TeamID),
		CreatedAt: *timestamp(s.CreatedAt), PausedAt: timestamp(s.PausedAt),
	}
	out.Status, out.Ready = out.State, out.State == stateRunning
	for k := range s.Metadata {
		if t, ok := strings.CutPrefix(k, keyTag); ok {
			out.Tags = append(out.Tags, t)
		}
	}
	slices.Sort(out.Tags)
	for _, l := range out.labels() {
		*l.value = filled(s.Metadata[l.key])
	}
	if s.State == nacre.StateCreating {
		return out
	}
	if s.BootPath != "" {
		ms := s.BootTime.Milliseconds()
		out.BootPath, out.BootMS = filled(string(s.BootPath)), &ms
		out.StartedAt, out.ReadyAt = timestamp(s.StartedAt), timestamp(s.StartedAt)
	}
	out.Runtime = string(s.Runtime)
	switch out.State {
	case stateRunning:
		if !s.AlwaysOn && !s.Deadline.IsZero() {
			left := max(0, s.Deadline.Sub(now).Milliseconds())
			out.TimeoutRemainingMS = &left
		}
	case stateDestroyed, stateError:
		out.DestroyedAt = timestamp(s.EndedAt)
		out.DestroyReason = filled(reasons[s.EndReason])
	}
	if out.State == stateError {
		out.Metadata["last_error"] = encode(lastError(s))
	}
	return out
}

func lastError(s nacre.Sandbox) string {
	if s.Detail == "" {
		return string(s.EndReason)
	}
	return string(s.EndReason) + ": " + s.Detail
}
