package sqlstore

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/nacretest/pgtest"
)

// cluster is the one server of this package's tests, started by the first that
// asks for it.
var cluster = sync.OnceValues(pgtest.Launch)

var clusterUsed sync.Once

func TestMain(m *testing.M) {
	if os.Getenv("NACRE_STORE_CRASH") != "" {
		crashChild()
		return
	}
	code := m.Run()
	unused := false
	clusterUsed.Do(func() { unused = true })
	if !unused {
		if s, err := cluster(); err == nil {
			if err := s.Close(); err != nil {
				fmt.Fprintln(os.Stderr, "stopping PostgreSQL:", err)
				code = 1
			}
		}
	}
	os.Exit(code)
}

// postgresURL returns the address of an empty database.
func postgresURL(t testing.TB) string {
	t.Helper()
	pgtest.Skip(t)
	clusterUsed.Do(func() {})
	s, err := cluster()
	if err != nil {
		t.Fatal(err)
	}
	url, err := s.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return url
}

func openPostgres(t testing.TB, opts Options) *DB {
	t.Helper()
	return reopen(t, postgresURL(t), opts)
}

func reopen(t testing.TB, url string, opts Options) *DB {
	t.Helper()
	db, err := Open(t.Context(), url, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return db
}

// engines runs a test on both databases.
func engines(t *testing.T, test func(t *testing.T, open func(testing.TB, Options) *DB)) {
	t.Run("SQLite", func(t *testing.T) { test(t, openSQLite) })
	t.Run("PostgreSQL", func(t *testing.T) { test(t, openPostgres) })
}

var withKey = Options{EnvKey: [32]byte{1, 2, 3}}

func TestSandboxStore(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestSandboxStore(t, func(t *testing.T) nacre.SandboxStore { return open(t, withKey) })
	})
}

func TestSandboxModel(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestSandboxModel(t, func(t *testing.T) nacre.SandboxStore { return open(t, withKey) })
	})
}

func TestSnapshotStore(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestSnapshotStore(t, func(t *testing.T) nacretest.SnapshotStore { return open(t, withKey) })
	})
}

func TestEventLog(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestEventLog(t, func(t *testing.T) nacretest.EventStore { return open(t, Options{}) })
	})
}

func TestTeamStore(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestTeamStore(t, func(t *testing.T) nacre.TeamStore { return open(t, Options{}) })
	})
	t.Run("SQLite, alone", func(t *testing.T) {
		nacretest.TestTeamStore(t, func(t *testing.T) nacre.TeamStore { return openSQLite(t, Options{Alone: true}) })
	})
}

func TestTemplateUse(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestTemplateUse(t, func(t *testing.T) nacretest.UseStore { return open(t, withKey) })
	})
}

func TestTemplateStore(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestTemplateStore(t, func(t *testing.T) nacre.TemplateStore { return open(t, Options{}) })
	})
	t.Run("SQLite, alone", func(t *testing.T) {
		nacretest.TestTemplateStore(t, func(t *testing.T) nacre.TemplateStore { return openSQLite(t, Options{Alone: true}) })
	})
}
