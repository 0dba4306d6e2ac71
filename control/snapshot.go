package control

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/nacrehq/nacre"
)

const maxComment = 4 << 10 // bytes

// Snapshot keeps a running sandbox, which goes on, or a paused one; see
// nacre.SnapshotService. A paused one's own snapshot becomes the user's, and it goes
// on from that: no byte is copied.
func (s *Service) Snapshot(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, r nacre.SnapshotRequest) (nacre.Snapshot, error) {
	if err := s.keeps(); err != nil {
		return nacre.Snapshot{}, err
	}
	if err := checkName(r.Name); err != nil {
		return nacre.Snapshot{}, err
	}
	if len(r.Comment) > maxComment || badText(r.Comment) {
		return nacre.Snapshot{}, nacre.Invalidf("Comment", "Comment must be text of at most %d bytes", maxComment)
	}
	if r.Keep < 0 {
		return nacre.Snapshot{}, nacre.Invalidf("Keep", "Keep must not be negative")
	}
	rec, release, err := s.take(ctx, team, id)
	if err != nil {
		return nacre.Snapshot{}, err
	}
	defer release()
	if rec.State == nacre.StatePaused {
		return s.keepPaused(ctx, rec, r)
	}
	if err := mustRun(&rec); err != nil {
		return nacre.Snapshot{}, err
	}
	if err := s.mayKeep(ctx, team, false); err != nil {
		return nacre.Snapshot{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTime)
	defer cancel()
	snap := s.snapshotOf(rec, nacre.SnapshotUser)
	snap.Name, snap.Comment, snap.FilesOnly = r.Name, r.Comment, r.FilesOnly
	snap.ExpiresAt = expiry(snap.CreatedAt, r.Keep)
	defer s.hand.add(snap.ID)()
	return s.keep(ctx, snap)
}

func expiry(from time.Time, keep time.Duration) time.Time {
	if keep == 0 {
		return time.Time{}
	}
	return from.Add(keep)
}

// keep takes the snapshot of a running sandbox. The caller has it in hand.
func (s *Service) keep(ctx context.Context, snap nacre.Snapshot) (nacre.Snapshot, error) {
	node := s.nodeOf(snap.Node)
	if node == nil {
		return nacre.Snapshot{}, errNoHost(snap.Sandbox)
	}
	if err := s.cfg.Snapshots.InsertSnapshot(ctx, snap); err != nil {
		return nacre.Snapshot{}, err
	}
	man, err := node.Snapshot(ctx, snap.Sandbox, nacre.SnapshotSpec{ID: snap.ID, FilesOnly: snap.FilesOnly})
	var out nacre.Snapshot
	if err == nil {
		out, err = s.kept(ctx, snap.TeamID, man)
	}
	if err != nil {
		s.discard(ctx, snap)
		return nacre.Snapshot{}, err
	}
	return out, nil
}

// keepPaused makes the snapshot that a paused sandbox goes on from the user's.
func (s *Service) keepPaused(ctx context.Context, rec nacre.Sandbox, r nacre.SnapshotRequest) (nacre.Snapshot, error) {
	return s.cfg.Snapshots.UpdateSnapshot(ctx, rec.TeamID, rec.Snapshot, func(n *nacre.Snapshot) ([]nacre.Event, error) {
		switch {
		case n.Kind != nacre.SnapshotPause:
			return nil, nacre.Errorf(nacre.CodeConflict, "sandbox %s is paused at snapshot %s already, and has done nothing since; use that one", rec.ID, n.ID)
		case n.State != nacre.SnapshotReady:
			return nil, nacre.Errorf(nacre.CodeConflict, "sandbox %s is not paused entirely; try again shortly", rec.ID)
		case r.FilesOnly && !n.FilesOnly:
			return nil, nacre.Errorf(nacre.CodeConflict, "sandbox %s is paused with its memory; resume it to keep its files alone", rec.ID)
		}
		n.Kind, n.Name, n.Comment, n.ExpiresAt = nacre.SnapshotUser, r.Name, r.Comment, expiry(s.now(), r.Keep)
		return []nacre.Event{snapshotEvent(*n, nacre.EventSnapshotCreated, s.now())}, nil
	})
}

// snapshotOf is the record of a snapshot that is about to be taken.
func (s *Service) snapshotOf(rec nacre.Sandbox, kind nacre.SnapshotKind) nacre.Snapshot {
	return nacre.Snapshot{
		ID: nacre.NewSnapshotID(), TeamID: rec.TeamID, Kind: kind, State: nacre.SnapshotCreating,
		Sandbox: rec.ID, Node: rec.Node,
		Template: rec.Template, TemplateID: rec.TemplateID, BuildID: rec.BuildID, Resources: rec.Resources,
		Metadata: maps.Clone(rec.Metadata), Env: maps.Clone(rec.Env), Network: rec.Network, Secure: rec.Secure,
		Timeout: rec.Timeout, OnTimeout: rec.OnTimeout, CreatedAt: s.now(),
	}
}

// kept records that a snapshot's files exist. A repeat changes nothing.
func (s *Service) kept(ctx context.Context, team nacre.TeamID, man nacre.SnapshotManifest) (nacre.Snapshot, error) {
	return s.cfg.Snapshots.UpdateSnapshot(ctx, team, man.ID, func(n *nacre.Snapshot) ([]nacre.Event, error) {
		switch n.State {
		case nacre.SnapshotDeleting:
			return nil, nacre.Errorf(nacre.CodeNotFound, "snapshot %s was deleted while it was taken", n.ID)
		case nacre.SnapshotReady:
			return nil, nil
		}
		n.State, n.RestoreKey, n.FilesOnly = nacre.SnapshotReady, man.RestoreKey, man.FilesOnly
		n.Bytes, n.DiskBytes, n.Stopped = man.Bytes(), man.DiskBytes, man.Stopped
		return []nacre.Event{snapshotEvent(*n, nacre.EventSnapshotCreated, s.now())}, nil
	})
}

func snapshotEvent(n nacre.Snapshot, kind nacre.EventKind, at time.Time) nacre.Event {
	data := map[string]string{"snapshot": string(n.ID), "kind": string(n.Kind)}
	if n.Name != "" {
		data["name"] = n.Name
	}
	return nacre.Event{Time: at, TeamID: n.TeamID, SandboxID: n.Sandbox, Kind: kind, Data: data}
}

// discard retires a snapshot and deletes its files. What fails, and what somebody
// still goes on from, is left to the reconciler.
func (s *Service) discard(ctx context.Context, n nacre.Snapshot) {
	if err := s.tryDiscard(ctx, n); err != nil && !nacre.IsCode(err, nacre.CodeConflict) && ctx.Err() == nil {
		s.log.Error("a snapshot could not be deleted; it is tried again", "snapshot", n.ID, "err", err)
	}
}

// tryDiscard returns CodeConflict while somebody holds the snapshot, and CodeNotFound
// when there is none.
func (s *Service) tryDiscard(ctx context.Context, n nacre.Snapshot) error {
	old, err := s.cfg.Snapshots.GetSnapshot(ctx, n.TeamID, n.ID)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var events []nacre.Event
	if old.State == nacre.SnapshotReady {
		events = append(events, snapshotEvent(old, nacre.EventSnapshotDeleted, s.now()))
	}
	gone, err := s.cfg.Snapshots.RetireSnapshot(ctx, n.TeamID, n.ID, events...)
	if err != nil {
		return err
	}
	return s.drop(ctx, gone)
}

// drop deletes the files of a retired snapshot, then its record.
func (s *Service) drop(ctx context.Context, n nacre.Snapshot) error {
	if node := s.nodeOf(n.Node); node != nil {
		if err := node.DeleteSnapshot(ctx, n.ID); err != nil {
			return err
		}
	}
	return s.cfg.Snapshots.DropSnapshot(ctx, n.TeamID, n.ID)
}

// letGo deletes a snapshot that a sandbox held, unless it is somebody's to keep.
func (s *Service) letGo(ctx context.Context, team nacre.TeamID, id nacre.SnapshotID) {
	if id == "" || s.cfg.Snapshots == nil || s.hand.has(id) {
		return
	}
	n, err := s.cfg.Snapshots.GetSnapshot(ctx, team, id)
	if err == nil && transient(n.Kind) {
		s.discard(ctx, n)
	}
}

// transient kinds live only while a sandbox holds them.
func transient(k nacre.SnapshotKind) bool { return k == nacre.SnapshotPause || k == nacre.SnapshotFork }

// GetSnapshot returns a snapshot of the team's.
func (s *Service) GetSnapshot(ctx context.Context, team nacre.TeamID, id nacre.SnapshotID) (nacre.Snapshot, error) {
	if err := s.keeps(); err != nil {
		return nacre.Snapshot{}, err
	}
	n, err := s.cfg.Snapshots.GetSnapshot(ctx, team, id)
	if err == nil && (n.Kind != nacre.SnapshotUser || n.State == nacre.SnapshotDeleting) {
		err = errNoSnapshot()
	}
	if err != nil {
		return nacre.Snapshot{}, err
	}
	return n, nil
}

// ListSnapshots pages through a team's snapshots. Only SnapshotUser is shown, and
// nothing that is being deleted.
func (s *Service) ListSnapshots(ctx context.Context, team nacre.TeamID, f nacre.SnapshotFilter) (nacre.SnapshotPage, error) {
	if s.cfg.Snapshots == nil || team == "" {
		return nacre.SnapshotPage{}, nil
	}
	f.TeamID, f.AllTeams, f.Kinds = team, false, []nacre.SnapshotKind{nacre.SnapshotUser}
	if len(f.States) == 0 {
		f.States = []nacre.SnapshotState{nacre.SnapshotCreating, nacre.SnapshotReady}
	}
	return s.cfg.Snapshots.ListSnapshots(ctx, f)
}

// DeleteSnapshot deletes a snapshot of the team's; see nacre.SnapshotService. Its
// files are gone when it returns, or soon after.
func (s *Service) DeleteSnapshot(ctx context.Context, team nacre.TeamID, id nacre.SnapshotID) error {
	n, err := s.GetSnapshot(ctx, team, id)
	if err != nil {
		return err
	}
	if n.State == nacre.SnapshotCreating {
		return nacre.Errorf(nacre.CodeConflict, "snapshot %s is still being taken; delete it then", id)
	}
	gone, err := s.cfg.Snapshots.RetireSnapshot(ctx, team, id, snapshotEvent(n, nacre.EventSnapshotDeleted, s.now()))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if err := s.drop(ctx, gone); err != nil {
		s.log.Error("the files of a snapshot could not be deleted; it is tried again", "snapshot", id, "err", err)
	}
	return nil
}

func errNoSnapshot() error { return nacre.Errorf(nacre.CodeNotFound, "there is no such snapshot") }

// mayKeep holds a team to what its snapshots may occupy, and to how many sandboxes
// it may have paused.
func (s *Service) mayKeep(ctx context.Context, team nacre.TeamID, pause bool) error {
	l := s.cfg.Limits
	if pause && l.MaxPaused > 0 {
		if n := s.roster.tally(team).paused; n >= l.MaxPaused {
			return nacre.Errorf(nacre.CodeExhausted, "the team has %d paused sandboxes, and may have %d; kill some, then try again", n, l.MaxPaused)
		}
	}
	if l.MaxSnapshotBytes == 0 {
		return nil
	}
	n, bytes, err := s.cfg.Snapshots.SnapshotUse(ctx, team)
	if err == nil && bytes >= l.MaxSnapshotBytes { // by records that may be half a minute old
		if err = s.measureAll(ctx, team); err == nil {
			n, bytes, err = s.cfg.Snapshots.SnapshotUse(ctx, team)
		}
	}
	if err != nil {
		return err
	}
	if bytes >= l.MaxSnapshotBytes {
		return nacre.Errorf(nacre.CodeExhausted, "the team's snapshots and paused sandboxes, %d in all, occupy %s of the %s that they may; delete some, then try again",
			n, size(bytes), size(l.MaxSnapshotBytes))
	}
	return nil
}

func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d bytes", n)
}
