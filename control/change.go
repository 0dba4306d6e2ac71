package control

import (
	"context"
	"errors"
	"hash/maphash"
	"time"

	"github.com/nacrehq/nacre"
)

// stopTime bounds the end of a sandbox, which goes on when its caller has gone.
const stopTime = 2 * time.Minute

// lock orders the changes of one sandbox whose halves lie in two places. It is
// held across a call to the store, never across one to a guest.
func (s *Service) lock(id nacre.SandboxID) (unlock func()) {
	m := &s.locks[maphash.String(s.seed, string(id))%uint64(len(s.locks))]
	m.Lock()
	return m.Unlock
}

// end moves the record to ended and tells why; it is part of an update.
func (s *Service) end(r *nacre.Sandbox, reason nacre.EndReason, detail string) ([]nacre.Event, error) {
	if err := r.Move(nacre.StateEnded); err != nil {
		return nil, err
	}
	r.EndReason, r.Detail, r.EndedAt, r.Snapshot = reason, detail, s.now(), ""
	return []nacre.Event{event(*r, nacre.EventEnded, r.EndedAt, map[string]string{"reason": string(reason), "detail": detail})}, nil
}

// Kill ends a sandbox; see nacre.Service. Once begun it is finished, though the
// caller goes away.
func (s *Service) Kill(ctx context.Context, team nacre.TeamID, id nacre.SandboxID) error {
	if !id.Valid() || team == "" {
		return errUnknown()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	return s.stop(ctx, team, id, nacre.EndKilled, "it was killed by a request")
}

// stop decides the end of a sandbox and brings it about.
func (s *Service) stop(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, reason nacre.EndReason, detail string) error {
	rec, err := s.cfg.Store.Update(ctx, team, id, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if !r.Alive() {
			return nil, r.Gone()
		}
		r.EndReason, r.Detail = reason, detail
		return nil, r.Move(nacre.StateStopping)
	})
	if err != nil {
		return err
	}
	s.roster.leave(id)
	return s.finish(ctx, rec)
}

// finish takes the machine of a stopping sandbox down, then says that it ended, and
// lets go of what it would have gone on from. Several may do it at once.
func (s *Service) finish(ctx context.Context, rec nacre.Sandbox) error {
	if node := s.nodeOf(rec.Node); node != nil {
		if err := node.Stop(ctx, rec.ID); err != nil {
			return err
		}
	}
	_, err := s.cfg.Store.Update(ctx, rec.TeamID, rec.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if r.State == nacre.StateEnded {
			return nil, errNothing
		}
		return s.end(r, r.EndReason, r.Detail)
	})
	if errors.Is(err, errNothing) || nacre.IsCode(err, nacre.CodeNotFound) {
		err = nil
	}
	if err == nil {
		s.letGo(ctx, rec.TeamID, rec.Snapshot)
	}
	return err
}

// exited records that a machine ended by itself. The record comes first: until the
// node has forgotten the machine, its reason cannot be lost.
func (s *Service) exited(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, exit nacre.Exit) {
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	rec, err := s.cfg.Store.Update(ctx, team, id, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if !r.Alive() || r.State == nacre.StatePaused {
			return nil, errNothing // whoever is ending it goes on; a paused one needs no machine
		}
		if r.State == nacre.StatePausing || r.State == nacre.StateResuming {
			return nil, errHalfDone
		}
		if r.Machine != "" && exit.Machine != "" && r.Machine != exit.Machine {
			return nil, errNothing // it has another one by now
		}
		return s.end(r, exitReason(exit), exit.Detail)
	})
	if errors.Is(err, errHalfDone) {
		s.settleHalfDone(ctx, team, id)
		return
	}
	if err != nil {
		if !errors.Is(err, errNothing) {
			s.log.Error("the end of a machine could not be recorded; it is tried again", "sandbox", id, "err", err)
		}
		return
	}
	s.roster.leave(id)
	s.log.Info("sandbox ended by itself", "sandbox", id, "team", team, "reason", rec.EndReason, "detail", rec.Detail)
	if node := s.nodeOf(rec.Node); node != nil {
		s.stopMachine(ctx, node, id)
	}
}

// errHalfDone leaves an update because the sandbox may have a snapshot to go on from.
var errHalfDone = errors.New("half done")

// settleHalfDone brings a pause or a resume to its end that nobody has in hand. What
// fails is left to the reconciler.
func (s *Service) settleHalfDone(ctx context.Context, team nacre.TeamID, id nacre.SandboxID) {
	if ok, _ := s.flight.begin(id); !ok {
		return
	}
	defer s.flight.end(id) // an exit that comes now is of the machine that has ended
	rec, err := s.cfg.Store.Get(ctx, team, id)
	if err == nil && (rec.State == nacre.StatePausing || rec.State == nacre.StateResuming) {
		err = s.settleOne(ctx, rec)
	}
	if err != nil && !nacre.IsCode(err, nacre.CodeNotFound) && ctx.Err() == nil {
		s.log.Error("the end of a machine could not be settled; it is tried again", "sandbox", id, "err", err)
	}
}

// exitReason keeps to the reasons that a machine can end for by itself.
func exitReason(e nacre.Exit) nacre.EndReason {
	switch e.Reason {
	case nacre.EndOOM, nacre.EndNodeLost, nacre.EndFailed:
		return e.Reason
	}
	return nacre.EndCrash
}

// SetDeadline moves the deadline to now + d; see nacre.Service.
func (s *Service) SetDeadline(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, d time.Duration, extendOnly bool) (nacre.Sandbox, error) {
	if !id.Valid() || team == "" {
		return nacre.Sandbox{}, errUnknown()
	}
	if err := s.cfg.Limits.checkTimeout(d); err != nil {
		return nacre.Sandbox{}, err
	}
	if err := s.load(ctx); err != nil { // else the deadline below would be lost on the roster
		return nacre.Sandbox{}, err
	}
	unlock := s.lock(id)
	defer unlock()
	var kept nacre.Sandbox
	var at time.Time // when it was decided: a slow commit keeps nobody alive longer
	rec, err := s.cfg.Store.Update(ctx, team, id, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if err := mustRun(r); err != nil {
			return nil, err
		}
		at = time.Now()
		now := s.now()
		until := now.Add(d)
		if r.AlwaysOn || extendOnly && !r.Deadline.Before(until) {
			kept = *r
			return nil, errNothing
		}
		r.Deadline, r.Timeout = until, d
		return []nacre.Event{event(*r, nacre.EventDeadline, now, map[string]string{"deadline": until.Format(time.RFC3339Nano)})}, nil
	})
	if errors.Is(err, errNothing) {
		return kept, nil
	}
	if err != nil {
		return nacre.Sandbox{}, err
	}
	s.roster.setDeadline(id, at.Add(d))
	return rec, nil
}

func mustRun(r *nacre.Sandbox) error {
	switch {
	case !r.Alive():
		return r.Gone()
	case r.State != nacre.StateRunning:
		return nacre.Errorf(nacre.CodeConflict, "sandbox %s is %s; it must be running", r.ID, r.State)
	}
	return nil
}

// SetNetwork replaces the outbound half of the policy; see nacre.Service. The node
// comes first: a record never tells of a policy that was not in force.
func (s *Service) SetNetwork(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, p nacre.NetworkPolicy) error {
	if !id.Valid() || team == "" {
		return errUnknown()
	}
	egress, err := checkNetwork(p)
	if err != nil {
		return err
	}
	unlock := s.lock(id)
	defer unlock()
	rec, err := s.cfg.Store.Get(ctx, team, id)
	if err != nil {
		return err
	}
	if err := mustRun(&rec); err != nil {
		return err
	}
	node := s.nodeOf(rec.Node)
	if node == nil {
		return nacre.Errorf(nacre.CodeUnavailable, "the host of sandbox %s is not known here", id)
	}
	if err := node.SetEgress(ctx, id, egress); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.StoreTime)
	defer cancel()
	_, err = s.cfg.Store.Update(ctx, team, id, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if err := mustRun(r); err != nil {
			return nil, err
		}
		r.Network.DenyInternet, r.Network.AllowOut, r.Network.DenyOut = p.DenyInternet, p.AllowOut, p.DenyOut
		return []nacre.Event{event(*r, nacre.EventNetwork, s.now(), nil)}, nil
	})
	if err != nil {
		if old, perr := rec.Network.Egress(); perr == nil {
			if rerr := node.SetEgress(ctx, id, old); rerr != nil && !nacre.IsCode(rerr, nacre.CodeNotFound) {
				s.log.Error("a network policy is in force that could not be recorded", "sandbox", id, "err", rerr)
			}
		}
	}
	return err
}
