package sqlstore

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/nacretest/pgtest"
)

var crashTeam = nacre.TeamID("team_crash")

// crashChild writes from several goroutines until it is killed, and says on
// standard output what it has been promised: "<id> <version>".
func crashChild() {
	ctx := context.Background()
	db, err := Open(ctx, os.Getenv("NACRE_STORE_CRASH"), withKey)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	say := func(id nacre.SandboxID, version int) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(id, version)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				s := nacretest.SampleSandbox(crashTeam, nacre.StateRunning)
				if db.Insert(ctx, s, nacre.Event{Kind: nacre.EventCreated}) != nil {
					return // the server was killed, not we
				}
				say(s.ID, 0)
				for v := 1; v <= 2; v++ {
					_, err := db.Update(ctx, s.TeamID, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
						r.TokenEpoch = v
						return []nacre.Event{{Kind: nacre.EventDeadline}}, nil
					})
					if err != nil {
						return
					}
					say(s.ID, v)
				}
			}
		})
	}
	wg.Wait()
}

// crashDuringWrites runs a child until it has been promised n writes, calls kill,
// and returns the promises.
func crashDuringWrites(t *testing.T, url string, n int, kill func(*os.Process) error) map[nacre.SandboxID]int64 {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "NACRE_STORE_CRASH="+url)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	promised := map[nacre.SandboxID]int64{}
	lines := 0
	for sc := bufio.NewScanner(out); sc.Scan(); {
		var id string
		var version int64
		if _, err := fmt.Sscan(sc.Text(), &id, &version); err != nil || strings.HasPrefix(id, "error") {
			t.Errorf("the child says %q", sc.Text())
			continue
		}
		promised[nacre.SandboxID(id)] = version
		if lines++; lines == n {
			if err := kill(cmd.Process); err != nil {
				t.Error(err)
			}
		}
	}
	_ = cmd.Wait() // it was killed
	if lines < n {
		t.Fatalf("the child ended after %d writes", lines)
	}
	return promised
}

func checkPromises(t *testing.T, db *DB, promised map[nacre.SandboxID]int64) {
	t.Helper()
	for id, version := range promised {
		s, err := db.Get(t.Context(), crashTeam, id)
		if err != nil {
			t.Fatalf("a promised record is lost: %v", err)
		}
		if s.Version < version || s.Version > version+1 || s.Version > 0 && s.TokenEpoch != int(s.Version) {
			t.Errorf("record %s: version %d epoch %d, promised version %d", id, s.Version, s.TokenEpoch, version)
		}
		events, err := db.Events(t.Context(), nacre.EventFilter{TeamID: crashTeam, SandboxID: id})
		if err != nil || len(events) != int(s.Version)+1 {
			t.Errorf("record %s of version %d has %d events (%v)", id, s.Version, len(events), err)
		}
		page, err := db.List(t.Context(), nacre.SandboxFilter{TeamID: crashTeam, IDs: []nacre.SandboxID{id}, Metadata: s.Metadata})
		if err != nil || len(page.Sandboxes) != 1 {
			t.Errorf("record %s is not found by its metadata (%v)", id, err)
		}
	}
}

// TestCrashKill9: what was acknowledged is there after kill -9, whole, with its
// events, time after time on one database.
func TestCrashKill9(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nacre.db")
	all := map[nacre.SandboxID]int64{}
	for round := range 4 {
		for id, v := range crashDuringWrites(t, path, 150*(round+1), (*os.Process).Kill) {
			all[id] = v
		}
		db, err := Open(t.Context(), path, withKey)
		if err != nil {
			t.Fatal(err)
		}
		checkPromises(t, db, all)
		var verdict string
		if _, err := db.reads.one(t.Context(), func(r *sql.Rows) error { return r.Scan(&verdict) }, `PRAGMA integrity_check`); err != nil || verdict != "ok" {
			t.Errorf("integrity_check: %s, %v", verdict, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFault09_PostgresCrash: the server dies under writes; what it acknowledged is
// there when it is back, and the same DB goes on.
func TestFault09_PostgresCrash(t *testing.T) {
	server := pgtest.Start(t)
	url, err := server.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	db := reopen(t, url, withKey)
	promised := crashDuringWrites(t, url, 300, func(*os.Process) error { return server.Down(true) })
	_, err = db.Get(t.Context(), crashTeam, nacre.NewSandboxID())
	wantCode(t, "Get without a server", err, nacre.CodeUnavailable)
	s := nacretest.SampleSandbox(crashTeam, nacre.StateRunning)
	wantCode(t, "Insert without a server", db.Insert(t.Context(), s), nacre.CodeUnavailable)
	_, err = Open(t.Context(), url, withKey)
	wantCode(t, "Open without a server", err, nacre.CodeUnavailable)
	if err := server.Up(); err != nil {
		t.Fatal(err)
	}
	checkPromises(t, db, promised)

	// The server goes away in the middle of a transaction.
	if err := db.Insert(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	_, err = db.Update(t.Context(), s.TeamID, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		r.State = nacre.StateEnded
		return []nacre.Event{{Kind: nacre.EventEnded}}, server.Down(true)
	})
	wantCode(t, "Update while the server dies", err, nacre.CodeUnavailable)
	if err := server.Up(); err != nil {
		t.Fatal(err)
	}
	got, err := db.Get(t.Context(), s.TeamID, s.ID)
	if err != nil || got.State != nacre.StateRunning || got.Version != 0 {
		t.Errorf("after the lost transaction: %s version %d, %v", got.State, got.Version, err)
	}
}
