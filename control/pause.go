package control

import (
	"context"
	"errors"
	"time"

	"github.com/nacrehq/nacre"
)

const (
	// keepTime bounds the keeping of a sandbox, which goes on when its caller has
	// gone: gigabytes of memory are written meanwhile.
	keepTime = 10 * time.Minute
	// firstRetry and lastRetry are between attempts to pause a sandbox whose time is
	// over; the wait doubles.
	firstRetry = 10 * time.Second
	lastRetry  = 5 * time.Minute
)

// Pause keeps a running sandbox and ends its machine; see nacre.SnapshotService.
//
// The record names the snapshot before its files are begun, and the node ends the
// machine when they exist: whenever this process dies, either the machine or the
// snapshot is there, and the reconciler takes what it finds.
func (s *Service) Pause(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, r nacre.PauseRequest) (nacre.Sandbox, error) {
	if err := s.keeps(); err != nil {
		return nacre.Sandbox{}, err
	}
	rec, release, err := s.take(ctx, team, id)
	if err != nil {
		return nacre.Sandbox{}, err
	}
	defer release()
	if err := mayPause(&rec); err != nil {
		return nacre.Sandbox{}, err
	}
	if err := s.mayKeep(ctx, team, true); err != nil {
		return nacre.Sandbox{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTime)
	defer cancel()
	return s.pause(ctx, rec, pausing{filesOnly: r.FilesOnly, healthy: r.Healthy})
}

// pausing says how to pause. With due it is left when the sandbox was given more
// time meanwhile.
type pausing struct{ filesOnly, healthy, due bool }

func mayPause(r *nacre.Sandbox) error {
	if r.State == nacre.StatePaused {
		return nacre.Errorf(nacre.CodeConflict, "sandbox %s is paused already", r.ID)
	}
	return mustRun(r)
}

// keeps tells whether sandboxes can be kept at all.
func (s *Service) keeps() error {
	if s.cfg.Snapshots == nil {
		return nacre.Errorf(nacre.CodeUnsupported, "this server cannot pause sandboxes or keep snapshots of them")
	}
	return nil
}

// pause is called with the sandbox taken.
func (s *Service) pause(ctx context.Context, rec nacre.Sandbox, how pausing) (nacre.Sandbox, error) {
	node := s.nodeOf(rec.Node)
	if node == nil {
		return nacre.Sandbox{}, errNoHost(rec.ID)
	}
	snap := s.snapshotOf(rec, nacre.SnapshotPause)
	snap.FilesOnly = how.filesOnly
	defer s.hand.add(snap.ID)()
	if err := s.cfg.Snapshots.InsertSnapshot(ctx, snap); err != nil {
		return nacre.Sandbox{}, err
	}
	held, err := s.beginPause(ctx, rec, snap.ID, how.due)
	if err != nil {
		s.discard(ctx, snap)
		return nacre.Sandbox{}, err
	}
	man, err := node.Snapshot(ctx, rec.ID, nacre.SnapshotSpec{ID: snap.ID, Pause: true, FilesOnly: how.filesOnly, Healthy: how.healthy})
	if err == nil {
		return s.paused(ctx, held, man)
	}
	return s.unpaused(ctx, held, err)
}

// beginPause moves the record to pausing, with the snapshot that is to be.
func (s *Service) beginPause(ctx context.Context, rec nacre.Sandbox, snap nacre.SnapshotID, due bool) (nacre.Sandbox, error) {
	unlock := s.lock(rec.ID)
	defer unlock()
	if due {
		if m, ok := s.roster.get(rec.ID); !ok || m.due().IsZero() || m.due().After(time.Now()) {
			return nacre.Sandbox{}, errNothing
		}
	}
	held, err := s.cfg.Store.Update(ctx, rec.TeamID, rec.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if err := mayPause(r); err != nil {
			return nil, err
		}
		r.Snapshot = snap
		return nil, r.Move(nacre.StatePausing)
	})
	if err == nil {
		s.roster.halt(rec.ID)
	}
	return held, err
}

// paused records that the snapshot exists and the machine does not.
func (s *Service) paused(ctx context.Context, rec nacre.Sandbox, man nacre.SnapshotManifest) (nacre.Sandbox, error) {
	if _, err := s.kept(ctx, rec.TeamID, man); err != nil {
		return nacre.Sandbox{}, err // the reconciler goes on from here
	}
	out, err := s.cfg.Store.Update(ctx, rec.TeamID, rec.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		return s.toPaused(r, "")
	})
	if err != nil {
		if cur, gerr := s.cfg.Store.Get(ctx, rec.TeamID, rec.ID); gerr == nil && !cur.Alive() { // it was killed meanwhile
			s.discard(ctx, nacre.Snapshot{ID: man.ID, TeamID: rec.TeamID})
			return nacre.Sandbox{}, cur.Gone()
		}
		return nacre.Sandbox{}, err
	}
	s.roster.sleep(out)
	return out, nil
}

// toPaused is part of an update.
func (s *Service) toPaused(r *nacre.Sandbox, detail string) ([]nacre.Event, error) {
	if err := r.Move(nacre.StatePaused); err != nil {
		return nil, err
	}
	r.Machine, r.Detail = "", detail
	if !r.PausedAt.IsZero() { // a resume failed: it is as it was
		return nil, nil
	}
	r.PausedAt = s.now()
	return []nacre.Event{event(*r, nacre.EventPaused, r.PausedAt, map[string]string{"snapshot": string(r.Snapshot)})}, nil
}

// unpaused brings a pause that failed to a legal end: the node says which.
func (s *Service) unpaused(ctx context.Context, rec nacre.Sandbox, cause error) (nacre.Sandbox, error) {
	s.log.Warn("a sandbox could not be paused", "sandbox", rec.ID, "team", rec.TeamID, "err", cause)
	if err := s.settleOne(ctx, rec); err != nil {
		s.log.Error("what became of a pause is not known; it is looked at again", "sandbox", rec.ID, "err", err)
		return nacre.Sandbox{}, cause
	}
	out, err := s.cfg.Store.Get(ctx, rec.TeamID, rec.ID)
	switch {
	case err != nil:
		return nacre.Sandbox{}, err
	case out.State == nacre.StatePaused:
		return out, nil
	case !out.Alive():
		s.discard(ctx, nacre.Snapshot{ID: rec.Snapshot, TeamID: rec.TeamID})
		return nacre.Sandbox{}, out.Gone()
	}
	return nacre.Sandbox{}, &nacre.Error{Code: nacre.ErrorCode(cause), Err: cause,
		Message: "sandbox " + string(rec.ID) + " could not be paused and runs on: " + nacre.ErrorMessage(cause)}
}

// pauseDue pauses a sandbox whose time is over. One that cannot be paused runs on
// for a while and is tried again: what is in it is never given up.
func (s *Service) pauseDue(ctx context.Context, m member) {
	ctx, cancel := context.WithTimeout(ctx, keepTime)
	defer cancel()
	rec, release, err := s.take(ctx, m.team, m.id)
	if err == nil {
		if err = mayPause(&rec); err == nil {
			_, err = s.pause(ctx, rec, pausing{filesOnly: rec.FilesOnly, due: true})
		}
		defer release()
	}
	switch {
	case err == nil:
		return
	case errors.Is(err, errNothing):
		s.roster.back(m.id)
		return
	case nacre.IsCode(err, nacre.CodeNotFound):
		s.roster.leave(m.id)
		return
	}
	if cur, gerr := s.cfg.Store.Get(ctx, m.team, m.id); gerr == nil && cur.State != nacre.StateRunning {
		return // paused by a request, or the reconciler's
	}
	again := s.roster.retryLater(m.id, retryWait)
	s.log.Error("a sandbox whose time is over could not be paused; it runs on and is tried again", "sandbox", m.id, "in", again, "err", err)
	_, uerr := s.cfg.Store.Update(ctx, m.team, m.id, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		now := s.now()
		if r.State != nacre.StateRunning {
			return nil, errNothing
		}
		if !r.AlwaysOn && !r.Deadline.After(now) {
			r.Deadline = now.Add(again)
		}
		r.Detail = "its time was over, but it could not be paused; it runs on and is tried again: " + nacre.ErrorMessage(err)
		return []nacre.Event{event(*r, nacre.EventDeadline, now, map[string]string{
			"deadline": r.Deadline.Format(time.RFC3339Nano), "detail": r.Detail,
		})}, nil
	})
	if uerr != nil && !errors.Is(uerr, errNothing) && ctx.Err() == nil {
		s.log.Error("a failed pause could not be recorded", "sandbox", m.id, "err", uerr)
	}
}

func retryWait(tries int) time.Duration {
	return min(firstRetry<<min(tries-1, 16), lastRetry)
}

func errNoHost(id nacre.SandboxID) error {
	return nacre.Errorf(nacre.CodeUnavailable, "the host of sandbox %s is not known here", id)
}
