package control

import (
	"context"
	"strconv"
	"time"

	"github.com/nacrehq/nacre"
)

// resumeTime bounds a resume, which goes on when its caller has gone.
const resumeTime = 5 * time.Minute

// resumed is what those who wait for one resume share.
type resumed struct {
	rec nacre.Sandbox
	did bool
}

// Resume brings a paused sandbox back; see nacre.SnapshotService.
func (s *Service) Resume(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, r nacre.ResumeRequest) (nacre.Sandbox, bool, error) {
	if r.Timeout != 0 {
		if err := s.cfg.Limits.checkTimeout(r.Timeout); err != nil {
			return nacre.Sandbox{}, false, err
		}
	}
	rec, err := s.Get(ctx, team, id)
	if err != nil {
		return nacre.Sandbox{}, false, err
	}
	if !rec.Alive() {
		return nacre.Sandbox{}, false, rec.Gone()
	}
	out := resumed{rec: rec}
	if rec.State != nacre.StateRunning {
		if out, err = s.bringBack(ctx, team, id, r); err != nil {
			return nacre.Sandbox{}, false, err
		}
	}
	if !out.did {
		d := r.Timeout
		setDefault(&d, out.rec.Timeout)
		out.rec, err = s.SetDeadline(ctx, team, id, d, true)
	}
	return out.rec, out.did, err
}

// bringBack resumes a sandbox once, however many ask for it at the same time. did
// is true for the one who did. The resume goes on when nobody waits for it any more.
func (s *Service) bringBack(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, r nacre.ResumeRequest) (resumed, error) {
	mine := false
	done := s.resumes.DoChan(string(id), func() (any, error) {
		mine = true
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeTime)
		defer cancel()
		return s.resume(ctx, team, id, r)
	})
	select {
	case <-ctx.Done():
		return resumed{}, nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "sandbox "+string(id)+" is being resumed; ask for it again in a moment")
	case out := <-done:
		if out.Err != nil {
			return resumed{}, out.Err
		}
		res := out.Val.(resumed)
		res.did = res.did && mine
		return res, nil
	}
}

func (s *Service) resume(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, r nacre.ResumeRequest) (resumed, error) {
	if err := s.keeps(); err != nil {
		return resumed{}, err
	}
	rec, release, err := s.take(ctx, team, id)
	if err != nil {
		return resumed{}, err
	}
	defer release()
	if rec.State == nacre.StateRunning {
		return resumed{rec: rec}, nil
	}
	if !s.roster.rouse(id, s.cfg.Limits.MaxPerTeam) {
		return resumed{}, s.errFull()
	}
	held, err := s.cfg.Store.Update(ctx, team, id, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if r.State != nacre.StatePaused {
			return nil, nacre.Errorf(nacre.CodeConflict, "sandbox %s is %s; it cannot be resumed", id, r.State)
		}
		return nil, r.Move(nacre.StateResuming)
	})
	if err != nil {
		s.roster.sleep(rec)
		return resumed{}, err
	}
	out, err := s.goOn(ctx, held, comeback{timeout: r.Timeout, boot: r.Boot, kind: nacre.EventResumed})
	if err != nil {
		return resumed{}, err
	}
	s.letGo(ctx, team, held.Snapshot)
	return resumed{rec: out, did: true}, nil
}

// comeback says how a sandbox goes on from its snapshot.
type comeback struct {
	timeout time.Duration // 0 is its own
	keepEnd bool          // the deadline stays as it is
	boot    bool          // with its files alone
	kind    nacre.EventKind
	was     *nacre.Sandbox // paused at another snapshot, which it goes back to when it cannot go on
}

// goOn gives a resuming sandbox its machine. When that fails it is paused again.
func (s *Service) goOn(ctx context.Context, rec nacre.Sandbox, how comeback) (nacre.Sandbox, error) {
	node := s.nodeOf(rec.Node)
	if node == nil {
		return nacre.Sandbox{}, s.asleepAgain(ctx, rec, how.was, errNoHost(rec.ID))
	}
	spec := specOf(rec)
	spec.Boot = how.boot
	started, err := node.Start(ctx, spec)
	if err != nil {
		return nacre.Sandbox{}, s.asleepAgain(ctx, rec, how.was, notStarted(rec, err))
	}
	var d time.Duration // that it has left, from at on
	var at time.Time
	out, err := s.cfg.Store.Update(ctx, rec.TeamID, rec.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if err := r.Move(nacre.StateRunning); err != nil {
			return nil, err
		}
		at = time.Now()
		now := s.now()
		setDefault(&r.Timeout, s.cfg.Limits.DefaultTimeout)
		timeout := r.Timeout
		if how.timeout != 0 {
			timeout = how.timeout
		}
		if until := now.Add(timeout); !r.AlwaysOn && !how.keepEnd && r.Deadline.Before(until) {
			r.Deadline, r.Timeout = until, timeout // a shorter one than is left says nothing
		}
		d = r.Deadline.Sub(now)
		r.Machine, r.Runtime, r.BootPath, r.BootTime = started.Machine, started.Runtime, started.BootPath, started.BootTime
		r.Origin, r.Snapshot = r.Snapshot, ""
		r.StartedAt, r.PausedAt, r.Detail = now, time.Time{}, ""
		return []nacre.Event{event(*r, how.kind, now, map[string]string{
			"snapshot": string(r.Origin), "boot_path": string(started.BootPath),
			"boot_ms": strconv.FormatInt(started.BootTime.Milliseconds(), 10),
		})}, nil
	})
	if err != nil {
		s.stopMachine(ctx, node, rec.ID)
		return nacre.Sandbox{}, s.asleepAgain(ctx, rec, how.was, err)
	}
	s.roster.run(out, d-time.Since(at))
	return out, nil
}

// notStarted keeps apart a sandbox that is not there and a snapshot that is not.
func notStarted(rec nacre.Sandbox, err error) error {
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return nacre.Wrap(nacre.CodeUnavailable, err, "the snapshot "+string(rec.Snapshot)+" that sandbox "+string(rec.ID)+" would go on from is not on its host")
	}
	return err
}

// asleepAgain records that a sandbox could not go on, and returns what to tell the
// caller. One that was paused elsewhere, unless was is nil, is paused there again. A
// store that cannot be reached leaves the record to the reconciler.
func (s *Service) asleepAgain(ctx context.Context, rec nacre.Sandbox, was *nacre.Sandbox, cause error) error {
	s.log.Warn("a sandbox could not be resumed", "sandbox", rec.ID, "team", rec.TeamID, "snapshot", rec.Snapshot, "err", cause)
	out, err := s.cfg.Store.Update(ctx, rec.TeamID, rec.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if !r.Alive() {
			return nil, r.Gone() // it was killed meanwhile
		}
		if was != nil {
			r.Snapshot, r.PausedAt = was.Snapshot, was.PausedAt
			r.BuildID, r.Runtime, r.Resources = was.BuildID, was.Runtime, was.Resources
		}
		return s.toPaused(r, "it could not be resumed: "+nacre.ErrorMessage(cause))
	})
	switch {
	case nacre.IsCode(err, nacre.CodeNotFound):
		return err
	case err != nil:
		s.log.Error("a failed resume could not be recorded; it is tried again", "sandbox", rec.ID, "err", err)
	default:
		s.roster.sleep(out)
	}
	return cause
}

func (s *Service) errFull() error {
	return nacre.Errorf(nacre.CodeExhausted, "the team has %d sandboxes already, as many as it may; end one, then try again", s.cfg.Limits.MaxPerTeam)
}

// Asleep returns the route of a sandbox that traffic wakes; see nacre.Waker.
func (s *Service) Asleep(id nacre.SandboxID) (nacre.Route, bool) { return s.roster.asleep(id) }

// Sleepers calls fn for each sandbox that traffic wakes; see nacre.Waker.
func (s *Service) Sleepers(fn func(nacre.Route) bool) {
	for _, r := range s.roster.sleepers() {
		if !fn(r) {
			return
		}
	}
}

// Wake resumes a sandbox that traffic came for; see nacre.Waker.
func (s *Service) Wake(ctx context.Context, id nacre.SandboxID) error {
	if err := s.load(ctx); err != nil {
		return err
	}
	m, ok := s.roster.get(id)
	if !ok {
		return errGone(id)
	}
	_, err := s.bringBack(ctx, m.team, id, nacre.ResumeRequest{})
	return err
}

// Touch says that a sandbox was used; see nacre.Activity.
func (s *Service) Touch(id nacre.SandboxID) { s.roster.touch(id) }

// LastUse tells when a sandbox was used last; see nacre.Activity.
func (s *Service) LastUse(id nacre.SandboxID) time.Time { return s.roster.lastUse(id) }

// Load brings the store's records into memory, where Asleep answers from. Whatever
// needs them does it too.
func (s *Service) Load(ctx context.Context) error { return s.load(ctx) }

var (
	_ nacre.SnapshotService = (*Service)(nil)
	_ nacre.Waker           = (*Service)(nil)
	_ nacre.Activity        = (*Service)(nil)
)
