package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"maps"

	"github.com/nacrehq/nacre"
)

// deploymentBody is the part of a deployment that no query looks at.
type deploymentBody struct {
	Sandbox  nacre.SandboxID       `json:"sandbox,omitempty"`
	Snapshot nacre.SnapshotID      `json:"snapshot,omitempty"`
	Preview  nacre.PreviewID       `json:"preview,omitempty"`
	Restarts int                   `json:"restarts,omitempty"`
	State    nacre.DeploymentState `json:"state"`
	Detail   string                `json:"detail,omitempty"`
	Build    string                `json:"build,omitempty"`
	Start    string                `json:"start,omitempty"`
	Dir      string                `json:"dir,omitempty"`
	Port     int                   `json:"port,omitempty"`
	Health   string                `json:"health,omitempty"`
	Revision int                   `json:"revision"`
}

func noDeployment() error {
	return nacre.Errorf(nacre.CodeNotFound, "no deployment has this id or name")
}

func checkDeployment(d *nacre.Deployment) error {
	switch {
	case d.ID == "" || !plain(string(d.ID)) || d.TeamID == "" || !plain(string(d.TeamID)):
		return nacre.Invalidf("id", "a deployment needs an id and a team")
	case !validSlug(d.Name):
		return nacre.Invalidf("name", "name must be 1 to 63 characters of a-z, 0-9 and '-', not beginning or ending with '-'")
	case !plain(string(d.Source)) || !validMap(d.Env):
		return nacre.Invalidf("env", "names and values of the environment must be UTF-8 text")
	}
	return nil
}

func (db *DB) encodeDeployment(d *nacre.Deployment) (text string, env []byte, err error) {
	b, err := json.Marshal(deploymentBody{Sandbox: d.Sandbox, Snapshot: d.Snapshot, Preview: d.Preview, Restarts: d.Restarts,
		State: d.State, Detail: d.Detail, Build: d.Build, Start: d.Start, Dir: d.Dir, Port: d.Port, Health: d.Health, Revision: d.Revision})
	if err == nil && d.Env != nil {
		if env, err = json.Marshal(d.Env); err == nil {
			env = db.sealer.keep("deployment "+string(d.ID), env)
		}
	}
	if err != nil {
		return "", nil, nacre.Wrap(nacre.CodeInternal, err, "the deployment cannot be encoded")
	}
	return string(b), env, nil
}

// InsertDeployment implements nacre.DeploymentStore.
func (db *DB) InsertDeployment(ctx context.Context, d nacre.Deployment) error {
	if err := checkDeployment(&d); err != nil {
		return err
	}
	text, env, err := db.encodeDeployment(&d)
	if err != nil {
		return err
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		n, err := c.exec(ctx, `INSERT INTO deployments (id, team_id, name, source, created_at, updated_at, body, env)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`, string(d.ID), string(d.TeamID), d.Name, string(d.Source),
			unixMicro(d.CreatedAt), unixMicro(d.UpdatedAt), text, env)
		if err == nil && n == 0 {
			return &nacre.Error{Code: nacre.CodeConflict, Field: "name", Message: "a deployment with the name " + d.Name + " exists"}
		}
		return err
	})
}

const deploymentColumns = `id, team_id, name, source, created_at, updated_at, body, env`

func (db *DB) scanDeployment(r *sql.Rows, d *nacre.Deployment) error {
	var created, updated int64
	var text, env []byte
	err := r.Scan((*string)(&d.ID), (*string)(&d.TeamID), &d.Name, (*string)(&d.Source), &created, &updated, &text, &env)
	if err != nil {
		return err
	}
	var b deploymentBody
	if err := json.Unmarshal(text, &b); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the record of a deployment cannot be read")
	}
	d.Sandbox, d.Snapshot, d.Preview, d.Restarts, d.State, d.Detail = b.Sandbox, b.Snapshot, b.Preview, b.Restarts, b.State, b.Detail
	d.Build, d.Start, d.Dir, d.Port, d.Health, d.Revision = b.Build, b.Start, b.Dir, b.Port, b.Health, b.Revision
	d.CreatedAt, d.UpdatedAt = fromUnixMicro(created), fromUnixMicro(updated)
	kept, err := db.sealer.reveal("deployment "+string(d.ID), env)
	if err == nil && kept != nil {
		err = json.Unmarshal(kept, &d.Env)
	}
	return err
}

// GetDeployment implements nacre.DeploymentStore.
func (db *DB) GetDeployment(ctx context.Context, team nacre.TeamID, nameOrID string) (nacre.Deployment, error) {
	d, err := db.getDeployment(ctx, db.reads, team, nameOrID, "")
	return d, db.fail(ctx, err)
}

func (db *DB) getDeployment(ctx context.Context, c conn, team nacre.TeamID, nameOrID, suffix string) (nacre.Deployment, error) {
	var d nacre.Deployment
	if !plain(string(team)) || !plain(nameOrID) {
		return d, noDeployment()
	}
	found, err := c.one(ctx, func(r *sql.Rows) error { return db.scanDeployment(r, &d) },
		`SELECT `+deploymentColumns+` FROM deployments WHERE team_id = ? AND (id = ? OR name = ?)`+suffix, string(team), nameOrID, nameOrID)
	if err == nil && !found {
		err = noDeployment()
	}
	return d, err
}

// Deployments implements nacre.DeploymentStore.
func (db *DB) Deployments(ctx context.Context, team nacre.TeamID, source nacre.SandboxID) ([]nacre.Deployment, error) {
	if !plain(string(team)) || !plain(string(source)) {
		return nil, nil
	}
	cond, args := `team_id = ?`, []any{string(team)}
	if source != "" {
		cond, args = cond+` AND source = ?`, append(args, string(source))
	}
	var out []nacre.Deployment
	err := db.reads.each(ctx, func(r *sql.Rows) error {
		out = append(out, nacre.Deployment{})
		return db.scanDeployment(r, &out[len(out)-1])
	}, `SELECT `+deploymentColumns+` FROM deployments WHERE `+cond+` ORDER BY created_at DESC, id`, args...)
	return out, db.fail(ctx, err)
}

// UpdateDeployment implements nacre.DeploymentStore. Id, team and name stay.
func (db *DB) UpdateDeployment(ctx context.Context, team nacre.TeamID, id nacre.DeploymentID, change func(*nacre.Deployment) error) (nacre.Deployment, error) {
	return update(ctx, db, func(ctx context.Context, c conn) (nacre.Deployment, error) {
		return db.getDeployment(ctx, c, team, string(id), db.d.forUpdate)
	}, func(d *nacre.Deployment) error {
		d.Env = maps.Clone(d.Env)
		return change(d)
	}, func(ctx context.Context, c conn, old, d *nacre.Deployment) error {
		if d.ID != old.ID || d.TeamID != old.TeamID || d.Name != old.Name {
			return nacre.Invalidf("name", "the name of a deployment cannot be changed; deploy under another")
		}
		if err := checkDeployment(d); err != nil {
			return err
		}
		text, env, err := db.encodeDeployment(d)
		if err != nil {
			return err
		}
		_, err = c.exec(ctx, `UPDATE deployments SET source = ?, updated_at = ?, body = ?, env = ? WHERE id = ?`,
			string(d.Source), unixMicro(d.UpdatedAt), text, env, string(d.ID))
		d.CreatedAt, d.UpdatedAt = old.CreatedAt, fromUnixMicro(unixMicro(d.UpdatedAt))
		return err
	})
}

// DeleteDeployment implements nacre.DeploymentStore.
func (db *DB) DeleteDeployment(ctx context.Context, team nacre.TeamID, id nacre.DeploymentID) error {
	return db.deleteOne(ctx, "deployments", team, string(id), noDeployment())
}
