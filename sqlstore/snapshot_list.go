package sqlstore

import (
	"context"
	"database/sql"
	"strings"

	"github.com/nacrehq/nacre"
)

// ListSnapshots implements nacre.SnapshotStore. A bad cursor is CodeInvalid.
func (db *DB) ListSnapshots(ctx context.Context, f nacre.SnapshotFilter) (nacre.SnapshotPage, error) {
	after, err := parseSnapshotCursor(f)
	if err != nil {
		return nacre.SnapshotPage{}, err
	}
	if f.TeamID == "" && !f.AllTeams || !plain(string(f.TeamID)) || !plain(string(f.Sandbox)) || !plain(f.Name) {
		return nacre.SnapshotPage{}, nil
	}
	limit := limitOf(f.Limit)
	query, args := db.snapshotQuery(f, after, limit+1)
	var out []nacre.Snapshot
	err = db.reads.eachFresh(ctx, func(r *sql.Rows) error {
		out = append(out, nacre.Snapshot{})
		return db.scanSnapshot(r, &out[len(out)-1])
	}, query, args...)
	if err != nil {
		return nacre.SnapshotPage{}, db.fail(ctx, err)
	}
	page := nacre.SnapshotPage{Snapshots: out}
	if len(out) > limit {
		page.Snapshots = out[:limit]
		last := &out[limit-1]
		page.Next = encodeCursor(snapshotShape(f), last.CreatedAt.UnixMicro(), string(last.ID))
	}
	return page, nil
}

// snapshotQuery selects the first n snapshots of a list.
func (db *DB) snapshotQuery(f nacre.SnapshotFilter, after *snapshotCursor, n int) (string, []any) {
	index := "snapshots_all"
	switch {
	case !f.ExpiresBefore.IsZero():
		index = "snapshots_expires"
	case f.Sandbox != "":
		index = "snapshots_sandbox"
	case f.TeamID != "" && f.Name != "":
		index = "snapshots_name"
	case f.TeamID != "":
		index = "snapshots_team"
	}
	a := arm{from: "snapshots s" + db.d.indexed(index)}
	if f.TeamID != "" {
		a.and("s.team_id = ?", string(f.TeamID))
	}
	if f.Sandbox != "" {
		a.and("s.sandbox_id = ?", string(f.Sandbox))
	}
	if f.Name != "" {
		a.and("s.name = ? AND s.name <> ''", f.Name)
	}
	if !f.ExpiresBefore.IsZero() {
		a.and("s.expires_at <= ?", f.ExpiresBefore.UnixMicro())
	}
	kinds := f.Kinds
	if len(kinds) == 0 {
		kinds = []nacre.SnapshotKind{nacre.SnapshotUser}
	}
	a.and("s.kind IN (?"+strings.Repeat(", ?", len(kinds)-1)+")", texts(kinds)...)
	if len(f.States) > 0 {
		a.and("s.state IN (?"+strings.Repeat(", ?", len(f.States)-1)+")", texts(f.States)...)
	}
	if after != nil {
		a.and("(s.created_at, s.id) < (?, ?)", after.created, string(after.id))
	}
	return `SELECT ` + snapshotColumns + ` FROM ` + a.from + ` WHERE ` + strings.Join(a.conds, " AND ") +
		` ORDER BY s.created_at DESC, s.id DESC LIMIT ?`, append(a.args, n)
}

// texts are the parameters of an IN; one that no database keeps finds nothing.
func texts[T ~string](list []T) []any {
	out := make([]any, len(list))
	for i, v := range list {
		if out[i] = string(v); !plain(string(v)) {
			out[i] = ""
		}
	}
	return out
}
