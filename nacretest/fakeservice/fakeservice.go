// Package fakeservice is a nacre.Service, a nacre.SnapshotService and a
// nacre.TeamStore in memory, for tests of what calls them.
package fakeservice

import (
	"context"
	"errors"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// Service is a nacre.Service in memory: the rules that a dialect can see,
// and no machines.
type Service struct {
	Clock nacre.Clock
	// Fail, when set, is asked before each call, with the method's name.
	Fail func(method string) error
	// OnCreate, when set, is told of each new sandbox.
	OnCreate func(nacre.SandboxID)

	mu        sync.Mutex
	sandboxes map[nacre.SandboxID]nacre.Sandbox
	samples   map[nacre.SandboxID][]nacre.Metric
	logs      map[nacre.SandboxID][]nacre.LogEntry
	templates []nacre.Template
	requests  []nacre.CreateRequest
	snapshots map[nacre.SnapshotID]nacre.Snapshot
	resumes   []nacre.ResumeRequest
	pauses    []nacre.PauseRequest
	forks     []nacre.ForkRequest
}

// New returns one with the template "base".
func New(clock nacre.Clock) *Service {
	if clock == nil {
		clock = time.Now
	}
	return &Service{
		Clock:     clock,
		sandboxes: map[nacre.SandboxID]nacre.Sandbox{},
		samples:   map[nacre.SandboxID][]nacre.Metric{},
		logs:      map[nacre.SandboxID][]nacre.LogEntry{},
		snapshots: map[nacre.SnapshotID]nacre.Snapshot{},
		templates: []nacre.Template{{
			ID: "tbase00000000000000f", Names: []string{"base", "moru-ai/base", "e2bdev/base"}, Public: true,
			Build: "bbase00000000000000f", Resources: nacre.Resources{CPUs: 2, MemoryMiB: 1024, DiskMiB: 4096},
			CreatedAt: time.Unix(1700000000, 0), UpdatedAt: time.Unix(1700000000, 0),
			Use: nacre.TemplateUse{Count: 7, Last: time.Unix(1700000060, 0)},
		}},
	}
}

var _ nacre.Service = (*Service)(nil)

func (f *Service) fail(method string) error {
	if f.Fail == nil {
		return nil
	}
	return f.Fail(method)
}

// Requests returns what Create was asked for, in order.
func (f *Service) Requests() []nacre.CreateRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.requests)
}

// Put adds or replaces a record.
func (f *Service) Put(s nacre.Sandbox) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sandboxes[s.ID] = s
}

// AddMetric and AddLog add what Metrics and Logs will return.
func (f *Service) AddMetric(id nacre.SandboxID, m nacre.Metric) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.samples[id] = append(f.samples[id], m)
}

// AddLog adds an entry to a sandbox's log.
func (f *Service) AddLog(id nacre.SandboxID, e nacre.LogEntry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logs[id] = append(f.logs[id], e)
}

// Create makes a running record of the template "base", of its other names, or of
// a snapshot.
func (f *Service) Create(_ context.Context, team nacre.TeamID, r nacre.CreateRequest) (nacre.Sandbox, error) {
	if err := f.fail("Create"); err != nil {
		return nacre.Sandbox{}, err
	}
	if r.Timeout > 24*time.Hour {
		return nacre.Sandbox{}, nacre.Invalidf("timeout", "timeout cannot be greater than 24 hours")
	}
	if r.Template == "" {
		r.Template = "base"
	}
	if r.Timeout == 0 {
		r.Timeout = 5 * time.Minute
	}
	s, err := f.create(team, r)
	if err == nil && f.OnCreate != nil {
		f.OnCreate(s.ID)
	}
	return s, err
}

func (f *Service) create(team nacre.TeamID, r nacre.CreateRequest) (nacre.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.templates, func(t nacre.Template) bool {
		return string(t.ID) == r.Template || slices.Contains(t.Names, r.Template)
	})
	now := f.Clock()
	if snap, ok := f.namedSnapshot(team, r.Template); i < 0 && ok {
		f.requests = append(f.requests, r)
		return f.fromSnapshot(snap, nacre.ForkRequest{Timeout: r.Timeout, OnTimeout: r.OnTimeout, Metadata: r.Metadata, Env: r.Env}), nil
	}
	if i < 0 {
		return nacre.Sandbox{}, nacre.Errorf(nacre.CodeNotFound, "template %q not found", r.Template)
	}
	if r.OnTimeout == "" {
		r.OnTimeout = nacre.TimeoutKill
	}
	t := f.templates[i]
	s := nacre.Sandbox{
		ID: nacre.NewSandboxID(), TeamID: team,
		Template: r.Template, TemplateID: t.ID, BuildID: t.Build,
		Machine: nacre.NewMachineID(), State: nacre.StateRunning, Resources: t.Resources,
		Metadata: r.Metadata, Env: r.Env, Network: r.Network, Secure: r.Secure,
		Timeout: r.Timeout, OnTimeout: r.OnTimeout, AutoResume: r.AutoResume, FilesOnly: r.FilesOnly, BootPath: nacre.BootStandby, BootTime: 3 * time.Millisecond,
		CreatedAt: now, StartedAt: now, Deadline: now.Add(r.Timeout),
	}
	f.sandboxes[s.ID] = s
	f.requests = append(f.requests, r)
	return s, nil
}

// namedSnapshot finds one by id or the newest of a name; f.mu is held.
func (f *Service) namedSnapshot(team nacre.TeamID, nameOrID string) (nacre.Snapshot, bool) {
	var out nacre.Snapshot
	for _, s := range f.snapshots {
		if s.TeamID == team && s.Kind == nacre.SnapshotUser && (string(s.ID) == nameOrID || s.Name == nameOrID && !s.CreatedAt.Before(out.CreatedAt)) {
			out = s
		}
	}
	return out, out.ID != ""
}

// get returns a record of the team; f.mu is held.
func (f *Service) get(team nacre.TeamID, id nacre.SandboxID) (nacre.Sandbox, error) {
	s, ok := f.sandboxes[id]
	if !ok || team == "" || s.TeamID != team {
		return nacre.Sandbox{}, nacre.Errorf(nacre.CodeNotFound, "sandbox %s not found", id)
	}
	return s, nil
}

// alive is get for one that has not ended; f.mu is held.
func (f *Service) alive(team nacre.TeamID, id nacre.SandboxID) (nacre.Sandbox, error) {
	s, err := f.get(team, id)
	if err == nil && !s.Alive() {
		err = s.Gone()
	}
	return s, err
}

// change changes a record that has not ended, unless fn fails.
func (f *Service) change(method string, team nacre.TeamID, id nacre.SandboxID, fn func(*nacre.Sandbox) error) (nacre.Sandbox, error) {
	if err := f.fail(method); err != nil {
		return nacre.Sandbox{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.alive(team, id)
	if err == nil {
		err = fn(&s)
	}
	if err == nil {
		f.sandboxes[id] = s
	}
	return s, err
}

// cut returns the part of a list that a page shows, and the next one's cursor. Cursors
// are positions.
func cut[T any](all []T, cursor string, limit int) (part []T, next string, err error) {
	offset, err := strconv.Atoi("0" + cursor)
	if err != nil || strings.HasPrefix(cursor, "-") {
		return nil, "", nacre.Invalidf("nextToken", "nextToken is not one that this server gave")
	}
	if limit == 0 {
		limit = 100
	}
	offset = min(offset, len(all))
	end := min(offset+limit, len(all))
	if end < len(all) {
		next = strconv.Itoa(end)
	}
	return all[offset:end], next, nil
}

// Get returns a record.
func (f *Service) Get(_ context.Context, team nacre.TeamID, id nacre.SandboxID) (nacre.Sandbox, error) {
	if err := f.fail("Get"); err != nil {
		return nacre.Sandbox{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.get(team, id)
}

// List filters by team, state and metadata, in either order.
func (f *Service) List(_ context.Context, team nacre.TeamID, q nacre.SandboxFilter) (nacre.SandboxPage, error) {
	if err := f.fail("List"); err != nil {
		return nacre.SandboxPage{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []nacre.Sandbox
	for _, s := range f.sandboxes {
		if s.TeamID == team && (len(q.States) == 0 || slices.Contains(q.States, s.State)) && holds(s.Metadata, q.Metadata) {
			all = append(all, s)
		}
	}
	sort.Slice(all, func(i, j int) bool {
		if !all[i].StartedAt.Equal(all[j].StartedAt) {
			return all[i].StartedAt.After(all[j].StartedAt)
		}
		return all[i].ID < all[j].ID
	})
	if q.OldestFirst {
		slices.Reverse(all)
	}
	part, next, err := cut(all, q.Cursor, q.Limit)
	return nacre.SandboxPage{Sandboxes: part, Next: next}, err
}

func holds(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Kill ends a record.
func (f *Service) Kill(_ context.Context, team nacre.TeamID, id nacre.SandboxID) error {
	_, err := f.change("Kill", team, id, func(s *nacre.Sandbox) error {
		s.State, s.EndReason, s.EndedAt, s.Machine = nacre.StateEnded, nacre.EndKilled, f.Clock(), ""
		return nil
	})
	return err
}

// SetDeadline moves a deadline.
func (f *Service) SetDeadline(_ context.Context, team nacre.TeamID, id nacre.SandboxID, d time.Duration, extendOnly bool) (nacre.Sandbox, error) {
	return f.change("SetDeadline", team, id, func(s *nacre.Sandbox) error {
		if s.State != nacre.StateRunning {
			return conflict(*s)
		}
		if at := f.Clock().Add(d); !extendOnly || at.After(s.Deadline) {
			s.Deadline = at
		}
		return nil
	})
}

// SetNetwork replaces the outbound half.
func (f *Service) SetNetwork(_ context.Context, team nacre.TeamID, id nacre.SandboxID, p nacre.NetworkPolicy) error {
	_, err := f.change("SetNetwork", team, id, func(s *nacre.Sandbox) error {
		s.Network.DenyInternet, s.Network.AllowOut, s.Network.DenyOut = p.DenyInternet, p.AllowOut, p.DenyOut
		return nil
	})
	return err
}

// Metrics returns what AddMetric added.
func (f *Service) Metrics(_ context.Context, team nacre.TeamID, id nacre.SandboxID, from, to time.Time) ([]nacre.Metric, error) {
	if err := f.fail("Metrics"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.get(team, id); err != nil {
		return nil, err
	}
	var out []nacre.Metric
	for _, m := range f.samples[id] {
		if !m.Time.Before(from) && (to.IsZero() || !m.Time.After(to)) {
			out = append(out, m)
		}
	}
	return out, nil
}

// Logs returns what AddLog added.
func (f *Service) Logs(_ context.Context, team nacre.TeamID, id nacre.SandboxID, q nacre.LogQuery) ([]nacre.LogEntry, error) {
	if err := f.fail("Logs"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.get(team, id); err != nil {
		return nil, err
	}
	all := slices.Clone(f.logs[id])
	if q.Backward {
		slices.Reverse(all)
	}
	var out []nacre.LogEntry
	for _, e := range all {
		outside := !q.After.IsZero() && (!q.Backward && !e.Time.After(q.After) || q.Backward && !e.Time.Before(q.After))
		if outside || q.Type != "" && e.Type != q.Type || len(out) == q.Limit {
			continue
		}
		out = append(out, e)
	}
	return out, nil
}

// Templates returns the one template.
func (f *Service) Templates(context.Context, nacre.TeamID) ([]nacre.Template, error) {
	if err := f.fail("Templates"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.templates), nil
}

// Teams is a nacre.TeamStore in memory.
type Teams struct {
	mu      sync.Mutex
	teams   []nacre.Team
	keys    []nacre.Key
	lookups int
	noted   int // calls of KeysUsed
	down    bool
}

var _ nacre.TeamStore = (*Teams)(nil)

// errDown is what a Teams that is down gives as a cause.
var errDown = errors.New("the fake store is down")

// SetDown makes KeyByHash fail as a store does that cannot be reached.
func (f *Teams) SetDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

// Lookups returns how often KeyByHash was called.
func (f *Teams) Lookups() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lookups
}

// NewTeam makes a team with one key and returns both.
func (f *Teams) NewTeam(name string) (nacre.TeamID, string) {
	team, _ := f.EnsureTeam(context.Background(), name)
	secret, key := nacre.NewKey(team.ID, "first", time.Now())
	_ = f.InsertKey(context.Background(), key)
	return team.ID, secret
}

// EnsureTeam as the contract says.
func (f *Teams) EnsureTeam(_ context.Context, name string) (nacre.Team, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.teams {
		if t.Name == name {
			return t, nil
		}
	}
	t := nacre.Team{ID: nacre.NewTeamID(), Name: name, CreatedAt: time.Now()}
	f.teams = append(f.teams, t)
	return t, nil
}

// Teams as the contract says.
func (f *Teams) Teams(context.Context) ([]nacre.Team, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.teams), nil
}

// InsertKey as the contract says.
func (f *Teams) InsertKey(_ context.Context, k nacre.Key) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys = append(f.keys, k)
	return nil
}

// KeyByHash as the contract says.
func (f *Teams) KeyByHash(_ context.Context, hash [32]byte) (nacre.Key, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookups++
	if f.down {
		return nacre.Key{}, nacre.Wrap(nacre.CodeUnavailable, errDown, "the store does not answer")
	}
	for _, k := range f.keys {
		if k.Hash == hash && k.RevokedAt.IsZero() {
			return k, nil
		}
	}
	return nacre.Key{}, nacre.Errorf(nacre.CodeNotFound, "no such key")
}

// Keys as the contract says.
func (f *Teams) Keys(_ context.Context, team nacre.TeamID) ([]nacre.Key, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []nacre.Key
	for _, k := range slices.Backward(f.keys) {
		if k.TeamID == team {
			out = append(out, k)
		}
	}
	return out, nil
}

// RevokeKey as the contract says.
func (f *Teams) RevokeKey(_ context.Context, team nacre.TeamID, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.keys {
		if f.keys[i].ID == id && f.keys[i].TeamID == team && f.keys[i].RevokedAt.IsZero() {
			f.keys[i].RevokedAt = time.Now()
		}
	}
	return nil
}

// KeysUsed as the contract says.
func (f *Teams) KeysUsed(_ context.Context, at map[string]time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.noted++
	for i := range f.keys {
		if t, ok := at[f.keys[i].ID]; ok && t.After(f.keys[i].UsedAt) {
			f.keys[i].UsedAt = t
		}
	}
	return nil
}

// Noted is how often KeysUsed was called.
func (f *Teams) Noted() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.noted
}
