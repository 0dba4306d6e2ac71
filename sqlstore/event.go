package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"slices"
	"strings"

	"github.com/nacrehq/nacre"
)

// eventRows is how many events one statement writes: few texts of statements.
const eventRows = 4

// insertEvents writes the events of a change of s. An event without a time gets
// the clock's; team and sandbox are always the record's.
func (db *DB) insertEvents(ctx context.Context, c conn, s *nacre.Sandbox, events []nacre.Event) error {
	return db.insertEventsFrom(ctx, c, s, 0, events...)
}

// insertEventsFrom is insertEvents in a transaction that has written n before.
func (db *DB) insertEventsFrom(ctx context.Context, c conn, s *nacre.Sandbox, n int, events ...nacre.Event) error {
	if n+len(events) > maxEvents {
		return nacre.Errorf(nacre.CodeInvalid, "a change may write %d events, not %d", maxEvents, len(events))
	}
	if len(events) > 0 && c.wrote != nil {
		*c.wrote = true
	}
	row := `(` + db.d.eventSeq + `?, ?, ?, ?, ?)`
	for some := range slices.Chunk(events, eventRows) {
		args := make([]any, 0, 6*len(some))
		for _, e := range some {
			if e.TeamID != "" && e.TeamID != s.TeamID || e.SandboxID != "" && e.SandboxID != s.ID {
				return nacre.Errorf(nacre.CodeInvalid, "an event of another sandbox cannot be written with this one")
			}
			if e.Kind == "" || !plain(string(e.Kind)) {
				return nacre.Errorf(nacre.CodeInvalid, "an event needs a kind")
			}
			if e.Time.IsZero() {
				e.Time = db.clock()
			}
			data, err := json.Marshal(e.Data)
			if err != nil {
				return nacre.Wrap(nacre.CodeInternal, err, "an event cannot be encoded")
			}
			if db.d.postgres {
				args = append(args, n)
			}
			n++
			args = append(args, e.Time.UnixMicro(), string(s.TeamID), string(s.ID), string(e.Kind), string(data))
		}
		query := `INSERT INTO events (` + db.d.eventCols + `at, team_id, sandbox_id, kind, data) VALUES ` + row + strings.Repeat(`, `+row, len(some)-1)
		if _, err := c.exec(ctx, query, args...); err != nil {
			return err
		}
	}
	return nil
}

// Events implements nacre.EventLog. On PostgreSQL an event waits until no older
// transaction of the server is open, so that a reader who goes on from the last
// Seq it saw never misses one.
func (db *DB) Events(ctx context.Context, f nacre.EventFilter) ([]nacre.Event, error) {
	if f.TeamID == "" && !f.AllTeams || !plain(string(f.TeamID)) || f.SandboxID != "" && !f.SandboxID.Valid() {
		return nil, nil
	}
	a := arm{from: "events"}
	if f.TeamID != "" {
		a.and("team_id = ?", string(f.TeamID))
		if f.SandboxID == "" {
			a.from += db.d.indexed("events_team")
		}
	}
	if f.SandboxID != "" {
		a.from += db.d.indexed("events_sandbox")
		a.and("sandbox_id = ?", string(f.SandboxID))
	}
	if len(f.Kinds) > 0 {
		kinds := make([]any, 0, len(f.Kinds))
		for _, k := range f.Kinds {
			if plain(string(k)) {
				kinds = append(kinds, string(k))
			}
		}
		if len(kinds) == 0 {
			return nil, nil
		}
		a.and("kind IN (?"+strings.Repeat(", ?", len(kinds)-1)+")", kinds...)
	}
	a.and("seq > ? AND seq < "+db.d.horizon, f.After)
	query := `SELECT seq, at, team_id, sandbox_id, kind, data FROM ` + a.from +
		` WHERE ` + strings.Join(a.conds, " AND ") + ` ORDER BY seq LIMIT ?`

	var out []nacre.Event
	err := db.reads.eachFresh(ctx, func(r *sql.Rows) error {
		var e nacre.Event
		var at int64
		var data []byte
		if err := r.Scan(&e.Seq, &at, (*string)(&e.TeamID), (*string)(&e.SandboxID), (*string)(&e.Kind), &data); err != nil {
			return err
		}
		e.Time = fromMicro(at)
		if err := json.Unmarshal(data, &e.Data); err != nil {
			return nacre.Wrap(nacre.CodeInternal, err, "an event cannot be read")
		}
		out = append(out, e)
		return nil
	}, query, append(a.args, limitOf(f.Limit))...)
	return out, db.fail(ctx, err)
}
