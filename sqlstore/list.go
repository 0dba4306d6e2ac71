package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/nacrehq/nacre"
)

const (
	defaultLimit = 100
	maxLimit     = 1000
	maxPairs     = 64 // of metadata in one filter
)

func limitOf(n int) int {
	if n <= 0 {
		return defaultLimit
	}
	return min(n, maxLimit)
}

// List implements nacre.SandboxStore.
//
// Whatever the filter, the work is a few ranges of one index, read in the order
// of the list until the page is full: one range for each state. The exceptions:
// a list by deadline sorts what is due, and a list by several pairs of metadata
// reads the range of the rarest pair and looks each up under the others. More
// than 64 pairs of metadata are CodeInvalid.
func (db *DB) List(ctx context.Context, f nacre.SandboxFilter) (nacre.SandboxPage, error) {
	after, err := parseCursor(f)
	if err != nil {
		return nacre.SandboxPage{}, err
	}
	limit := limitOf(f.Limit)
	sel, ok, err := db.selection(ctx, f, after)
	if err != nil || !ok {
		return nacre.SandboxPage{}, db.fail(ctx, err)
	}
	query, args := sel.page(limit + 1)
	out := make([]nacre.Sandbox, 0, min(limit+1, 128))
	err = db.reads.eachFresh(ctx, func(r *sql.Rows) error {
		out = append(out, nacre.Sandbox{})
		return db.scanSandbox(r, &out[len(out)-1])
	}, query, args...)
	if err != nil {
		return nacre.SandboxPage{}, db.fail(ctx, err)
	}
	page := nacre.SandboxPage{Sandboxes: out}
	if len(out) > limit {
		page.Sandboxes = out[:limit]
		last := &out[limit-1]
		page.Next = cursor{started: last.StartedAt.UnixMicro(), id: last.ID}.encode(f)
	}
	return page, nil
}

// Count implements nacre.SandboxStore. It reads one index entry for each record
// that it counts.
func (db *DB) Count(ctx context.Context, f nacre.SandboxFilter) (int, error) {
	sel, ok, err := db.selection(ctx, f, nil)
	if err != nil || !ok {
		return 0, db.fail(ctx, err)
	}
	query, args := sel.count()
	n := 0
	err = db.reads.eachFresh(ctx, func(r *sql.Rows) error { return r.Scan(&n) }, query, args...)
	return n, db.fail(ctx, err)
}

// selection is a filter made into arms: SELECTs of (id, started_at) without a
// record in common.
type selection struct {
	arms []arm
	sort bool // the arm's index does not give the list's order
	up   bool // the oldest first
}

// arm reads one range of an index.
type arm struct {
	from  string // the table, with its index
	id    string // the column that holds the sandbox's id
	key   string // what the record is found with,
	find  string // and by which column; the same in all arms of a selection
	conds []string
	args  []any
}

func (a *arm) and(cond string, args ...any) {
	a.conds = append(a.conds, cond)
	a.args = append(a.args, args...)
}

// selection chooses the index that the filter is answered from. ok is false for
// a filter that can find nothing.
func (db *DB) selection(ctx context.Context, f nacre.SandboxFilter, after *cursor) (sel selection, ok bool, err error) {
	if len(f.Metadata) > maxPairs {
		return selection{}, false, nacre.Invalidf("metadata", "a list can be restricted by %d pairs of metadata, not %d", maxPairs, len(f.Metadata))
	}
	f.AllTeams = f.AllTeams && f.TeamID == ""
	states, ok := statesOf(f)
	if !ok {
		return selection{}, false, nil
	}
	var ids string
	if len(f.IDs) > 0 {
		if ids, ok = idsOf(f); !ok {
			return selection{}, false, nil
		}
	}
	sel.up = f.OldestFirst
	tags := tagsOf(f)
	if ids != "" || !f.DeadlineBefore.IsZero() {
		// One arm, with everything else as a condition.
		a := db.recordArm("sandboxes_due", f, states, tags, true)
		if ids != "" {
			a.from = "sandboxes s" + db.d.indexed("sqlite_autoindex_sandboxes_1")
			a.and("s.id IN ("+db.d.jsonList+")", ids)
		}
		sel.arms, sel.sort = []arm{a}, true
		sel.after(after)
		return sel, true, nil
	}
	if len(tags) > 1 && !f.AllTeams {
		if err := db.rarestFirst(ctx, f.TeamID, states, tags); err != nil {
			return selection{}, false, err
		}
	}
	for _, state := range states {
		var a arm
		switch {
		case len(tags) > 0 && !f.AllTeams:
			a = db.tagArm(f, state, tags)
		case f.Name != "" && !f.AllTeams:
			a = db.recordArm("sandboxes_name", f, []nacre.State{state}, tags, false)
		case f.Node != "":
			a = db.recordArm("sandboxes_node", f, []nacre.State{state}, tags, false)
		case !f.AllTeams:
			a = db.recordArm("sandboxes_team", f, []nacre.State{state}, tags, false)
		default:
			a = db.recordArm("sandboxes_state", f, []nacre.State{state}, tags, false)
		}
		sel.arms = append(sel.arms, a)
	}
	sel.after(after)
	return sel, true, nil
}

// recordArm reads records by one of their indexes. A plain arm's conditions are
// the index's columns. A fenced one's must not tempt PostgreSQL to combine or
// prefer other indexes, which may hold most of the records: their columns are
// joined to an empty text, which no index has. What stands in another table is
// asked for with a count, which is looked up record by record: of an EXISTS
// PostgreSQL would make a join and read the whole of the other range.
func (db *DB) recordArm(index string, f nacre.SandboxFilter, states []nacre.State, tags [][]byte, fenced bool) arm {
	a := arm{from: "sandboxes s" + db.d.indexed(index), id: "s.id", key: db.d.rowKey, find: db.d.rowKey}
	fence := ""
	if fenced {
		fence = " || ''"
	}
	if !f.AllTeams {
		a.and("s.team_id"+fence+" = ?", string(f.TeamID))
	}
	if f.Node != "" {
		a.and("s.node"+fence+" = ?", string(f.Node))
	}
	if f.Name != "" {
		a.and("s.name"+fence+" = ? AND s.name <> ''", f.Name)
	}
	if !f.DeadlineBefore.IsZero() {
		a.and("s.due_at <= ?", f.DeadlineBefore.UnixMicro())
	}
	if len(states) < len(nacre.Transitions) {
		a.and("s.state"+fence+" IN (?"+strings.Repeat(", ?", len(states)-1)+")", anys(states)...)
	}
	for _, t := range tags {
		a.and(`1 = (SELECT count(*) FROM sandbox_metadata m WHERE m.team_id = s.team_id AND m.tag = ?
			AND m.state = s.state AND m.started_at = s.started_at AND m.sandbox_id = s.id)`, t)
	}
	return a
}

// tagArm reads the range of one pair of metadata of one team.
func (db *DB) tagArm(f nacre.SandboxFilter, state nacre.State, tags [][]byte) arm {
	a := arm{from: "sandbox_metadata s", id: "s.sandbox_id", key: "s.sandbox_id", find: "s.id"}
	a.and("s.team_id = ? AND s.tag = ? AND s.state = ?", string(f.TeamID), tags[0], string(state))
	for _, t := range tags[1:] {
		a.and(`1 = (SELECT count(*) FROM sandbox_metadata m WHERE m.team_id = s.team_id AND m.tag = ?
			AND m.state = s.state AND m.started_at = s.started_at AND m.sandbox_id = s.sandbox_id)`, t)
	}
	if f.Node != "" {
		a.and("1 = (SELECT count(*) FROM sandboxes r WHERE r.id = s.sandbox_id AND r.node = ?)", string(f.Node))
	}
	if f.Name != "" {
		a.and("1 = (SELECT count(*) FROM sandboxes r WHERE r.id = s.sandbox_id AND r.name = ?)", f.Name)
	}
	return a
}

// after restricts the arms to what comes behind the cursor.
func (s *selection) after(c *cursor) {
	if c == nil {
		return
	}
	behind := " < "
	if s.up {
		behind = " > "
	}
	for i := range s.arms {
		a := &s.arms[i]
		a.and("("+s.column()+", "+a.id+")"+behind+"(?, ?)", c.started, string(c.id))
	}
}

// column is what an arm is ordered by. One whose index has another order must not
// be tempted by this one: hence the sum.
func (s *selection) column() string {
	if s.sort {
		return "s.started_at + 0"
	}
	return "s.started_at"
}

// by is the order by two columns.
func (s *selection) by(first, second string) string {
	if s.up {
		return " ORDER BY " + first + ", " + second
	}
	return " ORDER BY " + first + " DESC, " + second + " DESC"
}

// page returns the query for the first n records.
func (s selection) page(n int) (string, []any) {
	var b strings.Builder
	var args []any
	b.WriteString("SELECT " + sandboxColumns + " FROM (SELECT id, started_at, k FROM (")
	for i, a := range s.arms {
		if i > 0 {
			b.WriteString(" UNION ALL ")
		}
		// The arm's limit is written out, rounded up to a power of two: PostgreSQL
		// plans for a limit that it sees, and the texts stay few.
		limit := 1 << bits.Len(uint(n-1))
		b.WriteString("SELECT * FROM (SELECT " + a.id + " AS id, s.started_at AS started_at, " + a.key + " AS k FROM " + a.from + " WHERE " + strings.Join(a.conds, " AND ") +
			s.by(s.column(), a.id) + " LIMIT " + strconv.Itoa(limit) + ") AS a" + strconv.Itoa(i))
		args = append(args, a.args...)
	}
	b.WriteString(") AS u" + s.by("started_at", "id") + " LIMIT ?) AS c CROSS JOIN sandboxes s WHERE " + s.arms[0].find + " = c.k" + s.by("c.started_at", "c.id"))
	return b.String(), append(args, n)
}

func (s selection) count() (string, []any) {
	var b strings.Builder
	var args []any
	b.WriteString("SELECT count(*) FROM (")
	for i, a := range s.arms {
		if i > 0 {
			b.WriteString(" UNION ALL ")
		}
		b.WriteString("SELECT " + a.id + " AS id FROM " + a.from)
		if len(a.conds) > 0 {
			b.WriteString(" WHERE " + strings.Join(a.conds, " AND "))
		}
		args = append(args, a.args...)
	}
	b.WriteString(") AS u")
	return b.String(), args
}

// statesOf returns the states to look in; ok is false when there are none, or
// no team was named.
func statesOf(f nacre.SandboxFilter) (states []nacre.State, ok bool) {
	if f.TeamID == "" && !f.AllTeams || !plain(string(f.TeamID)) || !plain(string(f.Node)) || !plain(f.Name) || !validMap(f.Metadata) {
		return nil, false
	}
	for _, s := range slices.Sorted(maps.Keys(nacre.Transitions)) {
		if len(f.States) == 0 || slices.Contains(f.States, s) {
			states = append(states, s)
		}
	}
	return states, len(states) > 0
}

// idsOf returns the filter's ids as a JSON array.
func idsOf(f nacre.SandboxFilter) (string, bool) {
	ids := make([]nacre.SandboxID, 0, len(f.IDs))
	for _, id := range f.IDs {
		if id.Valid() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	text, err := json.Marshal(slices.Compact(ids))
	return string(text), err == nil && len(ids) > 0
}

// tagsOf returns the tags of the filter's metadata.
func tagsOf(f nacre.SandboxFilter) [][]byte {
	var tags [][]byte
	for _, k := range slices.Sorted(maps.Keys(f.Metadata)) {
		tags = append(tags, tag(k, f.Metadata[k]))
	}
	return tags
}

// enough entries make a pair of metadata a frequent one; counting stops there.
const enough = 512

// rarestFirst sorts tags by how many records have them, as far as it matters.
func (db *DB) rarestFirst(ctx context.Context, team nacre.TeamID, states []nacre.State, tags [][]byte) error {
	query := `SELECT count(*) FROM (SELECT 1 FROM sandbox_metadata WHERE team_id = ? AND tag = ? AND state IN (?` +
		strings.Repeat(", ?", len(states)-1) + `) LIMIT ` + strconv.Itoa(enough) + `) AS x`
	counts := map[string]int{}
	for _, t := range tags {
		n := 0
		err := db.reads.eachFresh(ctx, func(r *sql.Rows) error { return r.Scan(&n) }, query, append([]any{string(team), t}, anys(states)...)...)
		if err != nil {
			return err
		}
		counts[string(t)] = n
	}
	slices.SortStableFunc(tags, func(a, b []byte) int { return counts[string(a)] - counts[string(b)] })
	return nil
}

func anys(states []nacre.State) []any {
	out := make([]any, len(states))
	for i, s := range states {
		out[i] = string(s)
	}
	return out
}
