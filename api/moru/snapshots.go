package moru

import (
	"net/http"
	"slices"
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// snapshotTag is the only tag that a snapshot's id can carry: E2B's ids have one.
const snapshotTag = "default"

func (d *dialect) createSnapshot(c *api.Call) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	var in snapshotBody
	if _, err := c.Read(&in); err != nil {
		return err
	}
	req, err := snapshotRequest(c.Team, in)
	if err != nil {
		return err
	}
	snap, err := d.Snapshots.Snapshot(c.R.Context(), c.Team, id, req)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, snapshotOf(snap, true))
}

func (d *dialect) listSnapshots(c *api.Call) error {
	q := c.R.URL.Query()
	f := nacre.SnapshotFilter{Cursor: q.Get("nextToken"), States: []nacre.SnapshotState{nacre.SnapshotReady}}
	var err error
	if f.Limit, err = intParam(q, "limit", 100, 1, 100); err != nil {
		return err
	}
	if id := q.Get("sandboxID"); id != "" {
		if f.Sandbox = nacre.SandboxID(id); !f.Sandbox.Valid() {
			return c.JSON(http.StatusOK, []snapshot{})
		}
	}
	ref := q.Get("name")
	name, ok := snapshotName(c.Team, ref)
	if ref != "" && !ok {
		return c.JSON(http.StatusOK, []snapshot{})
	}
	if nacre.SnapshotID(name).Valid() {
		return d.listOne(c, nacre.SnapshotID(name), f.Sandbox)
	}
	f.Name = name
	page, err := d.Snapshots.ListSnapshots(c.R.Context(), c.Team, f)
	if err != nil {
		return err
	}
	out, err := d.snapshotsOf(c, page.Snapshots)
	if err != nil {
		return err
	}
	if page.Next != "" {
		c.W.Header().Set("X-Next-Token", page.Next)
	}
	return c.JSON(http.StatusOK, out)
}

// listOne is the list of the snapshot with this id.
func (d *dialect) listOne(c *api.Call, id nacre.SnapshotID, of nacre.SandboxID) error {
	snap, err := d.Snapshots.GetSnapshot(c.R.Context(), c.Team, id)
	switch {
	case nacre.IsCode(err, nacre.CodeNotFound),
		err == nil && (!offered(snap) || of != "" && snap.Sandbox != of):
		return c.JSON(http.StatusOK, []snapshot{})
	case err != nil:
		return err
	}
	out, err := d.snapshotsOf(c, []nacre.Snapshot{snap})
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, out)
}

// snapshotsOf describes snapshots. A name stands in the id of the newest alone,
// for that is the one that it names.
func (d *dialect) snapshotsOf(c *api.Call, list []nacre.Snapshot) ([]snapshot, error) {
	newest := map[string]nacre.SnapshotID{}
	out := make([]snapshot, 0, len(list))
	for _, s := range list {
		if _, known := newest[s.Name]; s.Name != "" && !known {
			first, err := d.named(c, s.Name, 1)
			if err != nil {
				return nil, err
			}
			newest[s.Name] = ""
			if len(first) > 0 {
				newest[s.Name] = first[0].ID
			}
		}
		out = append(out, snapshotOf(s, newest[s.Name] == s.ID))
	}
	return out, nil
}

// named returns the ready snapshots of a name, newest first.
func (d *dialect) named(c *api.Call, name string, limit int) ([]nacre.Snapshot, error) {
	page, err := d.Snapshots.ListSnapshots(c.R.Context(), c.Team,
		nacre.SnapshotFilter{Name: name, States: []nacre.SnapshotState{nacre.SnapshotReady}, Limit: limit})
	return page.Snapshots, err
}

// findSnapshot finds what an id of one of the wire's forms means.
func (d *dialect) findSnapshot(c *api.Call, ref string) (nacre.Snapshot, error) {
	missing := nacre.Errorf(nacre.CodeNotFound, "snapshot %.100q not found", ref)
	name, ok := snapshotName(c.Team, ref)
	if !ok {
		return nacre.Snapshot{}, missing
	}
	if id := nacre.SnapshotID(name); id.Valid() {
		snap, err := d.Snapshots.GetSnapshot(c.R.Context(), c.Team, id)
		if nacre.IsCode(err, nacre.CodeNotFound) || err == nil && !offered(snap) {
			err = missing
		}
		return snap, err
	}
	list, err := d.named(c, name, 1)
	if err == nil && len(list) == 0 {
		err = missing
	}
	if err != nil {
		return nacre.Snapshot{}, err
	}
	return list[0], nil
}

// offered tells whether a snapshot is a user's to see and use.
func offered(s nacre.Snapshot) bool {
	return s.Kind == nacre.SnapshotUser && s.State == nacre.SnapshotReady
}

// source is what a create's templateID means to the service: a snapshot by the
// forms that only snapshots have, everything else as it stands.
func (d *dialect) source(c *api.Call, templateID string) (string, error) {
	if strings.HasPrefix(templateID, string(c.Team)+"/") {
		snap, err := d.findSnapshot(c, templateID)
		return string(snap.ID), err
	}
	return strings.TrimSuffix(templateID, ":"+snapshotTag), nil
}

// deleteTemplate deletes a snapshot: E2B's clients send its id here. A name stands
// for all that have it, as a template does for its builds.
func (d *dialect) deleteTemplate(c *api.Call) error {
	ref := c.R.PathValue("template")
	snap, err := d.findSnapshot(c, ref)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return d.noSnapshot(c, ref, err)
	}
	if err != nil {
		return err
	}
	doomed := []nacre.Snapshot{snap}
	if name, _ := snapshotName(c.Team, ref); name == snap.Name {
		if doomed, err = d.named(c, name, 1000); err != nil {
			return err
		}
	}
	for _, s := range doomed {
		if err := d.Snapshots.DeleteSnapshot(c.R.Context(), c.Team, s.ID); err != nil {
			return err
		}
	}
	return c.NoContent()
}

// noSnapshot says what an id is that no snapshot has.
func (d *dialect) noSnapshot(c *api.Call, ref string, missing error) error {
	ts, err := d.Service.Templates(c.R.Context(), c.Team)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(ts, func(t nacre.Template) bool { return string(t.ID) == ref || slices.Contains(t.Names, ref) }) {
		return nacre.Errorf(nacre.CodeUnsupported, "DELETE /templates/ of a template is not offered by this server yet; snapshots can be deleted")
	}
	return missing
}

// forkSandbox makes copies of a sandbox, which goes on.
func (d *dialect) forkSandbox(c *api.Call) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	return d.fork(c, nacre.ForkRequest{Sandbox: id})
}

// forkSnapshot makes several sandboxes from a snapshot at once.
func (d *dialect) forkSnapshot(c *api.Call) error {
	snap, err := d.findSnapshot(c, c.R.PathValue("snapshot"))
	if err != nil {
		return err
	}
	return d.fork(c, nacre.ForkRequest{Snapshot: snap.ID})
}

func (d *dialect) fork(c *api.Call, of nacre.ForkRequest) error {
	in := forkBody{InheritTimeout: of.Snapshot != ""} // which E2B has no forks of
	if _, err := c.Read(&in); err != nil {
		return err
	}
	req, err := forkRequest(of, in)
	if err != nil {
		return err
	}
	if err := api.NotAgain(c); err != nil {
		return err
	}
	made, err := d.Snapshots.Fork(c.R.Context(), c.Team, req)
	if err != nil {
		return err
	}
	out := make([]forkResult, len(made))
	for i, f := range made {
		if f.Err != nil {
			out[i].Error = &errorBody{Code: status(f.Err), Message: nacre.ErrorMessage(f.Err)}
			continue
		}
		s := d.sandbox(f.Sandbox)
		out[i].Sandbox = &s
	}
	return c.JSON(http.StatusCreated, out)
}
