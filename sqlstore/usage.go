package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

// openEnd is the end of a span that goes on. The indexes name it as a literal.
const (
	openEnd    = math.MaxInt64
	whileOpen  = `end_at = 9223372036854775807`
	sinceEnded = `end_at < 9223372036854775807`
)

func endMilli(t time.Time) int64 {
	if t.IsZero() {
		return openEnd
	}
	return t.UnixMilli()
}

func fromEndMilli(ms int64) time.Time {
	if ms == openEnd {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// UsageMark implements nacre.UsageStore.
func (db *DB) UsageMark(ctx context.Context) (nacre.UsageMark, error) {
	m, _, err := usageMark(ctx, db.reads, "")
	return m, db.fail(ctx, err)
}

func usageMark(ctx context.Context, c conn, suffix string) (m nacre.UsageMark, found bool, err error) {
	found, err = c.one(ctx, func(r *sql.Rows) error {
		var wall int64
		err := r.Scan(&m.Seq, &wall, (*int64)(&m.Steady), &m.Boot)
		m.Wall = fromUnixMicro(wall)
		return err
	}, `SELECT seq, wall, steady, boot FROM usage_mark WHERE one = 1`+suffix)
	return m, found, err
}

const spanColumns = `seq, team_id, sandbox_id, kind, start_at, end_at, cpus, memory_mib, disk_mib, labels`

func scanSpan(r *sql.Rows, s *nacre.UsageSpan) error {
	var start, end int64
	var labels []byte
	err := r.Scan(&s.Seq, (*string)(&s.TeamID), (*string)(&s.Sandbox), (*string)(&s.Kind), &start, &end,
		&s.Resources.CPUs, &s.Resources.MemoryMiB, &s.Resources.DiskMiB, &labels)
	if err != nil {
		return err
	}
	s.Start, s.End = time.UnixMilli(start).UTC(), fromEndMilli(end)
	if err := json.Unmarshal(labels, &s.Labels); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the labels of usage cannot be read")
	}
	return nil
}

// OpenUsage implements nacre.UsageStore.
func (db *DB) OpenUsage(ctx context.Context, ids []nacre.SandboxID) ([]nacre.UsageSpan, error) {
	var out []nacre.UsageSpan
	scan := func(r *sql.Rows) error {
		out = append(out, nacre.UsageSpan{})
		return scanSpan(r, &out[len(out)-1])
	}
	query := `SELECT ` + spanColumns + ` FROM usage_spans` + db.d.indexed("usage_spans_open") + ` WHERE ` + whileOpen
	if ids == nil {
		err := db.reads.each(ctx, scan, query+` ORDER BY seq`)
		return out, db.fail(ctx, err)
	}
	for some := range slices.Chunk(ids, 64) {
		args := make([]any, 0, 64)
		for _, id := range some {
			args = append(args, string(id))
		}
		for len(args) < 64 { // one text of the statement
			args = append(args, "")
		}
		if err := db.reads.each(ctx, scan, query+` AND sandbox_id IN (?`+strings.Repeat(", ?", 63)+`)`, args...); err != nil {
			return nil, db.fail(ctx, err)
		}
	}
	return out, nil
}

// FoldUsage implements nacre.UsageStore. Spans are written in the order of Seq.
func (db *DB) FoldUsage(ctx context.Context, from, to nacre.UsageMark, spans []nacre.UsageSpan) error {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b nacre.UsageSpan) int { return cmp.Compare(a.Seq, b.Seq) })
	return db.write(ctx, func(ctx context.Context, c conn) error {
		have, found, err := usageMark(ctx, c, db.d.forUpdate)
		if err != nil {
			return err
		}
		from.Wall = fromUnixMicro(unixMicro(from.Wall))
		if have != from {
			return nacre.Errorf(nacre.CodeConflict, "usage was folded by another; read the mark again")
		}
		query := `UPDATE usage_mark SET seq = ?, wall = ?, steady = ?, boot = ? WHERE one = 1`
		if !found {
			query = `INSERT INTO usage_mark (seq, wall, steady, boot, one) VALUES (?, ?, ?, ?, 1) ON CONFLICT DO NOTHING`
		}
		n, err := c.exec(ctx, query, to.Seq, unixMicro(to.Wall), int64(to.Steady), to.Boot)
		if err != nil {
			return err
		}
		if n != 1 {
			return nacre.Errorf(nacre.CodeConflict, "usage was folded by another; read the mark again")
		}
		for _, s := range spans {
			if err := putSpan(ctx, c, s); err != nil {
				return err
			}
		}
		return countTemplates(ctx, c, from.Seq, to.Seq)
	})
}

func putSpan(ctx context.Context, c conn, s nacre.UsageSpan) error {
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	labels, err := json.Marshal(s.Labels)
	if err != nil {
		return err
	}
	_, err = c.exec(ctx, `INSERT INTO usage_spans (`+spanColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (seq) DO UPDATE SET start_at = excluded.start_at, end_at = excluded.end_at`,
		s.Seq, string(s.TeamID), string(s.Sandbox), string(s.Kind), s.Start.UnixMilli(), endMilli(s.End),
		s.Resources.CPUs, s.Resources.MemoryMiB, s.Resources.DiskMiB, string(labels))
	return err
}

// usageCond selects what a filter's period touches.
func (db *DB) usageCond(f nacre.UsageFilter) (a arm, ok bool) {
	if f.TeamID == "" || !plain(string(f.TeamID)) || f.Sandbox != "" && !f.Sandbox.Valid() || f.Now.IsZero() {
		return arm{}, false
	}
	a.from = "usage_spans" + db.d.indexed("usage_spans_team")
	if f.Sandbox != "" {
		a.from = "usage_spans" + db.d.indexed("usage_spans_sandbox")
		a.and("sandbox_id = ?", string(f.Sandbox))
	}
	a.and("team_id = ?", string(f.TeamID))
	a.and("start_at < ?", endMilli(f.To))
	a.and("end_at > ?", f.From.UnixMilli())
	return a, true
}

// clipped selects from what usageCond does, with the ends cut to the period.
func clipped(f nacre.UsageFilter, a arm) (query string, args []any) {
	to := endMilli(f.To)
	return `SELECT labels, sandbox_id, kind, cpus, memory_mib, disk_mib, CASE WHEN e > s THEN e - s ELSE 0 END AS ms FROM (
		SELECT labels, sandbox_id, kind, cpus, memory_mib, disk_mib,
		CASE WHEN start_at < ? THEN ? ELSE start_at END AS s,
		CASE WHEN ` + whileOpen + ` THEN ? WHEN end_at > ? THEN ? ELSE end_at END AS e
		FROM ` + a.from + ` WHERE ` + strings.Join(a.conds, " AND ") + `) y`,
		append([]any{f.From.UnixMilli(), f.From.UnixMilli(), min(f.Now.UnixMilli(), to), to, to}, a.args...)
}

// SumUsage implements nacre.UsageStore. The database sums by sets of labels, of which
// there are few; those are grouped here.
func (db *DB) SumUsage(ctx context.Context, f nacre.UsageFilter, group string) ([]nacre.UsageSum, error) {
	a, ok := db.usageCond(f)
	if !ok {
		return nil, nil
	}
	by := "labels"
	if group == "" {
		by = "labels, sandbox_id"
	}
	part := func(expr, kind string) string {
		return `CAST(SUM(CASE WHEN kind = '` + kind + `' THEN ms * ` + expr + ` ELSE 0 END) AS BIGINT)`
	}
	spans, args := clipped(f, a)
	query := `SELECT labels, MIN(sandbox_id), COUNT(DISTINCT sandbox_id), CAST(SUM(CASE WHEN kind = 'running' THEN 1 ELSE 0 END) AS BIGINT), ` +
		part("1", "running") + `, ` + part("1", "paused") + `, ` + part("cpus", "running") + `, ` + part("memory_mib", "running") + `, ` + part("disk_mib", "paused") +
		` FROM (` + spans + `) x GROUP BY ` + by

	sums := map[string]*nacre.UsageSum{}
	err := db.reads.eachFresh(ctx, func(r *sql.Rows) error {
		var u nacre.UsageSum
		var text []byte
		var id string
		var running, paused int64
		if err := r.Scan(&text, &id, &u.Sandboxes, &u.Runs, &running, &paused, &u.VCPUMs, &u.MemoryMs, &u.DiskMs); err != nil {
			return err
		}
		var labels map[string]string
		if err := json.Unmarshal(text, &labels); err != nil {
			return err
		}
		for k, v := range f.Labels {
			if labels[k] != v {
				return nil
			}
		}
		if u.Group = id; group != "" {
			u.Group = labels[group]
		}
		u.Running, u.Paused = time.Duration(running)*time.Millisecond, time.Duration(paused)*time.Millisecond
		addUsage(sums, u, group == "")
		return nil
	}, query, args...)
	if err != nil {
		return nil, db.fail(ctx, err)
	}
	out := make([]nacre.UsageSum, 0, len(sums))
	for _, u := range sums {
		out = append(out, *u)
	}
	slices.SortFunc(out, func(a, b nacre.UsageSum) int { return strings.Compare(a.Group, b.Group) })
	return out, nil
}

// addUsage adds u to its group; of one sandbox there is only one.
func addUsage(sums map[string]*nacre.UsageSum, u nacre.UsageSum, single bool) {
	have := sums[u.Group]
	if have == nil {
		sums[u.Group] = &u
		return
	}
	if single {
		u.Sandboxes = 0
	}
	have.Add(u)
}

// UsageSpans implements nacre.UsageStore.
func (db *DB) UsageSpans(ctx context.Context, f nacre.UsageFilter, limit int) ([]nacre.UsageSpan, error) {
	a, ok := db.usageCond(f)
	if !ok {
		return nil, nil
	}
	var out []nacre.UsageSpan
	limit = limitOf(limit)
	err := db.reads.eachFresh(ctx, func(r *sql.Rows) error {
		var s nacre.UsageSpan
		if err := scanSpan(r, &s); err != nil {
			return err
		}
		for k, v := range f.Labels {
			if s.Labels[k] != v {
				return nil
			}
		}
		if s.Start.Before(f.From) {
			s.Start = f.From
		}
		if !s.End.IsZero() && !f.To.IsZero() && s.End.After(f.To) {
			s.End = f.To
		}
		if len(out) < limit {
			out = append(out, s)
		}
		return nil
	}, `SELECT `+spanColumns+` FROM `+a.from+` WHERE `+strings.Join(a.conds, " AND ")+` ORDER BY start_at DESC, seq DESC`, a.args...)
	return out, db.fail(ctx, err)
}

// PurgeUsage implements nacre.UsageStore.
func (db *DB) PurgeUsage(ctx context.Context, endedBefore time.Time, limit int) (int, error) {
	var n int64
	err := db.write(ctx, func(ctx context.Context, c conn) (err error) {
		n, err = c.exec(ctx, `DELETE FROM usage_spans WHERE seq IN (SELECT seq FROM usage_spans`+db.d.indexed("usage_spans_ended")+
			` WHERE `+sinceEnded+` AND end_at < ? ORDER BY end_at LIMIT ?)`, endedBefore.UnixMilli(), limit)
		return err
	})
	return int(n), err
}
