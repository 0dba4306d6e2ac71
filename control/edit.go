package control

import (
	"context"
	"maps"
	"time"

	"github.com/nacrehq/nacre"
)

// Edit changes what the request's fields that are not nil name, of a sandbox in any
// state but an ended one, which is CodeNotFound.
func (s *Service) Edit(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, r nacre.EditRequest) (nacre.Sandbox, error) {
	if !id.Valid() || team == "" {
		return nacre.Sandbox{}, errUnknown()
	}
	if err := s.checkEdit(r); err != nil {
		return nacre.Sandbox{}, err
	}
	if err := s.load(ctx); err != nil {
		return nacre.Sandbox{}, err
	}
	unlock := s.lock(id)
	defer unlock()
	var was nacre.Sandbox
	var at time.Time // when it was decided
	rec, err := s.cfg.Store.Update(ctx, team, id, func(rec *nacre.Sandbox) ([]nacre.Event, error) {
		if !rec.Alive() {
			return nil, rec.Gone()
		}
		was, at = *rec, time.Now()
		return s.edit(rec, r)
	})
	if err != nil {
		return nacre.Sandbox{}, err
	}
	if r.IdleTimeout != nil {
		s.roster.setIdleTimeout(id, rec.IdleTimeout)
	}
	switch {
	case rec.AlwaysOn && !was.AlwaysOn:
		s.roster.clearDeadline(id)
	case !rec.Deadline.Equal(was.Deadline):
		s.roster.setDeadline(id, at.Add(rec.Timeout))
	}
	return rec, nil
}

func (s *Service) checkEdit(r nacre.EditRequest) error {
	if r.Name != nil {
		if err := checkName(*r.Name); err != nil {
			return err
		}
	}
	if r.Timeout != nil {
		if err := s.cfg.Limits.checkTimeout(*r.Timeout); err != nil {
			return err
		}
	}
	if r.IdleTimeout != nil {
		return checkIdle(*r.IdleTimeout)
	}
	return nil
}

// edit is part of an update.
func (s *Service) edit(rec *nacre.Sandbox, r nacre.EditRequest) ([]nacre.Event, error) {
	if r.Name != nil {
		rec.Name = *r.Name
	}
	if r.Metadata != nil {
		meta, err := r.Metadata(maps.Clone(rec.Metadata))
		if err == nil {
			err = checkMetadata(meta)
		}
		if err != nil {
			return nil, err
		}
		rec.Metadata = meta
	}
	if r.IdleTimeout != nil {
		rec.IdleTimeout = *r.IdleTimeout
	}
	if r.Timeout != nil {
		rec.Timeout = *r.Timeout
	}
	was := rec.AlwaysOn
	if r.AlwaysOn != nil {
		rec.AlwaysOn = *r.AlwaysOn
	}
	if rec.AlwaysOn == was && (r.Timeout == nil || was || rec.State != nacre.StateRunning) {
		return nil, nil // the deadline stays
	}
	now := s.now()
	rec.Deadline = time.Time{}
	data := map[string]string{}
	if !rec.AlwaysOn {
		rec.Deadline = now.Add(rec.Timeout)
		data["deadline"] = rec.Deadline.Format(time.RFC3339Nano)
	}
	return []nacre.Event{event(*rec, nacre.EventDeadline, now, data)}, nil
}
