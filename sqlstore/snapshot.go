package sqlstore

import (
	"context"
	"database/sql"
	"maps"
	"strings"

	"github.com/nacrehq/nacre"
)

func errNoSnapshot() error {
	return nacre.Errorf(nacre.CodeNotFound, "no snapshot has this id or name")
}

// checkHold refuses a sandbox that would hold a snapshot which it may not go on
// from. On PostgreSQL the snapshot cannot be retired until the transaction ends.
func (db *DB) checkHold(ctx context.Context, c conn, s *nacre.Sandbox) error {
	if !holds(s).Valid {
		return nil
	}
	found, err := c.one(ctx, func(*sql.Rows) error { return nil },
		`SELECT 1 FROM snapshots WHERE id = ? AND team_id IN (?, ?) AND state <> ?`+db.d.forShare,
		string(s.Snapshot), string(s.TeamID), string(nacre.SystemTeam), string(nacre.SnapshotDeleting))
	if err == nil && !found {
		return nacre.Errorf(nacre.CodeNotFound, "snapshot %s does not exist any more", s.Snapshot)
	}
	return err
}

// InsertSnapshot implements nacre.SnapshotStore.
func (db *DB) InsertSnapshot(ctx context.Context, s nacre.Snapshot, events ...nacre.Event) error {
	cutSnapshotTimes(&s)
	if err := checkSnapshot(&s); err != nil {
		return err
	}
	text, err := encodeSnapshot(&s)
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the record cannot be encoded")
	}
	env, err := db.sealer.seal(string(s.ID), s.Env)
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the environment cannot be encoded")
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		n, err := c.exec(ctx, `INSERT INTO snapshots
			(id, team_id, name, kind, state, sandbox_id, node, created_at, expires_at, disk_bytes, version, body, env)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`,
			string(s.ID), string(s.TeamID), s.Name, string(s.Kind), string(s.State), string(s.Sandbox), string(s.Node),
			s.CreatedAt.UnixMicro(), expiresAt(&s), s.DiskBytes, s.Version, text, env)
		if err != nil {
			return err
		}
		if n == 0 {
			return nacre.Errorf(nacre.CodeConflict, "a snapshot with the id %s exists", s.ID)
		}
		return db.insertEvents(ctx, c, takenOf(&s), events)
	})
}

// GetSnapshot implements nacre.SnapshotStore.
func (db *DB) GetSnapshot(ctx context.Context, team nacre.TeamID, id nacre.SnapshotID) (nacre.Snapshot, error) {
	s, err := db.getSnapshot(ctx, db.reads, team, id, "")
	return s, db.fail(ctx, err)
}

func (db *DB) getSnapshot(ctx context.Context, c conn, team nacre.TeamID, id nacre.SnapshotID, suffix string) (nacre.Snapshot, error) {
	if team == "" || !plain(string(team)) || !id.Valid() {
		return nacre.Snapshot{}, errNoSnapshot()
	}
	return db.oneSnapshot(ctx, c, `s.id = ? AND s.team_id = ?`+suffix, string(id), string(team))
}

func (db *DB) oneSnapshot(ctx context.Context, c conn, where string, args ...any) (nacre.Snapshot, error) {
	var s nacre.Snapshot
	found, err := c.one(ctx, func(r *sql.Rows) error { return db.scanSnapshot(r, &s) },
		`SELECT `+snapshotColumns+` FROM snapshots s WHERE `+where, args...)
	if err == nil && !found {
		err = errNoSnapshot()
	}
	if err != nil {
		return nacre.Snapshot{}, err
	}
	return s, nil
}

// FindSnapshot implements nacre.SnapshotStore. Of two of one name and moment the
// greater id is the newer.
func (db *DB) FindSnapshot(ctx context.Context, team nacre.TeamID, nameOrID string) (nacre.Snapshot, error) {
	if team == "" || !plain(string(team)) || nameOrID == "" || !plain(nameOrID) {
		return nacre.Snapshot{}, errNoSnapshot()
	}
	if id := nacre.SnapshotID(nameOrID); id.Valid() {
		s, err := db.oneSnapshot(ctx, db.reads, `s.id = ? AND s.team_id = ? AND s.kind = 'user' AND s.state = 'ready'`, nameOrID, string(team))
		if !nacre.IsCode(err, nacre.CodeNotFound) {
			return s, db.fail(ctx, err)
		}
	}
	page, err := db.ListSnapshots(ctx, nacre.SnapshotFilter{TeamID: team, Name: nameOrID, States: []nacre.SnapshotState{nacre.SnapshotReady}, Limit: 1})
	if err != nil {
		return nacre.Snapshot{}, err
	}
	if len(page.Snapshots) == 0 {
		return nacre.Snapshot{}, errNoSnapshot()
	}
	return page.Snapshots[0], nil
}

// UpdateSnapshot implements nacre.SnapshotStore. What cannot be changed is as in
// Update. A change to SnapshotDeleting is held to what RetireSnapshot is; from
// there is no way back: that is CodeConflict.
func (db *DB) UpdateSnapshot(ctx context.Context, team nacre.TeamID, id nacre.SnapshotID, change func(*nacre.Snapshot) ([]nacre.Event, error)) (nacre.Snapshot, error) {
	var events []nacre.Event
	return update(ctx, db, func(ctx context.Context, c conn) (nacre.Snapshot, error) {
		return db.getSnapshot(ctx, c, team, id, db.d.forUpdate)
	}, func(s *nacre.Snapshot) (err error) {
		s.Metadata, s.Env = maps.Clone(s.Metadata), maps.Clone(s.Env)
		events, err = change(s)
		return err
	}, func(ctx context.Context, c conn, old, s *nacre.Snapshot) error {
		cutSnapshotTimes(s)
		if err := checkSnapshotChange(old, s); err != nil {
			return err
		}
		if s.State == nacre.SnapshotDeleting && old.State != s.State {
			if err := db.checkUnheld(ctx, c, id); err != nil {
				return err
			}
		}
		s.Version = old.Version + 1
		if err := db.replaceSnapshot(ctx, c, old, s); err != nil {
			return err
		}
		return db.insertEvents(ctx, c, takenOf(s), events)
	})
}

func checkSnapshotChange(old, s *nacre.Snapshot) error {
	switch {
	case s.ID != old.ID:
		return nacre.Invalidf("id", "the id of a snapshot cannot be changed")
	case s.TeamID != old.TeamID:
		return nacre.Invalidf("teamId", "the team of a snapshot cannot be changed")
	case s.Sandbox != old.Sandbox:
		return nacre.Invalidf("sandbox", "the sandbox of a snapshot cannot be changed")
	case !s.CreatedAt.Equal(old.CreatedAt):
		return nacre.Invalidf("createdAt", "the creation time of a snapshot cannot be changed")
	case old.State == nacre.SnapshotDeleting && s.State != old.State:
		return nacre.Errorf(nacre.CodeConflict, "snapshot %s is being deleted", s.ID)
	}
	return checkSnapshot(s)
}

// replaceSnapshot writes s over old.
func (db *DB) replaceSnapshot(ctx context.Context, c conn, old, s *nacre.Snapshot) error {
	text, err := encodeSnapshot(s)
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the record cannot be encoded")
	}
	n, err := c.exec(ctx, `UPDATE snapshots SET name = ?, kind = ?, state = ?, node = ?, expires_at = ?, disk_bytes = ?, version = ?, body = ?
		WHERE id = ? AND team_id = ? AND version = ?`,
		s.Name, string(s.Kind), string(s.State), string(s.Node), expiresAt(s), s.DiskBytes, s.Version, text,
		string(s.ID), string(s.TeamID), old.Version)
	if err != nil {
		return err
	}
	if n != 1 {
		return nacre.Errorf(nacre.CodeInternal, "the record of snapshot %s changed under its lock", s.ID)
	}
	if (old.Env == nil) == (s.Env == nil) && maps.Equal(old.Env, s.Env) {
		return nil
	}
	env, err := db.sealer.seal(string(s.ID), s.Env)
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the environment cannot be encoded")
	}
	_, err = c.exec(ctx, `UPDATE snapshots SET env = ? WHERE id = ? AND team_id = ?`, env, string(s.ID), string(s.TeamID))
	return err
}

// checkUnheld is called with the snapshot's row locked, so that nobody can come to
// hold it meanwhile.
func (db *DB) checkUnheld(ctx context.Context, c conn, id nacre.SnapshotID) error {
	var holders []string
	err := c.each(ctx, func(r *sql.Rows) error {
		var id string
		err := r.Scan(&id)
		holders = append(holders, id)
		return err
	}, `SELECT id FROM sandboxes WHERE snapshot_id = ? ORDER BY id LIMIT 4`, string(id))
	if err != nil || len(holders) == 0 {
		return err
	}
	who := strings.Join(holders[:min(3, len(holders))], ", ")
	if len(holders) > 3 {
		who += " and others"
	}
	return nacre.Errorf(nacre.CodeConflict, "snapshot %s is what %s would go on from; resume or kill first what needs it", id, who)
}

// RetireSnapshot implements nacre.SnapshotStore.
func (db *DB) RetireSnapshot(ctx context.Context, team nacre.TeamID, id nacre.SnapshotID, events ...nacre.Event) (nacre.Snapshot, error) {
	return update(ctx, db, func(ctx context.Context, c conn) (nacre.Snapshot, error) {
		return db.getSnapshot(ctx, c, team, id, db.d.forUpdate)
	}, func(s *nacre.Snapshot) error {
		s.State = nacre.SnapshotDeleting
		return nil
	}, func(ctx context.Context, c conn, old, s *nacre.Snapshot) error {
		if old.State == s.State {
			return nil
		}
		if err := db.checkUnheld(ctx, c, id); err != nil {
			return err
		}
		s.Version = old.Version + 1
		if err := db.replaceSnapshot(ctx, c, old, s); err != nil {
			return err
		}
		return db.insertEvents(ctx, c, takenOf(s), events)
	})
}

// DropSnapshot implements nacre.SnapshotStore.
func (db *DB) DropSnapshot(ctx context.Context, team nacre.TeamID, id nacre.SnapshotID) error {
	err := db.write(ctx, func(ctx context.Context, c conn) error {
		s, err := db.getSnapshot(ctx, c, team, id, db.d.forUpdate)
		if err != nil {
			return err
		}
		if s.State != nacre.SnapshotDeleting {
			return nacre.Errorf(nacre.CodeConflict, "snapshot %s is not being deleted", id)
		}
		_, err = c.exec(ctx, `DELETE FROM snapshots WHERE id = ? AND team_id = ?`, string(id), string(team))
		return err
	})
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return nil
	}
	return err
}

// SnapshotUse implements nacre.SnapshotStore.
func (db *DB) SnapshotUse(ctx context.Context, team nacre.TeamID) (count int, diskBytes int64, err error) {
	if team == "" || !plain(string(team)) {
		return 0, 0, nil
	}
	_, err = db.reads.one(ctx, func(r *sql.Rows) error { return r.Scan(&count, &diskBytes) },
		`SELECT count(*), CAST(coalesce(sum(disk_bytes), 0) AS BIGINT) FROM snapshots WHERE team_id = ?`, string(team))
	return count, diskBytes, db.fail(ctx, err)
}
