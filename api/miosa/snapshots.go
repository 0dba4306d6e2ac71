package miosa

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// maxKeep is the longest that a snapshot may be told to live.
const maxKeep = 10 * 365 * 24 * 3600

type newSnapshot struct {
	Comment           string          `json:"comment"`
	Name              string          `json:"name"`
	Keep              bool            `json:"keep"` // for ever, whatever else is said
	RetentionSeconds  *int            `json:"retention_seconds"`
	ExpirationSeconds *int            `json:"expiration_seconds"`
	ExpirationDays    *int            `json:"expiration_days"`
	Expiration        json.RawMessage `json:"expiration"` // seconds, "7d", or a time
}

type snapshot struct {
	ID               string  `json:"id"`
	SnapshotID       string  `json:"snapshot_id"`
	SandboxID        string  `json:"sandbox_id"`
	ResourceID       string  `json:"resource_id"`
	Name             *string `json:"name"`
	Status           string  `json:"status"` // creating, ready, deleting
	State            string  `json:"state"`
	Comment          *string `json:"comment"`
	Keep             bool    `json:"keep"`
	RetentionSeconds *int64  `json:"retention_seconds"`
	CreatedAt        string  `json:"created_at"`
	UpdatedAt        string  `json:"updated_at"`
	ExpiresAt        *string `json:"expires_at"`
	LastUsedAt       *string `json:"last_used_at"`
	SizeBytes        int64   `json:"size_bytes"`
	TemplateID       string  `json:"template_id"`
}

func snapshotOf(s nacre.Snapshot) snapshot {
	out := snapshot{ID: string(s.ID), SnapshotID: string(s.ID), SandboxID: string(s.Sandbox), ResourceID: string(s.Sandbox),
		Name: filled(s.Name), Status: string(s.State), State: string(s.State), Comment: filled(s.Comment), Keep: s.ExpiresAt.IsZero(),
		CreatedAt: *timestamp(s.CreatedAt), UpdatedAt: *timestamp(s.CreatedAt), ExpiresAt: timestamp(s.ExpiresAt),
		LastUsedAt: timestamp(s.LastUsedAt), SizeBytes: s.Bytes, TemplateID: s.Template}
	if !s.ExpiresAt.IsZero() {
		n := int64(s.ExpiresAt.Sub(s.CreatedAt) / time.Second)
		out.RetentionSeconds = &n
	}
	return out
}

// request reads how long the snapshot is to live from whichever field says it.
func (in *newSnapshot) request(now time.Time) (nacre.SnapshotRequest, error) {
	out := nacre.SnapshotRequest{Comment: in.Comment}
	var err error
	if out.Name, err = word("name", in.Name); err != nil {
		return out, err
	}
	if len(in.Comment) > 4096 {
		return out, nacre.Invalidf("comment", "comment must have at most 4096 bytes")
	}
	if in.Keep {
		return out, nil
	}
	for _, f := range []struct {
		name  string
		value *int
		unit  int
	}{{"retention_seconds", in.RetentionSeconds, 1}, {"expiration_seconds", in.ExpirationSeconds, 1}, {"expiration_days", in.ExpirationDays, 86400}} {
		n, err := number(f.name, f.value, 0, 1, maxKeep/f.unit)
		if err != nil {
			return out, err
		}
		if n > 0 {
			out.Keep = seconds(n * f.unit)
		}
	}
	if len(in.Expiration) > 0 && string(in.Expiration) != "null" {
		out.Keep, err = expiration(in.Expiration, now)
	}
	return out, err
}

func expiration(raw json.RawMessage, now time.Time) (time.Duration, error) {
	bad := nacre.Invalidf("expiration", "expiration must be seconds, a length such as \"7d\" or \"12h\", or a time in RFC 3339 that is to come")
	text := strings.Trim(string(raw), `"`)
	d := time.Duration(-1)
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		d = at.Sub(now)
	} else if n, err := strconv.Atoi(text); err == nil && n <= maxKeep {
		d = seconds(n)
	} else if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n <= maxKeep/86400 {
			d = seconds(n * 86400)
		}
	} else if parsed, err := time.ParseDuration(text); err == nil {
		d = parsed
	}
	if d <= 0 || d > maxKeep*time.Second {
		return 0, bad
	}
	return d, nil
}

func (a *API) createSnapshot(c *api.Call) error {
	var in newSnapshot
	if err := read(c, &in); err != nil {
		return err
	}
	req, err := in.request(a.Clock())
	if err != nil {
		return err
	}
	s, err := a.alive(c)
	if err != nil {
		return err
	}
	snap, err := a.Snapshots.Snapshot(c.R.Context(), c.Team, s.ID, req)
	if err != nil {
		return err
	}
	return one(c, http.StatusCreated, snapshotOf(snap))
}

// snapshots pages through all that the filter selects.
func (a *API) snapshots(c *api.Call, f nacre.SnapshotFilter) (out []snapshot, err error) {
	f.Limit = 1000
	for {
		page, err := a.Snapshots.ListSnapshots(c.R.Context(), c.Team, f)
		if err != nil {
			return nil, err
		}
		for _, s := range page.Snapshots {
			out = append(out, snapshotOf(s))
		}
		if f.Cursor = page.Next; f.Cursor == "" {
			return out, nil
		}
	}
}

func (a *API) listSnapshots(c *api.Call) error {
	s, err := a.record(c)
	if err != nil {
		return err
	}
	out, err := a.snapshots(c, nacre.SnapshotFilter{Sandbox: s.ID})
	if err != nil {
		return err
	}
	return list(c, out)
}

// listAllSnapshots is the account's list, with a part of it on demand.
func (a *API) listAllSnapshots(c *api.Call) error {
	q := c.R.URL.Query()
	limit, err := intParam(c, "limit", 0, 1, 200)
	if err != nil {
		return err
	}
	offset, err := intParam(c, "offset", 0, 0, 1<<30)
	if err != nil {
		return err
	}
	all, err := a.snapshots(c, nacre.SnapshotFilter{Sandbox: nacre.SandboxID(q.Get("resource_id"))})
	if err != nil {
		return err
	}
	out := []snapshot{}
	for _, s := range all {
		text := strings.ToLower(strings.Join([]string{s.ID, s.SandboxID, deref(s.Name), deref(s.Comment)}, " "))
		if strings.Contains(text, strings.ToLower(q.Get("q"))) {
			out = append(out, s)
		}
	}
	total := len(out)
	out = out[min(offset, total):]
	if limit > 0 {
		out = out[:min(limit, len(out))]
	}
	return c.JSON(http.StatusOK, map[string]any{"data": out, "meta": map[string]int{"total": total, "offset": offset, "limit": limit}})
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// snapshot finds the path's snapshot; below a sandbox it must be of that one.
func (a *API) snapshot(c *api.Call) (nacre.Snapshot, error) {
	s, err := a.findSnapshot(c, c.R.PathValue("snapshot"))
	if box := c.R.PathValue("id"); err == nil && box != "" && box != string(s.Sandbox) {
		err = errNoSnapshot()
	}
	return s, err
}

func errNoSnapshot() error {
	return as("SNAPSHOT_NOT_FOUND", nacre.Errorf(nacre.CodeNotFound, "there is no such snapshot"))
}

// findSnapshot finds one that was asked for by its id, of whatever sandbox.
func (a *API) findSnapshot(c *api.Call, id string) (nacre.Snapshot, error) {
	if !nacre.SnapshotID(id).Valid() {
		return nacre.Snapshot{}, errNoSnapshot()
	}
	s, err := a.Snapshots.GetSnapshot(c.R.Context(), c.Team, nacre.SnapshotID(id))
	if nacre.IsCode(err, nacre.CodeNotFound) || err == nil && s.Kind != nacre.SnapshotUser {
		err = errNoSnapshot()
	}
	return s, err
}

func (a *API) getSnapshot(c *api.Call) error {
	s, err := a.snapshot(c)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, snapshotOf(s))
}

func (a *API) deleteSnapshot(c *api.Call) error {
	s, err := a.snapshot(c)
	if err != nil {
		return err
	}
	if err := a.removeSnapshot(c, s.ID); err != nil {
		return err
	}
	return c.NoContent()
}

func (a *API) removeSnapshot(c *api.Call, id nacre.SnapshotID) error {
	err := a.Snapshots.DeleteSnapshot(c.R.Context(), c.Team, id)
	if nacre.IsCode(err, nacre.CodeConflict) {
		return as("SNAPSHOT_IN_USE", err)
	}
	return err
}

// deleteSnapshots deletes several and says which could not be.
func (a *API) deleteSnapshots(c *api.Call) error {
	var in struct {
		IDs         []string `json:"ids"`
		SnapshotIDs []string `json:"snapshot_ids"`
	}
	if err := read(c, &in); err != nil {
		return err
	}
	ids := append(in.IDs, in.SnapshotIDs...)
	if len(ids) == 0 || len(ids) > 200 {
		return nacre.Invalidf("snapshot_ids", "snapshot_ids must name 1 to 200 snapshots")
	}
	type failure struct {
		ID    string `json:"id"`
		Error string `json:"error"`
	}
	deleted, failed := []string{}, []failure{}
	for _, id := range ids {
		if err := a.removeSnapshot(c, nacre.SnapshotID(id)); err != nil {
			failed = append(failed, failure{id, nacre.ErrorMessage(err)})
			continue
		}
		deleted = append(deleted, id)
	}
	return one(c, http.StatusOK, map[string]any{"deleted": deleted, "deleted_count": len(deleted), "failed": failed})
}

// restore puts the same sandbox back to a snapshot.
func (a *API) restore(c *api.Call) error {
	s, err := a.alive(c)
	if err != nil {
		return err
	}
	snap, err := a.restorable(c, c.R.PathValue("snapshot"))
	if err != nil {
		return err
	}
	if s, err = a.Snapshots.Restore(c.R.Context(), c.Team, s.ID, snap.ID); err != nil {
		return err
	}
	return one(c, http.StatusOK, a.sandbox(s))
}

// restorable finds a snapshot to go on from. Whether it is of this sandbox or of one
// that it descends from, the service checks.
func (a *API) restorable(c *api.Call, id string) (nacre.Snapshot, error) {
	snap, err := a.findSnapshot(c, id)
	if err == nil && snap.State == nacre.SnapshotCreating {
		err = as("SNAPSHOT_NOT_READY", nacre.Errorf(nacre.CodeConflict, "snapshot %s is not ready yet", snap.ID))
	}
	return snap, err
}

// fork makes a new sandbox that goes on where this one is, or where a snapshot is.
func (a *API) fork(c *api.Call) error {
	var in forkBody
	if err := read(c, &in); err != nil {
		return err
	}
	s, err := a.forkSource(c, &in)
	if err != nil {
		return err
	}
	req, err := in.request(s)
	if err != nil {
		return err
	}
	return a.makeOnce(c, func() (nacre.Sandbox, error) {
		req.Metadata = api.Note(c.R.Context(), req.Metadata)
		made, err := a.Snapshots.Fork(c.R.Context(), c.Team, req)
		if err != nil {
			return nacre.Sandbox{}, err
		}
		if len(made) != 1 {
			return nacre.Sandbox{}, nacre.Errorf(nacre.CodeInternal, "the fork made no sandbox")
		}
		return made[0].Sandbox, made[0].Err
	})
}

// forkSource returns a record whose metadata the fork has: the sandbox's, or one made
// of the snapshot.
func (a *API) forkSource(c *api.Call, in *forkBody) (nacre.Sandbox, error) {
	if c.R.PathValue("snapshot") != "" {
		snap, err := a.snapshot(c)
		in.SnapshotID = string(snap.ID)
		return nacre.Sandbox{Metadata: snap.Metadata}, err
	}
	if in.SnapshotID == "" {
		return a.alive(c)
	}
	// A snapshot outlives its sandbox.
	s, err := a.record(c)
	if err != nil {
		return s, err
	}
	snap, err := a.restorable(c, in.SnapshotID)
	s.Metadata = snap.Metadata
	return s, err
}

func (in *forkBody) request(s nacre.Sandbox) (nacre.ForkRequest, error) {
	out := nacre.ForkRequest{Sandbox: s.ID, Env: in.Env, Count: 1}
	if in.SnapshotID != "" {
		out.Sandbox, out.Snapshot = "", nacre.SnapshotID(in.SnapshotID)
	}
	var err error
	if out.Name, err = word("name", in.Name); err != nil {
		return out, err
	}
	timeout, err := number("timeout_sec", in.TimeoutSec, 0, 1, maxTimeout)
	if err != nil {
		return out, err
	}
	out.Timeout = seconds(timeout)
	if out.Metadata = nacre.CopiedMetadata(s.Metadata); out.Metadata == nil {
		out.Metadata = map[string]string{}
	}
	if in.Metadata != nil {
		if err := addMetadata(out.Metadata, in.Metadata); err != nil {
			return out, err
		}
	}
	return out, in.store(out.Metadata)
}

// snapshotNow is the old way to take a snapshot.
func (a *API) snapshotNow(c *api.Call) error {
	s, err := a.alive(c)
	if err != nil {
		return err
	}
	snap, err := a.Snapshots.Snapshot(c.R.Context(), c.Team, s.ID, nacre.SnapshotRequest{})
	if err != nil {
		return err
	}
	return one(c, http.StatusCreated, map[string]any{"snapshot_id": snap.ID, "id": snap.ID, "snapshot": snapshotOf(snap)})
}
