package server

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/clientfile"
	"github.com/nacrehq/nacre/sqlstore"
)

// noInsert is a store that is killed as a key comes.
type noInsert struct{ nacre.TeamStore }

var errKilled = errors.New("killed")

func (noInsert) InsertKey(context.Context, nacre.Key) error { return errKilled }

// TestDefaultKeyIsMadeOnce: starts that end before they are ready, wherever, leave one
// key in the store; one that was revoked is replaced, and the rest of the note is kept.
func TestDefaultKeyIsMadeOnce(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	db, err := sqlstore.Open(ctx, filepath.Join(dir, "nacre.db"), sqlstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s := &Server{cfg: Config{DataDir: dir}}
	keys := func() []nacre.Key {
		t.Helper()
		team, err := db.EnsureTeam(ctx, defaultTeam)
		if err != nil {
			t.Fatal(err)
		}
		list, err := db.Keys(ctx, team.ID)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if _, err := s.defaultKey(ctx, noInsert{db}); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	var first string
	for range 3 {
		key, err := s.defaultKey(ctx, db)
		if err != nil || first != "" && key != first {
			t.Fatalf("%q, then %q, %v", first, key, err)
		}
		first = key
	}
	list := keys()
	if len(list) != 1 {
		t.Fatalf("%d keys after starts of which none was ready: %+v", len(list), list)
	}
	if _, err := clientfile.Read(dir); err == nil {
		t.Error("a command takes the server for one that was ready")
	}
	if err := clientfile.Write(dir, clientfile.File{APIKey: first, APIURL: "http://127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	if err := db.RevokeKey(ctx, list[0].TeamID, list[0].ID); err != nil {
		t.Fatal(err)
	}
	second, err := s.defaultKey(ctx, db)
	if err != nil || second == first {
		t.Fatalf("after the key was revoked: %q %v", second, err)
	}
	if f, err := clientfile.Read(dir); err != nil || f.APIURL != "http://127.0.0.1:1" || f.APIKey != second {
		t.Errorf("the note: %+v %v", f, err)
	}
}
