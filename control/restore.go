package control

import (
	"context"
	"time"

	"github.com/nacrehq/nacre"
)

// maxAncestors bounds the way from a sandbox up to what it was forked from.
const maxAncestors = 64

// Restore puts a sandbox back to a snapshot; see nacre.SnapshotService. From the
// moment that the record says so, what the sandbox did since the snapshot is given
// up: a crash leaves it paused there.
func (s *Service) Restore(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, snap nacre.SnapshotID) (nacre.Sandbox, error) {
	n, err := s.GetSnapshot(ctx, team, snap)
	if err != nil {
		return nacre.Sandbox{}, err
	}
	rec, release, err := s.take(ctx, team, id)
	if err != nil {
		return nacre.Sandbox{}, err
	}
	defer release()
	if err := s.mayRestore(ctx, rec, n); err != nil {
		return nacre.Sandbox{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeTime)
	defer cancel()
	node := s.nodeOf(rec.Node)
	if node == nil {
		return nacre.Sandbox{}, errNoHost(id)
	}
	if err := node.CheckSnapshot(ctx, n.ID); err != nil {
		return nacre.Sandbox{}, err
	}
	if rec.State == nacre.StatePaused {
		return s.restorePaused(ctx, rec, n)
	}
	if !s.roster.rouse(id, s.cfg.Limits.MaxPerTeam) {
		return nacre.Sandbox{}, s.errFull()
	}
	held, err := s.beginRestore(ctx, rec, n)
	if err != nil {
		return nacre.Sandbox{}, err
	}
	if err := node.Stop(ctx, id); err != nil {
		return nacre.Sandbox{}, s.asleepAgain(ctx, held, nil, err)
	}
	s.used(ctx, n)
	return s.goOn(ctx, held, comeback{keepEnd: true, kind: nacre.EventRestored})
}

// restorePaused puts a paused sandbox back to a snapshot. What it was paused at stays
// until it runs: when that fails it is paused there as before.
func (s *Service) restorePaused(ctx context.Context, rec nacre.Sandbox, n nacre.Snapshot) (nacre.Sandbox, error) {
	if !s.roster.rouse(rec.ID, s.cfg.Limits.MaxPerTeam) {
		return nacre.Sandbox{}, s.errFull()
	}
	remove := s.hand.add(rec.Snapshot)
	held, err := s.beginRestore(ctx, rec, n)
	if err != nil {
		remove()
		s.roster.sleep(rec)
		return nacre.Sandbox{}, err
	}
	s.used(ctx, n)
	out, err := s.goOn(ctx, held, comeback{kind: nacre.EventRestored, was: &rec})
	remove()
	if rec.Snapshot != n.ID {
		s.letGo(ctx, rec.TeamID, rec.Snapshot) // unless it is held, again
	}
	return out, err
}

// beginRestore moves the record to resuming, at the snapshot.
func (s *Service) beginRestore(ctx context.Context, rec nacre.Sandbox, n nacre.Snapshot) (nacre.Sandbox, error) {
	unlock := s.lock(rec.ID)
	defer unlock()
	held, err := s.cfg.Store.Update(ctx, rec.TeamID, rec.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if !r.Alive() {
			return nil, r.Gone()
		}
		r.Snapshot, r.Machine, r.PausedAt = n.ID, "", time.Time{}
		r.BuildID, r.Runtime, r.Resources = n.BuildID, nacre.RuntimeOf(n.RestoreKey), n.Resources
		return nil, r.Move(nacre.StateResuming)
	})
	if err == nil {
		s.roster.halt(rec.ID)
	}
	return held, err
}

// mayRestore tells whether the sandbox may be put back to the snapshot, before
// anything is given up.
func (s *Service) mayRestore(ctx context.Context, rec nacre.Sandbox, n nacre.Snapshot) error {
	if rec.State != nacre.StateRunning && rec.State != nacre.StatePaused {
		return nacre.Errorf(nacre.CodeConflict, "sandbox %s is %s; it must be running or paused", rec.ID, rec.State)
	}
	if n.Node != rec.Node {
		return nacre.Errorf(nacre.CodeUnsupported, "snapshot %s is on another host than sandbox %s", n.ID, rec.ID)
	}
	of := rec
	for range maxAncestors {
		if of.ID == n.Sandbox || of.Parent == n.Sandbox {
			return s.mayStart(ctx, n)
		}
		if of.Parent == "" {
			break
		}
		var err error
		if of, err = s.cfg.Store.Get(ctx, rec.TeamID, of.Parent); nacre.IsCode(err, nacre.CodeNotFound) {
			break // so long ago that nobody knows
		} else if err != nil {
			return err
		}
	}
	return nacre.Errorf(nacre.CodeConflict, "snapshot %s is not one of sandbox %s, nor of what it was forked from; fork the snapshot instead", n.ID, rec.ID)
}

// mayStart tells whether a snapshot can be gone on from, as far as that can be known
// without trying. One that was deleted meanwhile is CodeNotFound.
func (s *Service) mayStart(ctx context.Context, n nacre.Snapshot) error {
	if n.State != nacre.SnapshotReady {
		return nacre.Errorf(nacre.CodeConflict, "snapshot %s is %s; it must be ready", n.ID, n.State)
	}
	node := s.nodeOf(n.Node)
	if node == nil {
		return nacre.Errorf(nacre.CodeUnavailable, "the host of snapshot %s is not known here", n.ID)
	}
	c, err := node.Capacity(ctx)
	if err != nil {
		return err
	}
	if err := c.Runtime.CanRestore(n.ID, n.RestoreKey); err != nil {
		return err
	}
	list, err := node.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.ID == n.ID {
			return nil
		}
	}
	// It may have been deleted since it was looked up, and its files with it.
	if now, err := s.cfg.Snapshots.GetSnapshot(ctx, n.TeamID, n.ID); err != nil {
		return err
	} else if now.State == nacre.SnapshotDeleting {
		return errNoSnapshot()
	}
	return nacre.Errorf(nacre.CodeUnavailable, "the files of snapshot %s are not on its host", n.ID)
}

// used keeps the moment that a snapshot was gone on from last.
func (s *Service) used(ctx context.Context, n nacre.Snapshot) {
	if n.Kind != nacre.SnapshotUser {
		return
	}
	_, err := s.cfg.Snapshots.UpdateSnapshot(ctx, n.TeamID, n.ID, func(r *nacre.Snapshot) ([]nacre.Event, error) {
		r.LastUsedAt = s.now()
		return nil, nil
	})
	if err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
		s.log.Warn("the use of a snapshot could not be recorded", "snapshot", n.ID, "err", err)
	}
}
