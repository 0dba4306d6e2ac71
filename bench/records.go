package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/nacretest/pgtest"
	"github.com/nacrehq/nacre/sqlstore"
)

// Two large teams, one with many running sandboxes and one with a handful among
// its ended ones, and a thousand small teams.
const (
	users     = 2500 // of the metadata; each has 20 copies too
	spaces    = 1000 // of MIOSA's external_workspace_id
	bigTeam   = nacre.TeamID("team_big")
	quietTeam = nacre.TeamID("team_quiet")
)

func smallTeam(rng *rand.Rand) nacre.TeamID {
	return nacre.TeamID("team_small" + strconv.Itoa(rng.IntN(1000)))
}

// copies is how many records are made of each that is inserted.
const copies = 20

// benchRecords: lists, filters and single reads among many records, on SQLite and,
// where it is installed, on PostgreSQL.
func benchRecords(ctx context.Context, b *bench) error {
	dir, err := os.MkdirTemp("", "nacre-bench-")
	if err != nil {
		return err
	}
	err = b.recordsOn(ctx, onSQLite(dir))
	if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
		return err
	}
	pg, err := pgtest.Launch()
	if errors.Is(err, pgtest.ErrMissing) {
		log.Print("    ", err)
		return nil
	}
	if err != nil {
		return err
	}
	url, err := pg.Database(ctx)
	if err == nil {
		err = b.recordsOn(ctx, onPostgres(url))
	}
	return errors.Join(err, pg.Close())
}

// recordStore is a database for many records.
type recordStore struct {
	name, url   string
	driver, raw string // for what is done past the store
	settle      string // what the database does by itself after a lot came, if anything
}

func onSQLite(dir string) recordStore {
	path := filepath.Join(dir, "nacre.db")
	return recordStore{name: "SQLite", url: path, driver: "sqlite",
		raw: "file:" + path + "?_pragma=synchronous(off)&_pragma=cache_size(-262144)&_pragma=temp_store(memory)"}
}

// onPostgres settles with what autovacuum does within minutes.
func onPostgres(url string) recordStore {
	return recordStore{name: "PostgreSQL", url: url, driver: "pgx", raw: url, settle: "VACUUM ANALYZE"}
}

// recordsOn fills a store and measures it. A twentieth of the records goes through
// the store's own inserts, and is copied with SQL.
func (b *bench) recordsOn(ctx context.Context, on recordStore) error {
	n := b.records
	if b.quick {
		n /= 10
	}
	db, err := sqlstore.Open(ctx, on.url, sqlstore.Options{})
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := errors.Join(seed(ctx, db, n/copies), db.Close()); err != nil {
		return err
	}
	b.report.value(fmt.Sprintf("%s: inserting %d records, 256 callers", on.name, n/copies), "1/s", float64(n/copies)/time.Since(begin).Seconds(), "",
		"each with its event and metadata; synced")
	if err := on.multiply(ctx); err != nil {
		return err
	}
	if db, err = sqlstore.Open(ctx, on.url, sqlstore.Options{}); err != nil {
		return err
	}
	defer db.Close()
	known, deep, err := walk(ctx, db)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(2, 2))
	for _, q := range queries(db, rng, known, deep) {
		var took series
		for range b.samples(300) {
			at := time.Now()
			if err := q.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", q.name, err)
			}
			took.since(at)
		}
		b.report.add(fmt.Sprintf("%s, %d records: %s", on.name, n, q.name), "ms", took, "p99 <= 10", "")
	}
	return nil
}

// seed inserts n records, the oldest first.
func seed(ctx context.Context, db *sqlstore.DB, n int) error {
	now := time.Now()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	work := make(chan nacre.Sandbox, 256)
	for range 256 {
		wg.Go(func() {
			for s := range work {
				if err := db.Insert(ctx, s, nacre.Event{Kind: nacre.EventCreated}); err != nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		work <- record(rng, i, n, now)
	}
	close(work)
	wg.Wait()
	return errors.Join(append(failed[:min(len(failed), 3)], ctx.Err())...)
}

func record(rng *rand.Rand, i, n int, now time.Time) nacre.Sandbox {
	s := nacretest.SampleSandbox(bigTeam, nacre.StateEnded)
	s.Env = nil
	s.CreatedAt = now.Add(-time.Duration(n-i) * 100 * time.Millisecond)
	s.StartedAt, s.EndedAt = s.CreatedAt, s.CreatedAt.Add(time.Minute)
	s.Deadline = now.Add(time.Hour)
	s.Metadata = map[string]string{"user": strconv.Itoa(rng.IntN(users)), "region": [...]string{"eu", "us", "ap"}[rng.IntN(3)],
		nacre.LabelExternalSpace: strconv.Itoa(rng.IntN(spaces))}
	switch p := i % 10; {
	case p < 6:
		if rng.IntN(10) == 0 {
			s.State = nacre.StateRunning
		}
	case p < 9:
		s.TeamID = quietTeam
		if i%500 == 6 && i < 2500 {
			s.State = nacre.StateRunning
		}
	default:
		s.TeamID = smallTeam(rng)
	}
	return s
}

// columns of the tables that are copied, by how a copy's differ.
const (
	sandboxColumns  = "id, team_id, state, node, created_at, started_at, deadline, due_at, ended_at, version, body, env, snapshot_id, name"
	metadataColumns = "team_id, tag, state, started_at, sandbox_id"
	eventColumns    = "seq, at, team_id, sandbox_id, kind, data"
)

// multiply copies every record with its metadata and events, each copy older than
// the last and under other ids.
func (on recordStore) multiply(ctx context.Context) error {
	db, err := sql.Open(on.driver, on.raw)
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1) // the temporary tables are the connection's
	for _, q := range []string{
		`CREATE TEMP TABLE s AS SELECT ` + sandboxColumns + ` FROM sandboxes`,
		`CREATE TEMP TABLE m AS SELECT ` + metadataColumns + ` FROM sandbox_metadata`,
		`CREATE TEMP TABLE e AS SELECT ` + eventColumns + ` FROM events`,
	} {
		if _, err := db.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	for k := 1; k < copies; k++ {
		log.Printf("    %s: copy %d of %d", on.name, k+1, copies)
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		for _, q := range [...]struct{ into, columns, from string }{
			{"sandboxes", sandboxColumns, "s"}, {"sandbox_metadata", metadataColumns, "m"}, {"events", eventColumns, "e"},
		} {
			// Of the 103 random bits of an id the rest is plenty; one that begins so
			// already has no such copy.
			text := fmt.Sprintf("INSERT INTO %s (%s) SELECT %s FROM %s WHERE true ON CONFLICT DO NOTHING", q.into, q.columns, copied(q.columns, k), q.from)
			if _, err := tx.ExecContext(ctx, text); err != nil {
				return errors.Join(err, tx.Rollback())
			}
		}
		if err := tx.Commit(); err != nil {
			return err
		}
	}
	if on.settle != "" {
		_, err = db.ExecContext(ctx, on.settle)
	}
	return err
}

// copied are the columns as those of copy k: of another sandbox, some months older.
func copied(columns string, k int) string {
	list := strings.Split(columns, ", ")
	for i, c := range list {
		switch c {
		case "id", "sandbox_id":
			list[i] = fmt.Sprintf("'i%03d' || substr(%s, 5)", k, c)
		case "seq":
			list[i] = "(SELECT max(seq) FROM events) + row_number() OVER ()"
		case "created_at", "started_at", "at":
			list[i] = fmt.Sprintf("%s - %d", c, int64(k)*(30*24*time.Hour).Microseconds())
		}
	}
	return strings.Join(list, ", ")
}

// walk returns some of the big team's running sandboxes, and places deep in their list.
func walk(ctx context.Context, db *sqlstore.DB) (ids []nacre.SandboxID, cursors []string, err error) {
	f := nacre.SandboxFilter{TeamID: bigTeam, States: []nacre.State{nacre.StateRunning}, Limit: 1000}
	for range 40 {
		page, err := db.List(ctx, f)
		if err != nil {
			return nil, nil, err
		}
		for _, s := range page.Sandboxes {
			ids = append(ids, s.ID)
		}
		if page.Next == "" {
			break
		}
		f.Cursor = page.Next
		cursors = append(cursors, page.Next)
	}
	if len(ids) == 0 {
		return nil, nil, errors.New("no sandbox of the big team runs")
	}
	return ids, append(cursors, ""), nil
}

type query struct {
	name string
	run  func(context.Context) error
}

func queries(db *sqlstore.DB, rng *rand.Rand, known []nacre.SandboxID, deep []string) []query {
	running := []nacre.State{nacre.StateRunning}
	var alive []nacre.State
	for state := range nacre.Transitions {
		if state != nacre.StateEnded {
			alive = append(alive, state)
		}
	}
	list := func(name string, filter func() nacre.SandboxFilter) query {
		return query{name, func(ctx context.Context) error {
			_, err := db.List(ctx, filter())
			return err
		}}
	}
	return []query{
		{"get", func(ctx context.Context) error {
			_, err := db.Get(ctx, bigTeam, known[rng.IntN(len(known))])
			return err
		}},
		list("list 100 running of many", func() nacre.SandboxFilter { return nacre.SandboxFilter{TeamID: bigTeam, States: running} }),
		list("list 100 running, a deep page", func() nacre.SandboxFilter {
			return nacre.SandboxFilter{TeamID: bigTeam, States: running, Cursor: deep[rng.IntN(len(deep))]}
		}),
		list("list the few running among many ended", func() nacre.SandboxFilter { return nacre.SandboxFilter{TeamID: quietTeam, States: running} }),
		list("list 100 of any state", func() nacre.SandboxFilter { return nacre.SandboxFilter{TeamID: bigTeam} }),
		list("list a small team", func() nacre.SandboxFilter { return nacre.SandboxFilter{TeamID: smallTeam(rng)} }),
		list("filter by a user's metadata", func() nacre.SandboxFilter {
			return nacre.SandboxFilter{TeamID: bigTeam, Metadata: map[string]string{"user": strconv.Itoa(rng.IntN(users))}}
		}),
		list("filter by frequent metadata, running", func() nacre.SandboxFilter {
			return nacre.SandboxFilter{TeamID: bigTeam, States: running, Metadata: map[string]string{"region": "eu"}}
		}),
		list("filter by two, running", func() nacre.SandboxFilter {
			return nacre.SandboxFilter{TeamID: bigTeam, States: running, Metadata: map[string]string{"region": "us", "user": strconv.Itoa(rng.IntN(users))}}
		}),
		list("filter by external_workspace_id, all that live", func() nacre.SandboxFilter {
			return nacre.SandboxFilter{TeamID: bigTeam, States: alive, Limit: 1000, Metadata: map[string]string{nacre.LabelExternalSpace: strconv.Itoa(rng.IntN(spaces))}}
		}),
		list("those whose deadline has passed", func() nacre.SandboxFilter {
			return nacre.SandboxFilter{AllTeams: true, DeadlineBefore: time.Now()}
		}),
		{"count a team's running", func(ctx context.Context) error {
			_, err := db.Count(ctx, nacre.SandboxFilter{TeamID: quietTeam, States: running})
			return err
		}},
	}
}
