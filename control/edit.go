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
	if err := checkEdit(r); err != nil {
		return nacre.Sandbox{}, err
	}
	if err := s.load(ctx); err != nil {
		return nacre.Sandbox{}, err
	}
	unlock := s.lock(id)
	defer unlock()
	was := false
	rec, err := s.cfg.Store.Update(ctx, team, id, func(rec *nacre.Sandbox) ([]nacre.Event, error) {
		if !rec.Alive() {
			return nil, errGone(id)
		}
		was = rec.AlwaysOn
		return s.edit(rec, r), nil
	})
	if err != nil {
		return nacre.Sandbox{}, err
	}
	if r.IdleTimeout != nil {
		s.roster.idles(id, rec.IdleTimeout)
	}
	switch {
	case rec.AlwaysOn && !was:
		s.roster.stays(id)
	case was && !rec.AlwaysOn:
		s.roster.ends(id, rec.Timeout)
	}
	return rec, nil
}

func checkEdit(r nacre.EditRequest) error {
	if r.Name != nil {
		if err := checkName(*r.Name); err != nil {
			return err
		}
	}
	if r.IdleTimeout != nil {
		if err := checkIdle(*r.IdleTimeout); err != nil {
			return err
		}
	}
	return checkMetadata(r.Metadata)
}

// edit is part of an update.
func (s *Service) edit(rec *nacre.Sandbox, r nacre.EditRequest) []nacre.Event {
	if r.Name != nil {
		rec.Name = *r.Name
	}
	if r.Metadata != nil {
		rec.Metadata = maps.Clone(r.Metadata)
	}
	if r.IdleTimeout != nil {
		rec.IdleTimeout = *r.IdleTimeout
	}
	if r.AlwaysOn == nil || *r.AlwaysOn == rec.AlwaysOn {
		return nil
	}
	now := s.now()
	rec.AlwaysOn, rec.Deadline = *r.AlwaysOn, time.Time{}
	data := map[string]string{}
	if !rec.AlwaysOn {
		rec.Deadline = now.Add(rec.Timeout)
		data["deadline"] = rec.Deadline.Format(time.RFC3339Nano)
	}
	return []nacre.Event{event(*rec, nacre.EventDeadline, now, data)}
}
