package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

func wantCode(t testing.TB, what string, err error, code nacre.Code) {
	t.Helper()
	if !nacre.IsCode(err, code) {
		t.Errorf("%s: error %v, want code %s", what, err, code)
	}
}

func sample() nacre.Sandbox { return nacretest.SampleSandbox(nacre.NewTeamID(), nacre.StateRunning) }

func epochUp(s *nacre.Sandbox) ([]nacre.Event, error) { s.TokenEpoch++; return nil, nil }

// TestFault09_Locked: another process holds SQLite's lock. Reads go on, writes
// say that they may be tried again, deadlines hold, and all is well afterwards.
func TestFault09_Locked(t *testing.T) {
	// Without its deadline a write would wait for ever, and with it no longer than that.
	patient := openSQLite(t, Options{BusyTimeout: time.Hour})
	db := reopen(t, "sqlite:"+dbPath(t, patient), Options{BusyTimeout: 300 * time.Millisecond})
	s := sample()
	if err := db.Insert(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	release := lockSQLite(t, dbPath(t, db))
	if _, err := db.Get(t.Context(), s.TeamID, s.ID); err != nil {
		t.Errorf("Get while locked: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantCode(t, "a write with a short deadline", patient.Insert(ctx, sample()), nacre.CodeDeadline)
	_, err := db.Update(t.Context(), s.TeamID, s.ID, epochUp)
	wantCode(t, "Update while locked", err, nacre.CodeUnavailable)
	release()
	got, err := db.Update(t.Context(), s.TeamID, s.ID, epochUp)
	if err != nil || got.Version != 1 {
		t.Errorf("Update afterwards: version %d, %v", got.Version, err)
	}
	if n, err := db.Count(t.Context(), nacre.SandboxFilter{AllTeams: true}); err != nil || n != 1 {
		t.Errorf("%d records (%v): a write that was given up was done", n, err)
	}
}

func dbPath(t *testing.T, db *DB) string {
	t.Helper()
	var path string
	if _, err := db.reads.one(t.Context(), func(r *sql.Rows) error { return r.Scan(&path) },
		`SELECT file FROM pragma_database_list WHERE name = 'main'`); err != nil {
		t.Fatal(err)
	}
	return path
}

// lockSQLite takes the write lock as another process would.
func lockSQLite(t *testing.T, path string) (release func()) {
	t.Helper()
	other, err := sql.Open("sqlite", sqliteDSN(path, 0, false)+"&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	tx, err := other.BeginTx(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() { _ = tx.Rollback(); _ = other.Close() })
	t.Cleanup(release)
	return release
}

// TestFault09_RowLocked: on PostgreSQL somebody holds the row.
func TestFault09_RowLocked(t *testing.T) {
	db := openPostgres(t, Options{})
	s := sample()
	if err := db.Insert(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	tx, err := db.pool.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(`SELECT 1 FROM sandboxes WHERE id = $1 FOR UPDATE`, string(s.ID)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = db.Update(ctx, s.TeamID, s.ID, epochUp)
	wantCode(t, "Update of a held row", err, nacre.CodeDeadline)
	if _, err := db.Get(t.Context(), s.TeamID, s.ID); err != nil {
		t.Errorf("Get of a held row: %v", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if got, err := db.Update(t.Context(), s.TeamID, s.ID, epochUp); err != nil || got.Version != 1 {
		t.Errorf("Update afterwards: version %d, %v", got.Version, err)
	}
}

func TestFault09_ReadOnly(t *testing.T) {
	db := openSQLite(t, Options{})
	s := sample()
	if err := db.Insert(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	pragma := func(v string) {
		if err := db.writer.do(t.Context(), func(c conn) error {
			_, err := c.on.ExecContext(context.Background(), "PRAGMA query_only="+v)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	pragma("1")
	wantCode(t, "Insert", db.Insert(t.Context(), sample()), nacre.CodeUnavailable)
	if _, err := db.Get(t.Context(), s.TeamID, s.ID); err != nil {
		t.Errorf("Get: %v", err)
	}
	db.writer.conn.on.ExecContext(t.Context(), "PRAGMA query_only=0")
	if err := db.Insert(t.Context(), sample()); err != nil {
		t.Errorf("Insert afterwards: %v", err)
	}

	pg := openPostgres(t, Options{MaxConns: 1})
	if _, err := pg.pool.Exec(`SET default_transaction_read_only = on`); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "Insert on a read-only server", pg.Insert(t.Context(), sample()), nacre.CodeUnavailable)
}

// TestFault11_DiskFull: the disk of the database fills up and is freed again.
func TestFault11_DiskFull(t *testing.T) {
	dir := t.TempDir()
	nacretest.SmallDisk(t, dir, "size=2m")
	db := reopen(t, filepath.Join(dir, "nacre.db"), Options{})
	s := sample()
	if err := db.Insert(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var kept []nacre.Sandbox
	var err error
	for range 10000 {
		x := sample()
		x.TeamID, x.Detail = s.TeamID, strings.Repeat("d", 2000)
		if err = db.Insert(t.Context(), x); err != nil {
			break
		}
		kept = append(kept, x)
	}
	wantCode(t, "the first insert that did not fit", err, nacre.CodeNoSpace)
	for _, x := range kept {
		if _, err := db.Get(t.Context(), x.TeamID, x.ID); err != nil {
			t.Fatalf("a record that was taken is lost: %v", err)
		}
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := db.Insert(t.Context(), sample()); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if n, err := db.Count(t.Context(), nacre.SandboxFilter{TeamID: s.TeamID}); err != nil || n != len(kept)+1 {
		t.Errorf("%d records, %v; want %d", n, err, len(kept)+1)
	}
}

func TestDamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nacre.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("this is no database\n", 500)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), path, Options{})
	wantCode(t, "Open", err, nacre.CodeInternal)
	if !strings.Contains(nacre.ErrorMessage(err), "damaged") {
		t.Errorf("the message %q does not say what is wrong", nacre.ErrorMessage(err))
	}
	if kept, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(kept), "this is no database") {
		t.Error("a file that is no database was changed")
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for url, code := range map[string]nacre.Code{
		"":                         nacre.CodeInvalid,
		"sqlite:":                  nacre.CodeInvalid,
		"sqlite::memory:":          nacre.CodeInvalid,
		"mysql://u:s3cret@h/db":    nacre.CodeInvalid,
		"postgres://u:s3cret@h:x/": nacre.CodeInvalid,
		"postgres://u:s3cret@localhost:1/db?connect_timeout=2": nacre.CodeUnavailable,
		file + "/nacre.db":                nacre.CodeUnavailable,
		"/nonexistent/directory/nacre.db": nacre.CodeUnavailable,
		"sqlite:" + t.TempDir():           nacre.CodeUnavailable,
	} {
		_, err := Open(t.Context(), url, Options{})
		wantCode(t, "Open "+url, err, code)
		if err != nil && (strings.Contains(nacre.ErrorMessage(err), "s3cret") || code == nacre.CodeInvalid && strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

// TestOddPaths: a path may hold what means something in a URL.
func TestOddPaths(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a b.db", "a?b.db", "a#b.db", "100%41.db", "é&x=y.db"} {
		db := reopen(t, "sqlite:"+filepath.Join(dir, name), Options{})
		if err := db.Insert(t.Context(), sample()); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%q: the file is elsewhere: %v", name, err)
			continue
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%q has mode %v; others can read it", name, info.Mode())
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s can be read by others (%v)", f.Name(), err)
		}
	}
}

func TestClosed(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		db := open(t, Options{})
		s := sample()
		if err := db.Insert(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		// What was queued before Close is written.
		var wg sync.WaitGroup
		errs := make([]error, 50)
		ids := make([]nacre.Sandbox, len(errs))
		for i := range errs {
			ids[i] = sample()
			wg.Go(func() { errs[i] = db.Insert(context.Background(), ids[i]) })
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				wantCode(t, "an insert during Close", err, nacre.CodeUnavailable)
			}
		}
		_, err := db.Get(t.Context(), s.TeamID, s.ID)
		wantCode(t, "Get", err, nacre.CodeUnavailable)
		_, err = db.List(t.Context(), nacre.SandboxFilter{TeamID: s.TeamID})
		wantCode(t, "List", err, nacre.CodeUnavailable)
		_, err = db.Update(t.Context(), s.TeamID, s.ID, epochUp)
		wantCode(t, "Update", err, nacre.CodeUnavailable)
		if err := db.Close(); err != nil {
			t.Errorf("a second Close: %v", err)
		}
	})
}

// TestWriterSkipsTheGone: a caller who gave up while queued leaves nothing.
func TestWriterSkipsTheGone(t *testing.T) {
	db := openSQLite(t, Options{})
	s := sample()
	if err := db.Insert(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	begun, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := db.Update(t.Context(), s.TeamID, s.ID, func(*nacre.Sandbox) ([]nacre.Event, error) {
			close(begun)
			<-release
			return nil, nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	gone := sample()
	gaveUp := make(chan error, 1)
	go func() { gaveUp <- db.Insert(ctx, gone) }()
	for queued := 0; queued == 0; runtime.Gosched() {
		db.writer.mu.Lock()
		queued = len(db.writer.queue)
		db.writer.mu.Unlock()
	}
	cancel()
	wantCode(t, "a caller who gave up", <-gaveUp, nacre.CodeDeadline)
	ran := false
	ended, end := context.WithCancel(t.Context())
	end()
	err := db.writer.do(ended, func(conn) error { ran = true; return nil })
	if !errors.Is(err, context.Canceled) || ran {
		t.Errorf("an ended context: %v, ran %v", err, ran)
	}
	close(release)
	wg.Wait()
	_, err = db.Get(t.Context(), gone.TeamID, gone.ID)
	wantCode(t, "Get of what was given up", err, nacre.CodeNotFound)
}

// TestGoexitInChange: a change that ends its goroutine does not end the writer.
func TestGoexitInChange(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		db := open(t, Options{})
		s := sample()
		if err := db.Insert(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err := db.Update(t.Context(), s.TeamID, s.ID, func(*nacre.Sandbox) ([]nacre.Event, error) {
				runtime.Goexit()
				return nil, nil
			})
			wantCode(t, "Update", err, nacre.CodeUnavailable) // not reached where it was the caller's goroutine
		}()
		<-done
		if got, err := db.Update(t.Context(), s.TeamID, s.ID, epochUp); err != nil || got.Version != 1 {
			t.Errorf("Update afterwards: version %d, %v", got.Version, err)
		}
	})
}

// TestSQLiteSettings: the promises rest on these.
func TestSQLiteSettings(t *testing.T) {
	db := openSQLite(t, Options{})
	for name, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
		for what, c := range map[string]conn{"writer": db.writer.conn, "reader": db.reads} {
			var got string
			if _, err := c.one(t.Context(), func(r *sql.Rows) error { return r.Scan(&got) }, "PRAGMA "+name); err != nil || got != want {
				t.Errorf("%s of the %s is %q, want %q (%v)", name, what, got, want, err)
			}
		}
	}
	_, err := db.pool.Exec(`DELETE FROM sandboxes`)
	if err == nil {
		t.Error("a reading connection can write")
	}
}
