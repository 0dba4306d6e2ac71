package sqlstore

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

func openSQLite(t testing.TB, opts Options) *DB {
	t.Helper()
	return reopen(t, "sqlite:"+filepath.Join(t.TempDir(), "nacre.db"), opts)
}

// TestTheLogIsTidiedUpWhileNobodyWrites: what would be done within a create's commit,
// once its log is long, is done before that, when the database is idle.
func TestTheLogIsTidiedUpWhileNobodyWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nacre.db")
	db := reopen(t, path, Options{})
	var last nacre.Sandbox
	for range tidyAfter {
		last = nacretest.SampleSandbox("team_a", nacre.StateRunning)
		if err := db.Insert(t.Context(), last, nacre.Event{Kind: nacre.EventCreated}); err != nil {
			t.Fatal(err)
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for over := time.After(30 * time.Second); ; {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte(last.ID)) {
			return
		}
		select {
		case <-tick.C:
		case <-over:
			t.Fatal("the last record is in the database's log still")
		}
	}
}
