package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

// urls gives a test the address of an empty database of each engine.
func urls(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("SQLite", func(t *testing.T) { test(t, filepath.Join(t.TempDir(), "nacre.db")) })
	t.Run("PostgreSQL", func(t *testing.T) { test(t, postgresURL(t)) })
}

// TestFault47_NewerDatabase: a program that is older than the database says so
// and touches nothing.
func TestFault47_NewerDatabase(t *testing.T) {
	urls(t, func(t *testing.T, url string) {
		db := reopen(t, url, Options{})
		s := sample()
		if err := db.Insert(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		err := db.write(t.Context(), func(ctx context.Context, c conn) error {
			_, err := c.on.ExecContext(ctx, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (900, `+boolean(db)+`)`)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = Open(t.Context(), url, Options{})
		wantCode(t, "Open of a newer database", err, nacre.CodeConflict)
		if m := nacre.ErrorMessage(err); !strings.Contains(m, "900") || !strings.Contains(m, "newer program") {
			t.Errorf("the message %q does not say what to do", m)
		}
		if _, err := db.Get(t.Context(), s.TeamID, s.ID); err != nil {
			t.Errorf("the refused Open did harm: %v", err)
		}
	})
}

func boolean(db *DB) string {
	if db.d.postgres {
		return "true"
	}
	return "1"
}

// TestFault47_UpDownUp: every migration can be taken back and made again, and
// opening once more changes nothing in a database with records.
func TestFault47_UpDownUp(t *testing.T) {
	urls(t, func(t *testing.T, url string) {
		db := reopen(t, url, Options{})
		s := sample()
		if err := db.Insert(t.Context(), s, nacre.Event{Kind: nacre.EventCreated}); err != nil {
			t.Fatal(err)
		}
		again := reopen(t, url, Options{})
		got, err := again.Get(t.Context(), s.TeamID, s.ID)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, got); d != "" {
			t.Error(d)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		downgrade(t, db, url, 0)
		fresh := reopen(t, url, Options{})
		if err := fresh.Insert(t.Context(), s); err != nil {
			t.Error(err)
		}
	})
}

// downgrade takes the database back to a version; db is not to be used afterwards.
func downgrade(t *testing.T, db *DB, url string, version int64) {
	t.Helper()
	pool := db.pool
	if !db.d.postgres { // whose pool only reads
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		var err error
		if pool, err = sql.Open("sqlite", sqliteDSN(url, 0, false)); err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
	}
	p, err := provider(db.d, pool)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.DownTo(t.Context(), version); err != nil {
		t.Fatal(err)
	}
}

// TestOpenAtOnce: of many that open a new database at once, one makes it.
func TestOpenAtOnce(t *testing.T) {
	urls(t, func(t *testing.T, url string) {
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				db, err := Open(t.Context(), url, withKey)
				if err != nil {
					t.Error(err)
					return
				}
				if err := db.Insert(t.Context(), sample()); err != nil {
					t.Error(err)
				}
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		db := reopen(t, url, withKey)
		if n, err := db.Count(t.Context(), nacre.SandboxFilter{AllTeams: true}); err != nil || n != 6 {
			t.Errorf("%d records, %v", n, err)
		}
	})
}

// TestKeptForm: today's records must be readable by tomorrow's program. If this
// fails, old databases need a migration.
func TestKeptForm(t *testing.T) {
	const kept = `{"template":"base","templateId":"t1","buildId":"b1","machine":"m1","endReason":"oom","detail":"d",` +
		`"resources":{"CPUs":1,"MemoryMiB":2,"DiskMiB":3,"MaxPIDs":4},"metadata":{"k":"v"},` +
		`"network":{"DenyInternet":true,"AllowOut":["a"],"DenyOut":["b"],"PrivateTraffic":true,"MaskRequestHost":"h"},` +
		`"secure":true,"timeout":5,"onTimeout":"pause","tokenEpoch":6,"bootPath":"warm","bootTime":7,` +
		`"parent":"i1","snapshot":"s1","origin":"s2","autoResume":true,"filesOnly":true,"pausedAt":8,"idleTimeout":9,"alwaysOn":true}`
	s := nacre.Sandbox{
		Template: "base", TemplateID: "t1", BuildID: "b1", Machine: "m1", EndReason: nacre.EndOOM, Detail: "d",
		Resources: nacre.Resources{CPUs: 1, MemoryMiB: 2, DiskMiB: 3, MaxPIDs: 4}, Metadata: map[string]string{"k": "v"},
		Network: nacre.NetworkPolicy{DenyInternet: true, AllowOut: []string{"a"}, DenyOut: []string{"b"}, PrivateTraffic: true, MaskRequestHost: "h"},
		Secure:  true, Timeout: 5, OnTimeout: nacre.TimeoutPause, TokenEpoch: 6, BootPath: nacre.BootWarm, BootTime: 7,
		Parent: "i1", Snapshot: "s1", Origin: "s2", AutoResume: true, FilesOnly: true, PausedAt: fromMicro(8), IdleTimeout: 9, AlwaysOn: true,
	}
	text, err := encodeBody(&s)
	if err != nil {
		t.Fatal(err)
	}
	var want, got map[string]any
	if err := json.Unmarshal([]byte(kept), &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the form of kept records changed (-old +new):\n%s", d)
	}
	if got := tag("k", "v"); string(got) == string(tag("kv", "")) || len(got) != 16 {
		t.Error("pairs of metadata can be mistaken for others")
	}
}

// TestKeptSnapshotForm is TestKeptForm for snapshots.
func TestKeptSnapshotForm(t *testing.T) {
	const kept = `{"comment":"c","filesOnly":true,"restoreKey":"k","template":"base","templateId":"t1","buildId":"b1",` +
		`"resources":{"CPUs":1,"MemoryMiB":2,"DiskMiB":3,"MaxPIDs":4},"metadata":{"k":"v"},` +
		`"network":{"DenyInternet":true,"AllowOut":null,"DenyOut":null,"PrivateTraffic":false,"MaskRequestHost":""},` +
		`"secure":true,"timeout":5,"onTimeout":"pause","bytes":6,"stopped":7,"lastUsedAt":8}`
	text, err := encodeSnapshot(&nacre.Snapshot{
		Comment: "c", FilesOnly: true, RestoreKey: "k", Template: "base", TemplateID: "t1", BuildID: "b1",
		Resources: nacre.Resources{CPUs: 1, MemoryMiB: 2, DiskMiB: 3, MaxPIDs: 4}, Metadata: map[string]string{"k": "v"},
		Network: nacre.NetworkPolicy{DenyInternet: true}, Secure: true, Timeout: 5, OnTimeout: nacre.TimeoutPause,
		Bytes: 6, Stopped: 7, LastUsedAt: fromMicro(8),
	})
	if err != nil || text != kept {
		t.Errorf("the form of kept snapshots changed: %v\n%s", err, text)
	}
}

// TestFault47_FromTheFirstVersion: records that the first version wrote are read.
func TestFault47_FromTheFirstVersion(t *testing.T) {
	urls(t, func(t *testing.T, url string) {
		db := reopen(t, url, withKey)
		s := sample()
		s.Name = "" // the first version had none
		if err := db.Insert(t.Context(), s, nacre.Event{Kind: nacre.EventCreated}); err != nil {
			t.Fatal(err)
		}
		pool, d := db.pool, db.d
		if !d.postgres {
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			var err error
			if pool, err = sql.Open("sqlite", sqliteDSN(url, 0, false)); err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
		}
		p, err := provider(d, pool)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.DownTo(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if !d.postgres {
			pool.Close()
		}
		again := reopen(t, url, withKey)
		got, err := again.Get(t.Context(), s.TeamID, s.ID)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, got); d != "" {
			t.Error(d)
		}
	})
}

// TestEventBase: after a restore into a cluster whose transactions have lower
// numbers, new events still come after the old ones.
func TestEventBase(t *testing.T) {
	url := postgresURL(t)
	db := reopen(t, url, Options{})
	s := sample()
	if err := db.Insert(t.Context(), s, nacre.Event{Kind: nacre.EventCreated}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.pool.Exec(`UPDATE events SET seq = seq + 1000000000000`); err != nil {
		t.Fatal(err)
	}
	again := reopen(t, url, Options{})
	if _, err := again.Update(t.Context(), s.TeamID, s.ID, func(*nacre.Sandbox) ([]nacre.Event, error) {
		return []nacre.Event{{Kind: nacre.EventEnded}}, nil
	}); err != nil {
		t.Fatal(err)
	}
	events, err := again.Events(t.Context(), nacre.EventFilter{TeamID: s.TeamID})
	if err != nil || len(events) != 2 || events[0].Kind != nacre.EventCreated || events[1].Seq <= events[0].Seq {
		t.Errorf("events %+v, %v", events, err)
	}
}

// TestEnvAtRest: with a key, no environment stands in the file.
func TestEnvAtRest(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "nacre.db")
	secret := "correct horse battery staple"
	write := func(opts Options) nacre.Sandbox {
		db := reopen(t, path, opts)
		s := sample()
		s.Env = map[string]string{"PASSWORD": secret}
		if err := db.Insert(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	inFiles := func() bool {
		files, err := filepath.Glob(path + "*")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if text, err := os.ReadFile(f); err != nil {
				t.Fatal(err)
			} else if strings.Contains(string(text), secret) {
				return true
			}
		}
		return false
	}
	sealed := write(withKey)
	if inFiles() {
		t.Error("the environment can be read in the file")
	}
	open := write(Options{})
	if !inFiles() {
		t.Error("without a key the environment is not found: the check is blind")
	}
	keyed, keyless := reopen(t, path, withKey), reopen(t, path, Options{})
	for _, s := range []nacre.Sandbox{sealed, open} {
		got, err := keyed.Get(t.Context(), s.TeamID, s.ID)
		if err != nil || got.Env["PASSWORD"] != secret {
			t.Errorf("with the key: %v, %v", got.Env, err)
		}
	}
	_, err := keyless.Get(t.Context(), sealed.TeamID, sealed.ID)
	wantCode(t, "Get without the key", err, nacre.CodeInternal)
	_, err = Open(t.Context(), path, Options{EnvKey: [32]byte{9}})
	wantCode(t, "Open with another key", err, nacre.CodeInvalid)

	// One sandbox's environment put into another's record is not taken.
	thief := nacretest.SampleSandbox(sealed.TeamID, nacre.StateRunning)
	if err := keyed.Insert(t.Context(), thief); err != nil {
		t.Fatal(err)
	}
	err = keyed.write(t.Context(), func(ctx context.Context, c conn) error {
		_, err := c.exec(ctx, `UPDATE sandboxes SET env = (SELECT env FROM sandboxes WHERE id = ?) WHERE id = ?`, string(sealed.ID), string(thief.ID))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = keyed.Get(t.Context(), thief.TeamID, thief.ID)
	wantCode(t, "Get of the thief", err, nacre.CodeInternal)
	if strings.Contains(err.Error(), secret) {
		t.Error("the error tells the secret")
	}
}

func FuzzCursor(f *testing.F) {
	filter := nacre.SandboxFilter{TeamID: "team_a", Metadata: map[string]string{"a": "b"}}
	good := cursor{started: 42, id: nacre.NewSandboxID()}
	f.Add(good.encode(filter))
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		filter := filter
		filter.Cursor = text
		c, err := parseCursor(filter)
		if err != nil {
			wantCode(t, "parseCursor", err, nacre.CodeInvalid)
			return
		}
		if text == "" {
			return
		}
		again := filter
		again.Cursor = c.encode(filter)
		d, err := parseCursor(again)
		if err != nil || *d != *c {
			t.Errorf("%q gives %+v, then %+v (%v)", text, c, d, err)
		}
	})
}

// TestUseFromBefore: what was made of templates before it was counted is counted
// when the tables come, and nothing twice.
func TestUseFromBefore(t *testing.T) {
	urls(t, func(t *testing.T, url string) {
		db := reopen(t, url, Options{})
		s := sample()
		insert := func(events ...nacre.Event) {
			t.Helper()
			one := sample()
			one.ID, one.TeamID = nacre.NewSandboxID(), s.TeamID
			if err := db.Insert(t.Context(), one, events...); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"base", "é \" \\ x", "base"} {
			insert(nacre.Event{Kind: nacre.EventCreated, Time: s.CreatedAt, Data: map[string]string{"template": name}}, nacre.Event{Kind: nacre.EventRunning})
		}
		insert(nacre.Event{Kind: nacre.EventCreated})
		last, err := db.LastEvent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		mark := nacre.UsageMark{Seq: last}
		if err := db.FoldUsage(t.Context(), nacre.UsageMark{}, mark, nil); err != nil {
			t.Fatal(err)
		}
		insert(nacre.Event{Kind: nacre.EventCreated, Time: s.CreatedAt, Data: map[string]string{"template": "base"}}) // not folded yet

		downgrade(t, db, url, 3)
		db = reopen(t, url, Options{})
		want := map[string]nacre.TemplateUse{"base": {Count: 2, Last: s.CreatedAt}, "é \" \\ x": {Count: 1, Last: s.CreatedAt}}
		for range 2 {
			got, err := db.TemplateUse(t.Context(), s.TeamID)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			next := mark
			next.Seq += 1 << 40 // whatever came since
			if err := db.FoldUsage(t.Context(), mark, next, nil); err != nil {
				t.Fatal(err)
			}
			mark, want["base"] = next, nacre.TemplateUse{Count: 3, Last: s.CreatedAt}
		}
	})
}
