package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

// maxEvents that one change may write; an event's Seq leaves room for them.
const maxEvents = 1000

// purgeChunk is how many records one transaction of Purge deletes, so that other
// writes get their turn.
const purgeChunk = 200

// Insert implements nacre.SandboxStore.
func (db *DB) Insert(ctx context.Context, s nacre.Sandbox, events ...nacre.Event) error {
	cutTimes(&s)
	if err := check(&s); err != nil {
		return err
	}
	text, err := encodeBody(&s)
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the record cannot be encoded")
	}
	env, err := db.sealer.seal(string(s.ID), s.Env)
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the environment cannot be encoded")
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		if err := db.checkHold(ctx, c, &s); err != nil {
			return err
		}
		n, err := c.exec(ctx, `INSERT INTO sandboxes
			(id, team_id, state, node, created_at, started_at, deadline, due_at, ended_at, version, snapshot_id, name, body, env)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`,
			string(s.ID), string(s.TeamID), string(s.State), string(s.Node),
			s.CreatedAt.UnixMicro(), s.StartedAt.UnixMicro(), s.Deadline.UnixMicro(), dueAt(&s), s.EndedAt.UnixMicro(),
			s.Version, holds(&s), s.Name, text, env)
		if err != nil {
			return err
		}
		if n == 0 {
			return nacre.Errorf(nacre.CodeConflict, "a sandbox with the id %s exists", s.ID)
		}
		if err := insertTags(ctx, c, &s); err != nil {
			return err
		}
		return db.insertEvents(ctx, c, &s, events)
	})
}

// Get implements nacre.SandboxStore.
func (db *DB) Get(ctx context.Context, team nacre.TeamID, id nacre.SandboxID) (nacre.Sandbox, error) {
	s, err := db.get(ctx, db.reads, team, id, "")
	return s, db.fail(ctx, err)
}

func (db *DB) get(ctx context.Context, c conn, team nacre.TeamID, id nacre.SandboxID, suffix string) (nacre.Sandbox, error) {
	var s nacre.Sandbox
	found := false
	if team != "" && plain(string(team)) && id.Valid() {
		var err error
		found, err = c.one(ctx, func(r *sql.Rows) error { return db.scanSandbox(r, &s) },
			`SELECT `+sandboxColumns+` FROM sandboxes s WHERE s.id = ? AND s.team_id = ?`+suffix, string(id), string(team))
		if err != nil {
			return nacre.Sandbox{}, err
		}
	}
	if !found {
		return nacre.Sandbox{}, nacre.Errorf(nacre.CodeNotFound, "no sandbox has this id")
	}
	return s, nil
}

// Update implements nacre.SandboxStore. A change of ID, TeamID or CreatedAt is
// CodeInvalid, a move that nacre.Transitions does not know CodeConflict; Version
// is the store's.
func (db *DB) Update(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, change func(*nacre.Sandbox) ([]nacre.Event, error)) (nacre.Sandbox, error) {
	var events []nacre.Event
	return update(ctx, db, func(ctx context.Context, c conn) (nacre.Sandbox, error) {
		return db.get(ctx, c, team, id, db.d.forUpdate)
	}, func(s *nacre.Sandbox) (err error) {
		s.Metadata, s.Env = maps.Clone(s.Metadata), maps.Clone(s.Env)
		events, err = change(s)
		return err
	}, func(ctx context.Context, c conn, old, s *nacre.Sandbox) error {
		cutTimes(s)
		if err := checkChange(old, s); err != nil {
			return err
		}
		if err := db.checkHold(ctx, c, s); err != nil {
			return err
		}
		s.Version = old.Version + 1
		if err := db.replace(ctx, c, old, s); err != nil {
			return err
		}
		return db.insertEvents(ctx, c, s, events)
	})
}

func checkChange(old, s *nacre.Sandbox) error {
	switch {
	case s.ID != old.ID:
		return nacre.Invalidf("id", "the id of a sandbox cannot be changed")
	case s.TeamID != old.TeamID:
		return nacre.Invalidf("teamId", "the team of a sandbox cannot be changed")
	case !s.CreatedAt.Equal(old.CreatedAt):
		return nacre.Invalidf("createdAt", "the creation time of a sandbox cannot be changed")
	}
	if err := check(s); err != nil {
		return err
	}
	if s.State != old.State {
		moved := *old
		return moved.Move(s.State)
	}
	return nil
}

// replace writes s over old.
func (db *DB) replace(ctx context.Context, c conn, old, s *nacre.Sandbox) error {
	text, err := encodeBody(s)
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the record cannot be encoded")
	}
	n, err := c.exec(ctx, `UPDATE sandboxes SET state = ?, node = ?, started_at = ?, deadline = ?, due_at = ?,
		ended_at = ?, version = ?, snapshot_id = ?, name = ?, body = ? WHERE id = ? AND team_id = ? AND version = ?`,
		string(s.State), string(s.Node), s.StartedAt.UnixMicro(), s.Deadline.UnixMicro(), dueAt(s),
		s.EndedAt.UnixMicro(), s.Version, holds(s), s.Name, text, string(s.ID), string(s.TeamID), old.Version)
	if err != nil {
		return err
	}
	if n != 1 {
		return nacre.Errorf(nacre.CodeInternal, "the record of sandbox %s changed under its lock", s.ID)
	}
	if (old.Env == nil) != (s.Env == nil) || !maps.Equal(old.Env, s.Env) {
		env, err := db.sealer.seal(string(s.ID), s.Env)
		if err != nil {
			return nacre.Wrap(nacre.CodeInternal, err, "the environment cannot be encoded")
		}
		if _, err := c.exec(ctx, `UPDATE sandboxes SET env = ? WHERE id = ? AND team_id = ?`, env, string(s.ID), string(s.TeamID)); err != nil {
			return err
		}
	}
	if maps.Equal(s.Metadata, old.Metadata) {
		if s.State == old.State && s.StartedAt.Equal(old.StartedAt) {
			return nil
		}
		return moveTags(ctx, c, old, s)
	}
	if err := deleteTags(ctx, c, old); err != nil {
		return err
	}
	return insertTags(ctx, c, s)
}

func insertTags(ctx context.Context, c conn, s *nacre.Sandbox) error {
	return eachTags(s, func(tags []any) error {
		args := make([]any, 0, 5*len(tags))
		for _, t := range tags {
			args = append(args, string(s.TeamID), t, string(s.State), s.StartedAt.UnixMicro(), string(s.ID))
		}
		_, err := c.exec(ctx, `INSERT INTO sandbox_metadata (team_id, tag, state, started_at, sandbox_id) VALUES (?, ?, ?, ?, ?)`+
			strings.Repeat(`, (?, ?, ?, ?, ?)`, len(tags)-1), args...)
		return err
	})
}

func deleteTags(ctx context.Context, c conn, s *nacre.Sandbox) error {
	return eachTags(s, func(tags []any) error {
		_, err := c.exec(ctx, `DELETE FROM sandbox_metadata`+tagsOfRecord(len(tags)), tagArgs(s, tags)...)
		return err
	})
}

// moveTags puts the tags of an unchanged metadata where the record is now.
func moveTags(ctx context.Context, c conn, old, s *nacre.Sandbox) error {
	return eachTags(old, func(tags []any) error {
		args := append([]any{string(s.State), s.StartedAt.UnixMicro()}, tagArgs(old, tags)...)
		_, err := c.exec(ctx, `UPDATE sandbox_metadata SET state = ?, started_at = ?`+tagsOfRecord(len(tags)), args...)
		return err
	})
}

// tagsOfRecord is the condition on n tags of one record, whose parameters are
// tagArgs.
func tagsOfRecord(n int) string {
	return ` WHERE team_id = ? AND state = ? AND started_at = ? AND sandbox_id = ? AND tag IN (?` + strings.Repeat(`, ?`, n-1) + `)`
}

func tagArgs(s *nacre.Sandbox, tags []any) []any {
	return append([]any{string(s.TeamID), string(s.State), s.StartedAt.UnixMicro(), string(s.ID)}, tags...)
}

// eachTags calls fn with the tags of a record's metadata, some at a time: few
// texts of statements, and a bound on their parameters.
func eachTags(s *nacre.Sandbox, fn func(tags []any) error) error {
	tags := make([]any, 0, len(s.Metadata))
	for k, v := range s.Metadata {
		tags = append(tags, tag(k, v))
	}
	for some := range slices.Chunk(tags, 16) {
		if err := fn(some); err != nil {
			return err
		}
	}
	return nil
}

// Purge implements nacre.SandboxStore. It works in transactions of at most 200
// records; when it fails, n have been deleted.
func (db *DB) Purge(ctx context.Context, endedBefore time.Time, limit int) (n int, err error) {
	for n < limit {
		want := min(purgeChunk, limit-n)
		got, err := db.purgeSome(ctx, endedBefore, want)
		n += got
		if err != nil || got < want {
			return n, err
		}
	}
	return n, nil
}

func (db *DB) purgeSome(ctx context.Context, endedBefore time.Time, limit int) (n int, err error) {
	type row struct {
		s    nacre.Sandbox
		text []byte
	}
	err = db.write(ctx, func(ctx context.Context, c conn) error {
		var rows []row
		err := c.each(ctx, func(r *sql.Rows) error {
			var x row
			var started int64
			if err := r.Scan((*string)(&x.s.ID), (*string)(&x.s.TeamID), (*string)(&x.s.State), &started, &x.text); err != nil {
				return err
			}
			x.s.StartedAt = fromMicro(started)
			rows = append(rows, x)
			return nil
		}, `SELECT id, team_id, state, started_at, body FROM sandboxes`+db.d.indexed("sandboxes_ended")+`
			WHERE state = 'ended' AND ended_at < ? ORDER BY ended_at LIMIT ?`+db.d.skipBusy, endedBefore.UnixMicro(), limit)
		if err != nil {
			return err
		}
		for i := range rows {
			s := &rows[i].s
			var b body
			if err := json.Unmarshal(rows[i].text, &b); err != nil {
				return nacre.Wrap(nacre.CodeInternal, err, "the record of sandbox "+string(s.ID)+" cannot be read")
			}
			s.Metadata = b.Metadata
			if err := deleteTags(ctx, c, s); err != nil {
				return err
			}
			for _, table := range []string{"events", "previews", "preview_tokens", "secret_bindings"} {
				if _, err := c.exec(ctx, `DELETE FROM `+table+` WHERE sandbox_id = ? AND team_id = ?`, string(s.ID), string(s.TeamID)); err != nil {
					return err
				}
			}
			if _, err := c.exec(ctx, `DELETE FROM sandboxes WHERE id = ? AND team_id = ?`, string(s.ID), string(s.TeamID)); err != nil {
				return err
			}
		}
		n = len(rows)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}
