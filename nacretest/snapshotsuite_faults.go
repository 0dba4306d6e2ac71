package nacretest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

func testPauseResumeMany(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	s := h.Spec(t)
	m := h.boot(t, r, s)
	DialGuest(t, m).Do("keep", 6)
	want := ""
	for i := range 20 {
		g := DialGuest(t, m)
		g.Do("append", "/root/diary", "x")
		want += "x"
		dir, _ := snap(t, m, nacre.SnapshotOptions{})
		if err := m.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.clean(t, s)
		s = h.Spec(t)
		m = h.restore(t, r, s, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		g = DialGuest(t, m)
		g.Do("kept")
		if got := g.Do("read", "/root/diary").Out; got != want {
			t.Fatalf("after %d times the file holds %q", i+1, got)
		}
	}
}

func testRestoredRandomness(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	m := h.boot(t, r, h.Spec(t))
	g := DialGuest(t, m)
	g.Do("random")
	dir, _ := snap(t, m, nacre.SnapshotOptions{})
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := strings.Fields(g.Do("random").Out)
	for range 4 {
		for _, v := range strings.Fields(DialGuest(t, h.restore(t, r, h.Spec(t), dir)).Do("random").Out) {
			if slices.Contains(seen, v) {
				t.Errorf("%s came twice", v)
			}
			seen = append(seen, v)
		}
	}
}

func testRestoredClock(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	m := h.boot(t, r, h.Spec(t))
	DialGuest(t, m).Do("ping")
	dir, _ := snap(t, m, nacre.SnapshotOptions{})
	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1200 * time.Millisecond) // what the guest's clock must catch up
	if least, most := clockOff(DialGuest(t, h.restore(t, r, h.Spec(t), dir))); least > closeClock || most < -closeClock {
		t.Errorf("the guest's clock is off by at least %v", min(least.Abs(), most.Abs()))
	}
}

// damage makes a snapshot of the same files, but for one that is changed, or missing
// when change returns nil.
func damage(t *testing.T, dir, name string, change func([]byte) []byte) string {
	t.Helper()
	out := t.TempDir()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		from, to := filepath.Join(dir, e.Name()), filepath.Join(out, e.Name())
		if e.Name() != name {
			if err := os.Link(from, to); err != nil {
				t.Fatal(err)
			}
			continue
		}
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if b = change(b); b == nil {
			continue
		}
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func testDamagedSnapshots(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	m := h.boot(t, r, h.Spec(t))
	DialGuest(t, m).Do("keep", 2)
	dir, info := snap(t, m, nacre.SnapshotOptions{KeepRunning: true, SumPages: true})
	biggest := slices.MaxFunc(info.Files, func(a, b nacre.SnapshotFile) int { return int(a.Size - b.Size) }).Name
	refused := func(name, dir string, restores bool, want ...nacre.Code) {
		t.Helper()
		if err := r.VerifySnapshot(t.Context(), dir); err == nil || !slices.Contains(want, nacre.ErrorCode(err)) {
			t.Errorf("VerifySnapshot, %s: %v", name, err)
		}
		if !restores {
			return
		}
		s := h.Spec(t)
		m, err := r.Restore(t.Context(), s, dir)
		if err == nil {
			_ = m.Stop(t.Context())
		}
		if err == nil || !slices.Contains(want, nacre.ErrorCode(err)) || !strings.Contains(nacre.ErrorMessage(err), "snapshot") {
			t.Errorf("Restore, %s: %v", name, err)
		}
		h.nothing(t, s)
	}
	for _, f := range info.Files {
		refused(f.Name+" missing", damage(t, dir, f.Name, func([]byte) []byte { return nil }), true, nacre.CodeConflict, nacre.CodeNotFound)
		refused(f.Name+" cut", damage(t, dir, f.Name, func(b []byte) []byte { return b[:len(b)/2] }), true, nacre.CodeConflict)
		if f.Name != "snapshot.json" { // what it says is compared, it has no sum itself
			flip := func(b []byte) []byte { b[len(b)/2] ^= 4; return b }
			// The pages, of memory or of a disk, are not read before the guest runs: who
			// brings a snapshot to the host verifies it.
			const large = 32 << 20
			refused(f.Name+" with a bit flipped", damage(t, dir, f.Name, flip), f.Name != biggest && f.Size < large && !strings.HasSuffix(f.Name, ".erofs"), nacre.CodeConflict)
		}
	}
	other := damage(t, dir, "snapshot.json", func(b []byte) []byte {
		return []byte(strings.Replace(string(b), info.RestoreKey, "elsewhere/1", 1))
	})
	refused("of another key", other, true, nacre.CodeMismatch)
	if b, err := os.ReadFile(filepath.Join(other, "snapshot.json")); err != nil || !json.Valid(b) {
		t.Errorf("the test's manifest is broken: %v", err)
	}
	if err := r.VerifySnapshot(t.Context(), dir); err != nil {
		t.Errorf("VerifySnapshot of the whole one: %v", err)
	}
}

func testSnapshotDeleted(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	m := h.boot(t, r, h.Spec(t))
	DialGuest(t, m).Do("keep", 16)
	dir, _ := snap(t, m, nacre.SnapshotOptions{KeepRunning: true})
	restored := h.restore(t, r, h.Spec(t), dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	DialGuest(t, restored).Do("kept")
	again, _ := snap(t, restored, nacre.SnapshotOptions{KeepRunning: true})
	DialGuest(t, h.restore(t, r, h.Spec(t), again)).Do("kept")
}

func testKillDuringSnapshot(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	for _, after := range []time.Duration{0, 5, 15, 30} {
		s := h.Spec(t)
		m := h.boot(t, r, s)
		DialGuest(t, m).Do("ping")
		dir := t.TempDir()
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{}); err != nil {
				wantCode(t, "Snapshot of a machine that is stopped", err, nacre.CodeNotFound)
				if left := listing(t, dir); len(left) > 0 {
					t.Errorf("left %v", left)
				}
			}
		})
		both.Go(func() {
			time.Sleep(after * time.Millisecond)
			if err := m.Stop(t.Context()); err != nil {
				t.Errorf("Stop: %v", err)
			}
		})
		both.Wait()
		if e := wait(t, m); e.Reason != nacre.EndKilled {
			t.Errorf("ended with %+v", e)
		}
		h.clean(t, s)
	}
}
