package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/sqlstore"
)

// TestDownEndsRecordsAsKilled: what `nacre down` ended was killed; what had ended
// before, or has no machine to end, is left as it is.
func TestDownEndsRecordsAsKilled(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	db, err := sqlstore.Open(ctx, filepath.Join(dir, "nacre.db"), sqlstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	begin := time.Now().Add(-time.Minute)
	insert := func(team nacre.TeamID, state nacre.State) nacre.SandboxID {
		rec := nacre.Sandbox{ID: nacre.NewSandboxID(), TeamID: team, Node: localNode, State: state,
			CreatedAt: begin, StartedAt: begin, Deadline: begin.Add(time.Hour)}
		if state == nacre.StateEnded {
			rec.EndReason, rec.EndedAt = nacre.EndOOM, begin
		}
		if err := db.Insert(ctx, rec); err != nil {
			t.Fatal(err)
		}
		return rec.ID
	}
	var running []nacre.SandboxID
	for range 3 {
		running = append(running, insert("a", nacre.StateRunning))
	}
	paused, ended := insert("a", nacre.StatePaused), insert("a", nacre.StateEnded)
	get := func(id nacre.SandboxID) string {
		rec, err := db.Get(ctx, "a", id)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(rec.State, " ", rec.EndReason)
	}
	if err := settleDown(ctx, dir, db); err != nil || get(running[0]) != "running " {
		t.Fatalf("nobody took it down: %s, %v", get(running[0]), err)
	}
	if err := os.WriteFile(downMark(dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := settleDown(ctx, dir, db); err != nil {
		t.Fatal(err)
	}
	for _, id := range running {
		if got := get(id); got != "ended killed" {
			t.Errorf("a sandbox that ran: %s", got)
		}
	}
	if got := get(paused); got != "paused " {
		t.Errorf("a paused one: %s", got)
	}
	if got := get(ended); got != "ended oom" {
		t.Errorf("one that had ended: %s", got)
	}
	if _, err := os.Stat(downMark(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mark is still there: %v", err)
	}
}
