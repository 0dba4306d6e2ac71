package control

import (
	"context"
	"errors"
	"slices"

	"github.com/nacrehq/nacre"
	"golang.org/x/sync/errgroup"
)

// presence is what a node says of a sandbox's machine.
type presence int

const (
	absent  presence = iota // no machine
	present                 // it runs
	exited                  // it ended by itself and was not stopped yet
)

// verdict is the one legal answer to a difference between record and machine. The
// record changes first, then the machine is stopped; but a stopping sandbox has
// ended only when its machine is gone.
type verdict struct {
	to     nacre.State // "" leaves the record
	reason nacre.EndReason
	detail string
	stop   bool // what there is of a machine
}

// decide compares a record's state ("" for none) with its machine: the node is
// believed over the store.
func decide(state nacre.State, p presence, exit nacre.Exit) verdict {
	v := verdict{stop: p != absent}
	switch state {
	case nacre.StateCreating: // nobody waits for it any more
		v.to, v.reason, v.detail = nacre.StateEnded, nacre.EndFailed, "the server was restarted while the sandbox was created"
	case nacre.StateRunning, nacre.StatePausing:
		switch p {
		case present:
			v.stop = false
			if state == nacre.StatePausing {
				v.to = nacre.StateRunning // the pause did not come to its end
			}
		case absent:
			v.to, v.reason, v.detail = nacre.StateEnded, nacre.EndNodeLost, "its machine is no longer on its host"
		case exited:
			v.to, v.reason, v.detail = nacre.StateEnded, exitReason(exit), exit.Detail
		}
	case nacre.StateResuming: // what was paused is still kept
		v.to = nacre.StatePaused
	case nacre.StateStopping:
		v.to = nacre.StateEnded // for the reason that was decided
	case nacre.StatePaused, nacre.StateEnded, "":
	}
	return v
}

func (s *Service) keepReconciled(ctx context.Context) {
	pause := s.cfg.Reconcile
	for ok := true; ok; ok = wait(ctx, pause) {
		pause = s.cfg.Reconcile
		if err := s.reconcile(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("records and machines could not be compared; it is tried again", "err", err)
			pause = retryAfter
		}
	}
}

// reconcile compares every record that is alive with the machines.
//
// The records are read before the machines: a sandbox that comes to life between
// the two shows as a machine without a record, and is looked up again; one that
// ends shows as a record that has changed since, and is left alone.
func (s *Service) reconcile(ctx context.Context) error {
	members := s.settled()
	records, err := s.aliveRecords(ctx)
	if err != nil {
		return err
	}
	s.enroll(members, records)
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, node := range s.nodes {
		machines, err := node.Machines(ctx)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		byID := make(map[nacre.SandboxID]nacre.MachineStatus, len(machines))
		for _, m := range machines {
			byID[m.Sandbox] = m
			if _, ok := records[m.Sandbox]; !ok {
				g.Go(func() error { return s.settleStray(ctx, node, m) })
			}
		}
		for _, rec := range records {
			if rec.Node != node.ID() {
				continue
			}
			p, exit := absent, nacre.Exit{}
			if m, ok := byID[rec.ID]; ok {
				if p = present; m.Exit != nil {
					p, exit = exited, *m.Exit
				}
			}
			if v := decide(rec.State, p, exit); (v.to != "" || v.stop) && !s.flight.has(rec.ID) {
				g.Go(func() error { return s.settle(ctx, node, rec, v) })
			}
		}
	}
	return g.Wait()
}

// settle carries a verdict out, unless the record changed since it was read.
func (s *Service) settle(ctx context.Context, node nacre.Node, rec nacre.Sandbox, v verdict) error {
	if rec.State == nacre.StateStopping {
		return s.finish(ctx, rec)
	}
	if v.to != "" {
		_, err := s.cfg.Store.Update(ctx, rec.TeamID, rec.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
			if r.Version != rec.Version {
				return nil, errNothing
			}
			if v.to == nacre.StateEnded {
				return s.end(r, v.reason, v.detail)
			}
			return nil, r.Move(v.to)
		})
		if errors.Is(err, errNothing) || nacre.IsCode(err, nacre.CodeNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		s.log.Warn("record and machine differed", "sandbox", rec.ID, "team", rec.TeamID, "was", rec.State, "is", v.to, "reason", v.reason, "detail", v.detail)
		if v.to == nacre.StateEnded {
			s.roster.leave(rec.ID)
		}
	}
	if v.stop {
		return node.Stop(ctx, rec.ID)
	}
	return nil
}

// settleStray stops a machine that no living record claims.
func (s *Service) settleStray(ctx context.Context, node nacre.Node, m nacre.MachineStatus) error {
	if s.flight.has(m.Sandbox) {
		return nil
	}
	rec, err := s.cfg.Store.Get(ctx, m.Team, m.Sandbox)
	switch {
	case err != nil && !nacre.IsCode(err, nacre.CodeNotFound):
		return err
	case err == nil && rec.State != nacre.StateEnded:
		return nil // it came to life meanwhile; the next round compares it
	}
	s.log.Warn("a machine without a living record is stopped", "sandbox", m.Sandbox, "machine", m.Machine)
	return node.Stop(ctx, m.Sandbox)
}

// aliveRecords reads everything that has not ended.
func (s *Service) aliveRecords(ctx context.Context) (map[nacre.SandboxID]nacre.Sandbox, error) {
	f := nacre.SandboxFilter{AllTeams: true, Limit: 1000, States: []nacre.State{
		nacre.StateCreating, nacre.StateRunning, nacre.StatePausing, nacre.StatePaused, nacre.StateResuming, nacre.StateStopping,
	}}
	out := map[nacre.SandboxID]nacre.Sandbox{}
	for {
		page, err := s.cfg.Store.List(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, rec := range page.Sandboxes {
			out[rec.ID] = rec
		}
		if page.Next == "" {
			return out, nil
		}
		f.Cursor = page.Next
	}
}

// load brings the store's records onto the roster, once.
func (s *Service) load(ctx context.Context) error {
	if s.roster.isLoaded() {
		return nil
	}
	members := s.settled()
	records, err := s.aliveRecords(ctx)
	if err == nil {
		s.enroll(members, records)
	}
	return err
}

// enroll makes the roster agree with the records. before is who was on it when the
// records were not read yet: who is not among them has ended.
func (s *Service) enroll(before []nacre.SandboxID, records map[nacre.SandboxID]nacre.Sandbox) {
	now := s.now()
	for _, rec := range records {
		if !rec.Alive() {
			continue
		}
		if _, known := s.roster.get(rec.ID); known {
			continue
		}
		s.roster.enter(rec.TeamID, rec.ID, 0)
		if rec.State == nacre.StateRunning {
			s.roster.ends(rec.ID, max(0, rec.Deadline.Sub(now)))
		}
	}
	for _, id := range before {
		if rec, ok := records[id]; !ok || !rec.Alive() {
			s.roster.leave(id)
		}
	}
	s.roster.setLoaded()
}

// settled returns who is on the roster and not being created: the place in the
// order of records of these no longer changes, so no page of a list misses them.
func (s *Service) settled() []nacre.SandboxID {
	return slices.DeleteFunc(s.roster.ids(), s.flight.has)
}

// ids returns who is on the roster.
func (r *roster) ids() []nacre.SandboxID {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]nacre.SandboxID, 0, len(r.alive))
	for id := range r.alive {
		out = append(out, id)
	}
	return out
}

func (r *roster) isLoaded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loaded
}

func (r *roster) setLoaded() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loaded = true
}

var _ nacre.Service = (*Service)(nil)
