package sqlstore

import (
	"context"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// aKey makes a key of a new team.
func aKey(t *testing.T, db *DB) nacre.Key {
	t.Helper()
	team, err := db.EnsureTeam(t.Context(), "team")
	if err != nil {
		t.Fatal(err)
	}
	k := nacre.Key{ID: "key_1", TeamID: team.ID, Hash: [32]byte{1}, CreatedAt: time.Now()}
	if err := db.InsertKey(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	return k
}

// TestLookups: what every request asks for is read once, by a process that nobody else
// writes beside, and again after each change.
func TestLookups(t *testing.T) {
	for name, alone := range map[string]bool{"alone": true, "beside others": false} {
		t.Run(name, func(t *testing.T) {
			db := openSQLite(t, Options{Alone: alone})
			k := aKey(t, db)
			tpl := nacre.Template{ID: "t1", Names: []string{"base"}, Build: "b1"}
			if err := db.PutTemplate(t.Context(), tpl); err != nil {
				t.Fatal(err)
			}
			ask := func() (nacre.Key, nacre.Template) {
				t.Helper()
				got, err := db.KeyByHash(t.Context(), k.Hash)
				if err != nil {
					t.Fatal(err)
				}
				tpl, err := db.ResolveTemplate(t.Context(), k.TeamID, "base")
				if err != nil {
					t.Fatal(err)
				}
				return got, tpl
			}
			ask()
			// Behind the store's back, so that it shows where an answer is from.
			for _, text := range []string{`UPDATE api_keys SET name = 'other'`, `UPDATE templates SET updated_at = 7000000`} {
				behind(t, db, text)
			}
			got, found := ask()
			if remembered := got.Name == "" && found.UpdatedAt.Unix() != 7; remembered != alone {
				t.Errorf("remembered: %v; %+v, %+v", remembered, got, found)
			}
			found.Names[0] = "the caller's own"
			if _, found = ask(); found.Names[0] != "base" {
				t.Errorf("a caller changed what others get: %+v", found)
			}
			used := time.Unix(9, 0).UTC()
			tpl.Build = "b2"
			if err := db.PutTemplate(t.Context(), tpl); err != nil {
				t.Fatal(err)
			}
			if err := db.KeysUsed(t.Context(), map[string]time.Time{k.ID: used}); err != nil {
				t.Fatal(err)
			}
			if got, found := ask(); !got.UsedAt.Equal(used) || found.Build != "b2" {
				t.Errorf("after a change: %+v, %+v", got, found)
			}
			if err := db.RevokeKey(t.Context(), k.TeamID, k.ID); err != nil {
				t.Fatal(err)
			}
			if got, err := db.KeyByHash(t.Context(), k.Hash); !nacre.IsCode(err, nacre.CodeNotFound) {
				t.Errorf("a revoked key: %+v, %v", got, err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if found, err := db.ResolveTemplate(t.Context(), k.TeamID, "base"); !nacre.IsCode(err, nacre.CodeUnavailable) {
				t.Errorf("after Close: %+v, %v", found, err)
			}
		})
	}
}

// behind runs a statement as if nobody had to know.
func behind(t *testing.T, db *DB, text string) {
	t.Helper()
	err := db.write(t.Context(), func(ctx context.Context, c conn) error {
		_, err := c.exec(ctx, text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLookupsOfAChangeThatNobodyWaitsFor: a key whose revocation was committed after
// its caller had gone is remembered by nobody who asked in between.
func TestLookupsOfAChangeThatNobodyWaitsFor(t *testing.T) {
	db := openSQLite(t, Options{Alone: true})
	k := aKey(t, db)
	begun, goOn, hold, release := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
	write := func(begun, goOn chan struct{}) <-chan error {
		done := make(chan error, 1)
		go func() {
			done <- db.write(context.Background(), func(context.Context, conn) error {
				close(begun)
				<-goOn
				return nil
			})
		}()
		return done
	}
	queued := func(n int) {
		for {
			db.writer.mu.Lock()
			have := len(db.writer.queue)
			db.writer.mu.Unlock()
			if have == n {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	first := write(begun, goOn)
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	revoked := make(chan error, 1)
	go func() { revoked <- db.RevokeKey(ctx, k.TeamID, k.ID) }()
	queued(1)
	second := write(hold, release) // of the same commit
	queued(2)
	close(goOn)
	<-hold // the key's change is applied, and not committed
	cancel()
	if err := <-revoked; !nacre.IsCode(err, nacre.CodeDeadline) {
		t.Errorf("the revocation: %v", err)
	}
	if _, err := db.KeyByHash(t.Context(), k.Hash); err != nil {
		t.Errorf("before the commit: %v", err)
	}
	close(release)
	for _, done := range []<-chan error{first, second} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got, err := db.KeyByHash(t.Context(), k.Hash); !nacre.IsCode(err, nacre.CodeNotFound) {
		t.Errorf("after the commit: %+v, %v", got, err)
	}
}
