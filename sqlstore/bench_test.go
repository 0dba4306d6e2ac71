package sqlstore

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

// benchEngines runs a benchmark on both databases.
func benchEngines(b *testing.B, run func(b *testing.B, db *DB)) {
	if testing.Short() {
		b.Skip("takes minutes: left out with -short")
	}
	b.Run("SQLite", func(b *testing.B) {
		path := filepath.Join(b.TempDir(), "nacre.db")
		if kept := os.Getenv("NACRE_BENCH_SQLITE"); kept != "" { // seeded once, kept between runs
			path = kept
		}
		run(b, reopen(b, path, Options{}))
	})
	b.Run("PostgreSQL", func(b *testing.B) { run(b, openPostgres(b, Options{})) })
}

// percentiles reports how long one call of f takes.
func percentiles(b *testing.B, f func() error) {
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	reportPercentiles(b, took)
}

func reportPercentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	at := func(p int) float64 { return float64(took[min(len(took)-1, len(took)*p/100)].Microseconds()) / 1000 }
	b.ReportMetric(at(50), "p50-ms")
	b.ReportMetric(at(99), "p99-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkWrites: pairs of an Insert and an Update, as a create makes them.
func BenchmarkWrites(b *testing.B) {
	benchEngines(b, func(b *testing.B, db *DB) {
		for _, callers := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
				var wg sync.WaitGroup
				start := time.Now()
				for i := range callers {
					wg.Go(func() {
						for n := i; n < b.N; n += callers {
							if err := pair(b.Context(), db); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				d := time.Since(start)
				b.ReportMetric(float64(b.N)/d.Seconds(), "pairs/s")
				b.ReportMetric(float64(d.Microseconds())/1000*float64(callers)/float64(b.N), "ms/pair")
				b.ReportMetric(0, "ns/op")
			})
		}
	})
}

func pair(ctx context.Context, db *DB) error {
	s := nacretest.SampleSandbox("team_writes", nacre.StateCreating)
	s.Machine = ""
	if err := db.Insert(ctx, s, nacre.Event{Kind: nacre.EventCreated}); err != nil {
		return err
	}
	_, err := db.Update(ctx, s.TeamID, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		r.Machine, r.StartedAt = nacre.NewMachineID(), time.Now()
		return []nacre.Event{{Kind: nacre.EventRunning}}, r.Move(nacre.StateRunning)
	})
	return err
}

// million describes the seeded records: a big team with many running, a big one
// with five running, and a thousand small ones.
type million struct {
	n     int
	big   nacre.TeamID
	quiet nacre.TeamID
	ids   []nacre.Sandbox // some of big's
	now   time.Time
}

func (m *million) record(rng *rand.Rand, i int) nacre.Sandbox {
	s := nacretest.SampleSandbox(m.big, nacre.StateEnded)
	s.Env = nil
	s.StartedAt = m.now.Add(-time.Duration(m.n-i) * time.Second / 10)
	s.CreatedAt = s.StartedAt
	s.EndedAt = s.StartedAt.Add(time.Minute)
	s.Deadline = m.now.Add(time.Duration(1+rng.IntN(3600)) * time.Second)
	s.Node = nacre.NodeID("node-" + strconv.Itoa(rng.IntN(10)))
	s.Metadata = map[string]string{"user": strconv.Itoa(rng.IntN(50000)), "env": "prod", "region": []string{"eu", "us", "ap"}[rng.IntN(3)]}
	if rng.IntN(10) == 0 {
		s.Metadata["env"] = "test"
	}
	switch p := i % 10; {
	case p < 6:
		switch x := rng.IntN(100); {
		case x < 10:
			s.State = nacre.StateRunning
		case x < 16:
			s.State = nacre.StatePaused
		}
		if rng.IntN(m.n/50) == 0 {
			s.Metadata["rare"] = "yes"
		}
	case p < 9:
		s.TeamID = m.quiet
		if i%(m.n/5/10*10) == 6 {
			s.State = nacre.StateRunning
		}
	default:
		s.TeamID = nacre.TeamID("team_small" + strconv.Itoa(rng.IntN(1000)))
		if rng.IntN(100) == 0 {
			s.State = nacre.StateRunning
		}
	}
	if s.Alive() && rng.IntN(m.n/5000) == 0 {
		s.Deadline = m.now.Add(-time.Second) // a few hundred are due
	}
	return s
}

// seed fills an empty database, by the shortest way.
func seed(b *testing.B, db *DB, m *million) {
	rng := rand.New(rand.NewPCG(1, 1))
	const chunk = 500
	for i := 0; i < m.n; i += chunk * 20 {
		err := db.write(b.Context(), func(ctx context.Context, c conn) error {
			for j := i; j < min(m.n, i+chunk*20); j += chunk {
				if err := seedChunk(ctx, db, c, m, rng, j, min(m.n, j+chunk)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func seedChunk(ctx context.Context, db *DB, c conn, m *million, rng *rand.Rand, from, to int) error {
	var rows, tags, events []any
	ntags := 0
	for i := from; i < to; i++ {
		s := m.record(rng, i)
		text, err := encodeBody(&s)
		if err != nil {
			return err
		}
		rows = append(rows, string(s.ID), string(s.TeamID), string(s.State), string(s.Node), s.CreatedAt.UnixMicro(), s.StartedAt.UnixMicro(),
			s.Deadline.UnixMicro(), dueAt(&s), s.EndedAt.UnixMicro(), 1, text)
		for k, v := range s.Metadata {
			tags = append(tags, string(s.TeamID), tag(k, v), string(s.State), s.StartedAt.UnixMicro(), string(s.ID))
			ntags++
		}
		events = append(events, i+1, s.StartedAt.UnixMicro(), string(s.TeamID), string(s.ID), string(nacre.EventCreated), "{}")
	}
	values := func(n, cols int) string {
		row := "(?" + strings.Repeat(",?", cols-1) + ")"
		return row + strings.Repeat(","+row, n-1)
	}
	for _, q := range []struct {
		text string
		args []any
	}{
		{`INSERT INTO sandboxes (id,team_id,state,node,created_at,started_at,deadline,due_at,ended_at,version,body) VALUES ` + values(to-from, 11), rows},
		{`INSERT INTO sandbox_metadata (team_id,tag,state,started_at,sandbox_id) VALUES ` + values(ntags, 5), tags},
		{`INSERT INTO events (seq,at,team_id,sandbox_id,kind,data) VALUES ` + values(to-from, 6), events},
	} {
		if _, err := c.on.ExecContext(ctx, db.d.rebind(q.text), q.args...); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkMillion: what lists, counts and single reads take among 1,000,000
// records (NACRE_BENCH_RECORDS changes the number).
func BenchmarkMillion(b *testing.B) {
	benchEngines(b, func(b *testing.B, db *DB) {
		m := &million{n: 1_000_000, big: "team_big", quiet: "team_quiet", now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
		if n, err := strconv.Atoi(os.Getenv("NACRE_BENCH_RECORDS")); err == nil {
			m.n = n
		}
		ctx := b.Context()
		start := time.Now()
		if n, err := db.Count(ctx, nacre.SandboxFilter{TeamID: m.quiet, Limit: 1}); err != nil {
			b.Fatal(err)
		} else if n == 0 {
			seed(b, db, m)
			b.Logf("%d records seeded in %v", m.n, time.Since(start))
		}
		if db.d.postgres {
			if _, err := db.pool.Exec(`UPDATE event_base SET base = base + $1`, m.n); err != nil { // the seeds' numbers are taken
				b.Fatal(err)
			}
			if _, err := db.pool.Exec(`VACUUM ANALYZE`); err != nil { // as autovacuum does
				b.Fatal(err)
			}
		}
		rng := rand.New(rand.NewPCG(2, 2))
		deep := m.deepCursors(b, db)
		for _, c := range m.cases(rng, deep) {
			b.Run(c.name, func(b *testing.B) {
				found := 0
				percentiles(b, func() error {
					page, err := db.List(ctx, c.filter())
					found = len(page.Sandboxes)
					return err
				})
				b.ReportMetric(float64(found), "records")
			})
		}
		b.Run("get", func(b *testing.B) {
			percentiles(b, func() error {
				_, err := db.Get(ctx, m.big, m.ids[rng.IntN(len(m.ids))].ID)
				return err
			})
		})
		b.Run("count the running of a small team", func(b *testing.B) {
			percentiles(b, func() error {
				_, err := db.Count(ctx, nacre.SandboxFilter{TeamID: m.quiet, States: []nacre.State{nacre.StateRunning}})
				return err
			})
		})
		b.Run("events of a team after", func(b *testing.B) {
			percentiles(b, func() error {
				_, err := db.Events(ctx, nacre.EventFilter{TeamID: m.big, After: int64(rng.IntN(m.n))})
				return err
			})
		})
		b.Run("insert and update", func(b *testing.B) { percentiles(b, func() error { return pair(ctx, db) }) })
	})
}

// deepCursors walks a long list and returns places in it.
func (m *million) deepCursors(b *testing.B, db *DB) []string {
	f := nacre.SandboxFilter{TeamID: m.big, States: []nacre.State{nacre.StateRunning}, Limit: 1000}
	var out []string
	for range 40 {
		page, err := db.List(b.Context(), f)
		if err != nil {
			b.Fatal(err)
		}
		m.ids = append(m.ids, page.Sandboxes...)
		if page.Next == "" {
			break
		}
		f.Cursor = page.Next
		out = append(out, page.Next)
	}
	return out
}

type listCase struct {
	name   string
	filter func() nacre.SandboxFilter
}

func (m *million) cases(rng *rand.Rand, deep []string) []listCase {
	running := []nacre.State{nacre.StateRunning}
	alive := []nacre.State{nacre.StateRunning, nacre.StatePaused}
	user := func() string { return strconv.Itoa(rng.IntN(50000)) }
	of := func(f nacre.SandboxFilter) func() nacre.SandboxFilter { return func() nacre.SandboxFilter { return f } }
	meta := func(team nacre.TeamID, states []nacre.State, pairs ...string) nacre.SandboxFilter {
		f := nacre.SandboxFilter{TeamID: team, States: states, Metadata: map[string]string{}}
		for i := 0; i < len(pairs); i += 2 {
			f.Metadata[pairs[i]] = pairs[i+1]
		}
		return f
	}
	return []listCase{
		{"running, many", of(nacre.SandboxFilter{TeamID: m.big, States: running})},
		{"running or paused, many", of(nacre.SandboxFilter{TeamID: m.big, States: alive})},
		{"running, few of many records", of(nacre.SandboxFilter{TeamID: m.quiet, States: running})},
		{"running, a deep page", func() nacre.SandboxFilter {
			return nacre.SandboxFilter{TeamID: m.big, States: running, Cursor: deep[rng.IntN(len(deep))]}
		}},
		{"any state", of(nacre.SandboxFilter{TeamID: m.big})},
		{"a small team, any state", func() nacre.SandboxFilter {
			return nacre.SandboxFilter{TeamID: nacre.TeamID("team_small" + strconv.Itoa(rng.IntN(1000)))}
		}},
		{"by name", of(nacre.SandboxFilter{TeamID: m.big, Name: "x", States: alive})},
		{"a thousand running", of(nacre.SandboxFilter{TeamID: m.big, States: running, Limit: 1000})},
		{"metadata, selective", func() nacre.SandboxFilter { return meta(m.big, nil, "user", user()) }},
		{"metadata, selective, alive", func() nacre.SandboxFilter { return meta(m.big, alive, "user", user()) }},
		{"metadata, frequent", of(meta(m.big, alive, "env", "prod"))},
		{"metadata, frequent, few running", of(meta(m.quiet, running, "env", "prod"))},
		{"metadata, rare", of(meta(m.big, alive, "rare", "yes"))},
		{"metadata, none", of(meta(m.big, alive, "env", "dev"))},
		{"metadata, frequent and selective", func() nacre.SandboxFilter { return meta(m.big, nil, "env", "prod", "user", user()) }},
		{"metadata, frequent and frequent", of(meta(m.big, nil, "env", "test", "region", "eu"))},
		{"metadata, three", func() nacre.SandboxFilter { return meta(m.big, alive, "env", "prod", "region", "us", "user", user()) }},
		{"due", of(nacre.SandboxFilter{AllTeams: true, DeadlineBefore: m.now})},
		{"due, none", of(nacre.SandboxFilter{AllTeams: true, DeadlineBefore: m.now.Add(-time.Hour)})},
		{"due, on a node", of(nacre.SandboxFilter{AllTeams: true, Node: "node-3", DeadlineBefore: m.now})},
		{"alive on a node", of(nacre.SandboxFilter{AllTeams: true, Node: "node-3", States: alive})},
		{"running, all teams", of(nacre.SandboxFilter{AllTeams: true, States: running})},
		{"a hundred ids", func() nacre.SandboxFilter {
			f := nacre.SandboxFilter{TeamID: m.big}
			for range 100 {
				f.IDs = append(f.IDs, m.ids[rng.IntN(len(m.ids))].ID)
			}
			return f
		}},
	}
}

// TestPlans: no list reads more of an index than it shows, whatever SQLite
// thinks. (INDEXED BY fails a query whose index cannot be used at all.)
func TestPlans(t *testing.T) {
	db := openSQLite(t, Options{})
	m := &million{big: "team_a", quiet: "team_b", ids: []nacre.Sandbox{sample()}}
	s := nacre.SandboxFilter{TeamID: m.big, States: []nacre.State{nacre.StateRunning}}
	place := cursor{started: 1, id: nacre.NewSandboxID()}.encode(s)
	for _, c := range m.cases(rand.New(rand.NewPCG(1, 1)), []string{place}) {
		f := c.filter()
		if f.Cursor == "" {
			f.Cursor = cursor{started: 1, id: nacre.NewSandboxID()}.encode(f)
		}
		after, err := parseCursor(f)
		if err != nil {
			t.Fatal(err)
		}
		sel, ok, err := db.selection(t.Context(), f, after)
		if err != nil || !ok {
			t.Fatal(err)
		}
		query, args := sel.page(100)
		plan := explain(t, db, query, args)
		if strings.Contains(plan, "SCAN s") || strings.Contains(plan, "SCAN m") {
			t.Errorf("%s: a whole index is read:\n%s", c.name, plan)
		}
		// What the arms give, a page each, is sorted; what they read must not be.
		lines := strings.Split(plan, "\n")
		for i := 1; i < len(lines); i++ {
			if !sel.sort && strings.Contains(lines[i], "TEMP B-TREE") && strings.Contains(lines[i-1], "SEARCH s USING COVERING") {
				t.Errorf("%s: a range is sorted:\n%s", c.name, plan)
			}
		}
		if !sel.sort && !strings.Contains(plan, "(started_at,") && !strings.Contains(plan, "started_at<") {
			t.Errorf("%s: the cursor does not bound the range:\n%s", c.name, plan)
		}
	}
}

// TestSnapshotPlans: what is asked of snapshots often reads no more than it finds.
func TestSnapshotPlans(t *testing.T) {
	db := openSQLite(t, Options{})
	after := &snapshotCursor{created: 1, id: nacre.NewSnapshotID()}
	for _, c := range []struct {
		name, index string
		f           nacre.SnapshotFilter
	}{
		{"a team's", "snapshots_team", nacre.SnapshotFilter{TeamID: "team_a"}},
		{"by name", "snapshots_name", nacre.SnapshotFilter{TeamID: "team_a", Name: "x"}},
		{"of a sandbox", "snapshots_sandbox", nacre.SnapshotFilter{TeamID: "team_a", Sandbox: nacre.NewSandboxID()}},
		{"that expire", "snapshots_expires", nacre.SnapshotFilter{AllTeams: true, ExpiresBefore: time.Now()}},
		{"all", "snapshots_all", nacre.SnapshotFilter{AllTeams: true}},
	} {
		query, args := db.snapshotQuery(c.f, after, 100)
		if plan := explain(t, db, query, args); !strings.Contains(plan, "USING INDEX "+c.index+" ") {
			t.Errorf("%s:\n%s", c.name, plan)
		}
	}
	query, args := `SELECT id FROM sandboxes WHERE snapshot_id = ? ORDER BY id LIMIT 4`, []any{"s"}
	if plan := explain(t, db, query, args); !strings.Contains(plan, "sandboxes_snapshot") {
		t.Errorf("holders:\n%s", plan)
	}
}

func explain(t testing.TB, db *DB, query string, args []any) string {
	t.Helper()
	rows, err := db.pool.Query("EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var b strings.Builder
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, strings.Repeat("  ", cmp.Compare(parent, 0)), detail)
	}
	return b.String()
}

// BenchmarkCreate: the record of a create, of which there is one every few hundredths
// of a second, and none for a while after every thirty.
func BenchmarkCreate(b *testing.B) {
	benchEngines(b, func(b *testing.B, db *DB) {
		var took []time.Duration
		for b.Loop() {
			if len(took)%30 == 29 {
				time.Sleep(300 * time.Millisecond)
			}
			time.Sleep(20 * time.Millisecond)
			s := nacretest.SampleSandbox("team_writes", nacre.StateRunning)
			start := time.Now()
			if err := db.Insert(b.Context(), s, nacre.Event{Kind: nacre.EventCreated}, nacre.Event{Kind: nacre.EventRunning}); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
		}
		reportPercentiles(b, took)
	})
}
