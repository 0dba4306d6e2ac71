package sqlstore

import (
	"path/filepath"
	"testing"
)

func openSQLite(t testing.TB, opts Options) *DB {
	t.Helper()
	return reopen(t, "sqlite:"+filepath.Join(t.TempDir(), "nacre.db"), opts)
}
