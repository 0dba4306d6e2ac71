package control

import (
	"cmp"
	"context"

	"github.com/nacrehq/nacre"
)

// offer tells what new sandboxes can be made of.
func (s *Service) offer(ctx context.Context) (nacre.Capabilities, error) {
	c, err := s.place().Capacity(ctx)
	return c.Runtime, err
}

// chosen returns the runtime of a new sandbox: what the create asks for, else what its
// template does, else the host's default.
func chosen(can nacre.Capabilities, asked, template nacre.RuntimeName) (nacre.RuntimeName, error) {
	on, err := can.Offers(cmp.Or(asked, template))
	if err != nil && asked == "" {
		return "", nacre.Errorf(nacre.CodeConflict, "the template is made for a runtime that this host does not offer: %s", nacre.ErrorMessage(err))
	}
	if err != nil {
		return "", nacre.Invalidf("Runtime", "%s", nacre.ErrorMessage(err))
	}
	return on.Runtime, nil
}

// mayPauseOn refuses a sandbox that is to be paused later and could not be.
func mayPauseOn(can nacre.Capabilities, rec nacre.Sandbox) error {
	if on, ok := can.Of(rec.Runtime); ok && !on.Snapshots && rec.OnTimeout == nacre.TimeoutPause {
		return nacre.Invalidf("OnTimeout", "sandboxes on the runtime %s cannot be paused here; have it killed at its time-out, or choose another runtime", on.Runtime)
	}
	return nil
}
