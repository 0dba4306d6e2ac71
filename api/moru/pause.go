package moru

import (
	"net/http"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// pause keeps memory and files, or with "memory": false the files alone. One that
// is paused already is a 409, which the clients turn into false.
func (d *dialect) pause(c *api.Call) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	var in pauseBody
	if _, err := c.Read(&in); err != nil { // Moru's clients send no body
		return err
	}
	if _, err := d.Snapshots.Pause(c.R.Context(), c.Team, id, nacre.PauseRequest{FilesOnly: withoutMemory(in.Memory), Healthy: in.RequireHealthyGuest}); err != nil {
		return err
	}
	return c.NoContent()
}

// connect returns a running sandbox and never shortens its life; a paused one is
// resumed, which 201 tells. E2B's clients send {} for the default timeout.
func (d *dialect) connect(c *api.Call) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	var in connectBody
	if _, err := c.Read(&in); err != nil {
		return err
	}
	timeout, err := duration("timeout", in.Timeout, defaultTimeout)
	if err != nil {
		return err
	}
	s, resumed, err := d.Snapshots.Resume(c.R.Context(), c.Team, id,
		nacre.ResumeRequest{Timeout: timeout, Boot: withoutMemory(in.Memory)})
	if err != nil {
		return err
	}
	if resumed {
		return c.JSON(http.StatusCreated, d.sandbox(s))
	}
	return c.JSON(http.StatusOK, d.sandbox(s))
}

// resume is connect for a paused sandbox only: of one that runs it is a 409.
// Without a timeout the sandbox's own begins anew.
func (d *dialect) resume(c *api.Call) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	var in connectBody
	if _, err := c.Read(&in); err != nil {
		return err
	}
	timeout, err := duration("timeout", in.Timeout, 0)
	if err != nil {
		return err
	}
	s, err := d.Service.Get(c.R.Context(), c.Team, id)
	if err != nil {
		return err
	}
	if s.State == nacre.StateRunning {
		return nacre.Errorf(nacre.CodeConflict, "sandbox %s runs already; POST /sandboxes/%s/connect returns it", id, id)
	}
	s, _, err = d.Snapshots.Resume(c.R.Context(), c.Team, id,
		nacre.ResumeRequest{Timeout: timeout, Boot: withoutMemory(in.Memory)})
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, d.sandbox(s))
}

// restore is ours: it puts the same sandbox back to a snapshot of its own or of
// what it was forked from. What it did since is gone.
func (d *dialect) restore(c *api.Call) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	var in restoreBody
	if err := readObject(c, &in); err != nil {
		return err
	}
	if in.SnapshotID == "" {
		return nacre.Invalidf("snapshotID", "snapshotID is missing; GET /snapshots lists them")
	}
	snap, err := d.findSnapshot(c, in.SnapshotID)
	if err != nil {
		return err
	}
	s, err := d.Snapshots.Restore(c.R.Context(), c.Team, id, snap.ID)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, d.sandbox(s))
}
