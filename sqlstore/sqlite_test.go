package sqlstore

import (
	"path/filepath"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

func openSQLite(t testing.TB, opts Options) *DB {
	t.Helper()
	return reopenSQLite(t, filepath.Join(t.TempDir(), "nacre.db"), opts)
}

func reopenSQLite(t testing.TB, path string, opts Options) *DB {
	t.Helper()
	db, err := Open(t.Context(), "sqlite:"+path, opts)
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

func TestSQLiteSandboxStore(t *testing.T) {
	nacretest.TestSandboxStore(t, func(t *testing.T) nacre.SandboxStore { return openSQLite(t, Options{EnvKey: [32]byte{1}}) })
}
