package fakeservice

import (
	"context"
	"maps"
	"slices"
	"sort"
	"time"

	"github.com/nacrehq/nacre"
)

var _ nacre.SnapshotService = (*Service)(nil)

// conflict says that a sandbox's state does not permit something.
func conflict(s nacre.Sandbox) error {
	return nacre.Errorf(nacre.CodeConflict, "sandbox %s is %s", s.ID, s.State)
}

// PutSnapshot adds or replaces a record.
func (f *Service) PutSnapshot(s nacre.Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.snapshots[s.ID] = s
}

// keep makes the record of a snapshot; f.mu is held.
func (f *Service) keep(s nacre.Sandbox, kind nacre.SnapshotKind, r nacre.SnapshotRequest) nacre.Snapshot {
	snap := nacre.Snapshot{
		ID: nacre.NewSnapshotID(), TeamID: s.TeamID, Name: r.Name, Comment: r.Comment, Kind: kind, State: nacre.SnapshotReady,
		Sandbox: s.ID, FilesOnly: r.FilesOnly, Template: s.Template, TemplateID: s.TemplateID, BuildID: s.BuildID,
		Resources: s.Resources, Metadata: s.Metadata, Env: s.Env, Network: s.Network, Secure: s.Secure,
		Timeout: s.Timeout, OnTimeout: s.OnTimeout, Bytes: 30 << 20, DiskBytes: 12 << 20, Stopped: 40 * time.Millisecond,
		CreatedAt: f.Clock(),
	}
	if r.Keep > 0 {
		snap.ExpiresAt = snap.CreatedAt.Add(r.Keep)
	}
	f.snapshots[snap.ID] = snap
	return snap
}

// Pause makes a running record paused.
func (f *Service) Pause(_ context.Context, team nacre.TeamID, id nacre.SandboxID, r nacre.PauseRequest) (nacre.Sandbox, error) {
	return f.change("Pause", team, id, func(s *nacre.Sandbox) error {
		if s.State != nacre.StateRunning {
			return conflict(*s)
		}
		f.pauses = append(f.pauses, r)
		s.Snapshot = f.keep(*s, nacre.SnapshotPause, nacre.SnapshotRequest{FilesOnly: r.FilesOnly}).ID
		s.State, s.Machine, s.PausedAt = nacre.StatePaused, "", f.Clock()
		return nil
	})
}

// Pauses returns what sandboxes were paused with, in order.
func (f *Service) Pauses() []nacre.PauseRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.pauses)
}

// Resume makes a paused record run.
func (f *Service) Resume(_ context.Context, team nacre.TeamID, id nacre.SandboxID, r nacre.ResumeRequest) (s nacre.Sandbox, resumed bool, err error) {
	s, err = f.change("Resume", team, id, func(s *nacre.Sandbox) error {
		if resumed = s.State == nacre.StatePaused; resumed {
			f.resumes = append(f.resumes, r)
			s.Origin, s.BootPath = s.Snapshot, nacre.BootWarm
			if r.Boot || f.snapshots[s.Snapshot].FilesOnly {
				s.Origin, s.BootPath = "", nacre.BootCold
			}
			delete(f.snapshots, s.Snapshot)
			s.State, s.Machine, s.Snapshot, s.PausedAt = nacre.StateRunning, nacre.NewMachineID(), "", time.Time{}
			s.StartedAt = f.Clock()
		} else if s.State != nacre.StateRunning {
			return conflict(*s)
		}
		if r.Timeout == 0 {
			r.Timeout = s.Timeout
		}
		if at := f.Clock().Add(r.Timeout); at.After(s.Deadline) {
			s.Deadline = at
		}
		return nil
	})
	return s, resumed, err
}

// Resumes returns what sandboxes were resumed with, in order.
func (f *Service) Resumes() []nacre.ResumeRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.resumes)
}

// Snapshot makes the record of one.
func (f *Service) Snapshot(_ context.Context, team nacre.TeamID, id nacre.SandboxID, r nacre.SnapshotRequest) (snap nacre.Snapshot, err error) {
	_, err = f.change("Snapshot", team, id, func(s *nacre.Sandbox) error {
		snap = f.keep(*s, nacre.SnapshotUser, r)
		return nil
	})
	return snap, err
}

// Restore notes where the sandbox went on from.
func (f *Service) Restore(_ context.Context, team nacre.TeamID, id nacre.SandboxID, snap nacre.SnapshotID) (nacre.Sandbox, error) {
	return f.change("Restore", team, id, func(s *nacre.Sandbox) error {
		from, err := f.snapshot(team, snap)
		if err != nil {
			return err
		}
		if from.Sandbox != id {
			return nacre.Errorf(nacre.CodeConflict, "snapshot %s is not of sandbox %s; Fork makes a new one from it", snap, id)
		}
		s.State, s.Machine, s.Origin, s.PausedAt = nacre.StateRunning, nacre.NewMachineID(), snap, time.Time{}
		return nil
	})
}

// Fork makes running records. Those from the twentieth on fail when the request
// has the metadata "full", so that both outcomes can be seen.
func (f *Service) Fork(_ context.Context, team nacre.TeamID, r nacre.ForkRequest) ([]nacre.Forked, error) {
	if err := f.fail("Fork"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	from, err := f.snapshot(team, r.Snapshot)
	if r.Sandbox != "" {
		var s nacre.Sandbox
		if s, err = f.alive(team, r.Sandbox); err == nil {
			from = f.keep(s, nacre.SnapshotFork, nacre.SnapshotRequest{})
		}
	}
	if err != nil {
		return nil, err
	}
	f.forks = append(f.forks, r)
	out := make([]nacre.Forked, max(r.Count, 1))
	for i := range out {
		if _, full := r.Metadata["full"]; full && i > 0 {
			out[i].Err = nacre.Errorf(nacre.CodeExhausted, "this host is full")
			continue
		}
		out[i].Sandbox = f.fromSnapshot(from, r)
	}
	return out, nil
}

// Forks returns what Fork was asked for, in order.
func (f *Service) Forks() []nacre.ForkRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.forks)
}

// fromSnapshot adds a running record; f.mu is held.
func (f *Service) fromSnapshot(from nacre.Snapshot, r nacre.ForkRequest) nacre.Sandbox {
	now := f.Clock()
	s := nacre.Sandbox{
		ID: nacre.NewSandboxID(), TeamID: from.TeamID, Template: from.Template, TemplateID: from.TemplateID, BuildID: from.BuildID,
		Machine: nacre.NewMachineID(), State: nacre.StateRunning, Resources: from.Resources,
		Metadata: from.Metadata, Env: maps.Clone(from.Env), Network: from.Network, Secure: from.Secure,
		Timeout: from.Timeout, OnTimeout: from.OnTimeout, Origin: from.ID, BootPath: nacre.BootWarm,
		BootTime: 30 * time.Millisecond, CreatedAt: now, StartedAt: now,
	}
	if s.Env == nil || r.OwnEnv {
		s.Env = map[string]string{}
	}
	maps.Copy(s.Env, r.Env)
	if r.Metadata != nil {
		s.Metadata = r.Metadata
	}
	if r.Timeout > 0 {
		s.Timeout = r.Timeout
	}
	if r.OnTimeout != "" {
		s.OnTimeout = r.OnTimeout
	}
	s.Deadline = now.Add(s.Timeout)
	f.sandboxes[s.ID] = s
	return s
}

// snapshot returns a record of the team; f.mu is held.
func (f *Service) snapshot(team nacre.TeamID, id nacre.SnapshotID) (nacre.Snapshot, error) {
	s, ok := f.snapshots[id]
	if !ok || team == "" || s.TeamID != team {
		return nacre.Snapshot{}, nacre.Errorf(nacre.CodeNotFound, "snapshot %s not found", id)
	}
	return s, nil
}

// GetSnapshot returns a record.
func (f *Service) GetSnapshot(_ context.Context, team nacre.TeamID, id nacre.SnapshotID) (nacre.Snapshot, error) {
	if err := f.fail("GetSnapshot"); err != nil {
		return nacre.Snapshot{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snapshot(team, id)
}

// ListSnapshots filters by team, kind, state, sandbox and name.
func (f *Service) ListSnapshots(_ context.Context, team nacre.TeamID, q nacre.SnapshotFilter) (nacre.SnapshotPage, error) {
	if err := f.fail("ListSnapshots"); err != nil {
		return nacre.SnapshotPage{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(q.Kinds) == 0 {
		q.Kinds = []nacre.SnapshotKind{nacre.SnapshotUser}
	}
	var all []nacre.Snapshot
	for _, s := range f.snapshots {
		if s.TeamID == team && slices.Contains(q.Kinds, s.Kind) && (len(q.States) == 0 || slices.Contains(q.States, s.State)) &&
			(q.Sandbox == "" || s.Sandbox == q.Sandbox) && (q.Name == "" || s.Name == q.Name) {
			all = append(all, s)
		}
	}
	sort.Slice(all, func(i, j int) bool {
		if !all[i].CreatedAt.Equal(all[j].CreatedAt) {
			return all[i].CreatedAt.After(all[j].CreatedAt)
		}
		return all[i].ID < all[j].ID
	})
	part, next, err := cut(all, q.Cursor, q.Limit)
	return nacre.SnapshotPage{Snapshots: part, Next: next}, err
}

// DeleteSnapshot forgets one that no paused sandbox holds.
func (f *Service) DeleteSnapshot(_ context.Context, team nacre.TeamID, id nacre.SnapshotID) error {
	if err := f.fail("DeleteSnapshot"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.snapshot(team, id); err != nil {
		return err
	}
	for _, s := range f.sandboxes {
		if s.Alive() && s.Snapshot == id {
			return nacre.Errorf(nacre.CodeConflict, "snapshot %s is held by sandbox %s", id, s.ID)
		}
	}
	delete(f.snapshots, id)
	return nil
}
