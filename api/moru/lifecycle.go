package moru

import (
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// refreshDefault and refreshMax are E2B's for a refresh.
const (
	refreshDefault = 15 * time.Second
	refreshMax     = time.Hour
)

// setTimeout moves the end to now + timeout, later or earlier.
func (d *dialect) setTimeout(c *api.Call) error {
	var in timeoutBody
	if err := readObject(c, &in); err != nil {
		return err
	}
	if in.Timeout == nil {
		return nacre.Invalidf("timeout", "timeout is missing; it is the number of seconds from now")
	}
	timeout, err := duration("timeout", in.Timeout, 0)
	if err != nil {
		return err
	}
	if _, err := d.setDeadline(c, timeout, false); err != nil {
		return err
	}
	return c.NoContent()
}

// refresh moves the end to now + duration unless it is later already.
func (d *dialect) refresh(c *api.Call) error {
	var in refreshBody
	if _, err := c.Read(&in); err != nil {
		return err
	}
	if in.Duration != nil && *in.Duration == 0 {
		in.Duration = nil
	}
	dur, err := duration("duration", in.Duration, refreshDefault)
	if err != nil {
		return err
	}
	if dur > refreshMax {
		return nacre.Invalidf("duration", "duration must be at most 3600 seconds")
	}
	if _, err := d.setDeadline(c, dur, true); err != nil {
		return err
	}
	return c.NoContent()
}

func (d *dialect) setDeadline(c *api.Call, dur time.Duration, extendOnly bool) (nacre.Sandbox, error) {
	id, err := sandboxID(c)
	if err != nil {
		return nacre.Sandbox{}, err
	}
	return d.Service.SetDeadline(c.R.Context(), c.Team, id, dur, extendOnly)
}

// setNetwork replaces the outbound rules; what the body leaves out is cleared.
func (d *dialect) setNetwork(c *api.Call) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	var in networkConfig
	if err := readObject(c, &in); err != nil {
		return err
	}
	policy, err := networkPolicy(&in)
	if err != nil {
		return err
	}
	if err := d.Service.SetNetwork(c.R.Context(), c.Team, id, policy); err != nil {
		return err
	}
	return c.NoContent()
}
