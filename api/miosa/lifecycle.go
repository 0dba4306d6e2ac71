package miosa

import (
	"context"
	"net/http"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// extend sets the timeout, or keeps it, and counts it from now.
func (a *API) extend(c *api.Call) error {
	var in extendBody
	if err := read(c, &in); err != nil {
		return err
	}
	s, err := a.alive(c)
	if err != nil {
		return err
	}
	d := s.Timeout
	if in.TimeoutSec != nil {
		n, err := number("timeout_sec", in.TimeoutSec, 0, 1, maxTimeout)
		if err != nil {
			return err
		}
		d = seconds(n)
	}
	if s, err = a.Service.SetDeadline(c.R.Context(), c.Team, s.ID, d, false); err != nil {
		return err
	}
	return one(c, http.StatusOK, a.sandbox(s))
}

func (a *API) pause(c *api.Call) error { return a.pauseAs(c, nacre.PauseRequest{}) }

// stop keeps the disk and lets the memory go: a resume boots.
func (a *API) stop(c *api.Call) error { return a.pauseAs(c, nacre.PauseRequest{FilesOnly: true}) }

// pauseAs pauses; of a sandbox that is paused already it changes nothing, for some
// clients send every request again that was not answered.
func (a *API) pauseAs(c *api.Call, r nacre.PauseRequest) error {
	s, err := a.alive(c)
	if err != nil {
		return err
	}
	if s.State != nacre.StatePaused {
		if s, err = a.Snapshots.Pause(c.R.Context(), c.Team, s.ID, r); err != nil {
			return err
		}
	}
	return one(c, http.StatusOK, a.sandbox(s))
}

func (a *API) resume(c *api.Call) error {
	var in resumeBody
	if err := read(c, &in); err != nil {
		return err
	}
	if len(in.Env) > 0 {
		return errEnvReadOnly()
	}
	s, err := a.alive(c)
	if err != nil {
		return err
	}
	if s.State != nacre.StateRunning {
		if s, _, err = a.Snapshots.Resume(c.R.Context(), c.Team, s.ID, nacre.ResumeRequest{}); err != nil {
			return err
		}
	}
	return one(c, http.StatusOK, a.sandbox(s))
}

func (a *API) destroy(c *api.Call) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	if err := a.Service.Kill(c.R.Context(), c.Team, id); err != nil {
		if nacre.IsCode(err, nacre.CodeNotFound) {
			err = as("SANDBOX_NOT_FOUND", err)
		}
		return err
	}
	s, err := a.Service.Get(c.R.Context(), c.Team, id)
	if err != nil {
		return c.NoContent() // its record is gone too
	}
	return one(c, http.StatusOK, a.sandbox(s))
}

// readiness says whether commands will work. Its components are those that a
// client may ask for one by one.
type readiness struct {
	Type       string            `json:"type"`
	Ready      bool              `json:"ready"`
	Status     string            `json:"status"` // ready, or the state
	State      string            `json:"state"`
	SandboxID  string            `json:"sandbox_id"`
	Components map[string]string `json:"components"`
}

// components are those that the clients look for.
var components = []string{"command_agent", "process_control", "resource_contract", "clock", "identity", "durability", "filesystem", "internal_probe"}

func (a *API) readinessOf(s nacre.Sandbox) readiness {
	_, routed := a.Traffic.Route(s.ID)
	out := readiness{Type: "ready", State: stateOf(s), SandboxID: string(s.ID)}
	out.Ready = routed && out.State == stateRunning
	out.Status = out.State
	word := "pending"
	if out.Ready {
		out.Status, word = "ready", "ready"
	}
	out.Components = map[string]string{}
	for _, name := range components {
		out.Components[name] = word
	}
	return out
}

func (a *API) readiness(c *api.Call) error {
	s, err := a.record(c)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, a.readinessOf(s))
}

const (
	readyEvery = 50 * time.Millisecond
	readyMost  = 5 * time.Minute
)

// readinessStream sends "ready" when the sandbox is, "timeout" when it will not be.
func (a *API) readinessStream(c *api.Call) error {
	s, err := a.record(c)
	if err != nil {
		return err
	}
	out, err := startSSE(c)
	if err != nil {
		return nil
	}
	produce := func(ctx context.Context, give func(readiness) error) error {
		ctx, cancel := context.WithTimeout(ctx, readyMost)
		defer cancel()
		for {
			r := a.readinessOf(s)
			if !r.Ready && (!s.Alive() || ctx.Err() != nil) {
				r.Type = "timeout"
			}
			if r.Ready || r.Type == "timeout" {
				return give(r)
			}
			select {
			case <-ctx.Done():
			case <-time.After(readyEvery):
			}
			if next, err := a.Service.Get(ctx, c.Team, s.ID); err == nil {
				s = next
			}
		}
	}
	return quiet(c, follow(c.R.Context(), out, produce, func(r readiness) error { return out.send(r.Type, 0, r) }))
}

// resources answers with the shape; it cannot be changed.
func (a *API) resources(c *api.Call) error {
	s, err := a.record(c)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, map[string]any{
		"sandbox_id": s.ID, "cpu_count": s.Resources.CPUs, "memory_mb": s.Resources.MemoryMiB, "disk_size_mb": s.Resources.DiskMiB,
		"resizable": false,
	})
}

func (a *API) resize(c *api.Call) error {
	if _, err := a.alive(c); err != nil {
		return err
	}
	return as("RESIZE_UNSUPPORTED", nacre.Errorf(nacre.CodeConflict, "the size of a sandbox cannot be changed; create another one, from a snapshot if need be"))
}
