package nacretest

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

func snapshotCases() []runtimeCase {
	return []runtimeCase{
		{"SnapshotOfRunning", testSnapshotRunning},
		{"SnapshotHolds", testSnapshotHolds},
		{"SnapshotFails", testSnapshotFails},
		{"RestoreKeeps", testRestoreKeeps},
		{"RestoreEndsConnections", testRestoreEndsConnections},
		{"RestoreTenAtOnce", testRestoreMany},
		{"RestoreCalledOff", testRestoreCalledOff},
		{"RestoreRefuses", testRestoreRefuses},
		{"SnapshotOfFiles", testSnapshotOfFiles},
		{"Fault22_PauseResumeMany", testPauseResumeMany},
		{"Fault23_RestoredGuestsShareNoRandomness", testRestoredRandomness},
		{"Fault24_ClockAfterRestore", testRestoredClock},
		{"Fault25_DamagedSnapshots", testDamagedSnapshots},
		{"Fault26_SnapshotDeletedWhileRestored", testSnapshotDeleted},
		{"Fault27_KillDuringSnapshot", testKillDuringSnapshot},
	}
}

// TestSnapshots is the part of TestRuntime's that is about snapshots and copies, for
// machines of another kind. Those cases are left out that have many at once or again and
// again, that are about files alone or what is refused by them, or that reckon with what
// such machines cost.
func TestSnapshots(t *testing.T, host RuntimeHost) {
	for _, c := range snapshotCases() {
		switch c.name {
		case "SnapshotOfRunning", "RestoreTenAtOnce", "SnapshotOfFiles", "Fault22_PauseResumeMany", "RestoreRefuses", "Fault25_DamagedSnapshots":
			continue
		}
		t.Run(c.name, func(t *testing.T) { c.test(t, host) })
	}
}

// snap takes a snapshot into a new directory.
func snap(t *testing.T, m nacre.Machine, opt nacre.SnapshotOptions) (string, nacre.SnapshotInfo) {
	t.Helper()
	dir := t.TempDir()
	info, err := m.Snapshot(t.Context(), dir, opt)
	if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	return dir, info
}

// occupied is the room on the disk that a snapshot takes.
func occupied(info nacre.SnapshotInfo) (n int64) {
	for _, f := range info.Files {
		n += f.Disk
	}
	return n
}

// restore boots a machine from a snapshot that is stopped when the test ends.
func (h RuntimeHost) restore(t *testing.T, r nacre.Runtime, s nacre.MachineSpec, dir string) nacre.Machine {
	t.Helper()
	m, err := r.Restore(t.Context(), s, dir)
	if err != nil {
		t.Fatalf("Restore: %v", err)
	}
	h.stopLater(t, m, s)
	return m
}

// listing is a directory's files with their sizes.
func listing(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = st.Size()
	}
	return out
}

func testSnapshotRunning(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	m := h.boot(t, r, h.Spec(t))
	g := DialGuest(t, m)
	g.Do("write", 8, "/root/big")
	dir, info := snap(t, m, nacre.SnapshotOptions{KeepRunning: true})
	g.Do("ping") // over the connection that was open
	files := listing(t, dir)
	for _, f := range info.Files {
		if size, ok := files[f.Name]; !ok || size != f.Size {
			t.Errorf("%+v, the file has %d bytes (%v)", f, size, ok)
		}
		delete(files, f.Name)
	}
	if len(files) > 0 {
		t.Errorf("not named: %v", files)
	}
	if info.RestoreKey != r.Capabilities().RestoreKey || info.RestoreKey == "" || info.Stopped <= 0 {
		t.Errorf("%+v", info)
	}
	if n := occupied(info); n > 80<<20 { // what is nothing but zeros occupies nothing
		t.Errorf("an idle guest's snapshot occupies %d bytes", n)
	}
	if err := r.VerifySnapshot(t.Context(), dir); err != nil {
		t.Errorf("VerifySnapshot: %v", err)
	}
	if err := m.Resume(t.Context()); err != nil {
		t.Errorf("Resume of a guest that runs: %v", err)
	}
	// A second one holds what changed, the first one does not.
	g.Do("append", "/root/later", "x")
	second, _ := snap(t, m, nacre.SnapshotOptions{KeepRunning: true})
	for d, want := range map[string]bool{dir: false, second: true} {
		got := DialGuest(t, h.restore(t, r, h.Spec(t), d)).Try("read", "/root/later").Err == ""
		if got != want {
			t.Errorf("the file is there: %v, want %v", got, want)
		}
	}
	g.Do("ping")
}

func testSnapshotHolds(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	s := h.Spec(t)
	m := h.boot(t, r, s)
	g := DialGuest(t, m)
	dir, _ := snap(t, m, nacre.SnapshotOptions{})
	g.Send("ping")
	answered := make(chan error, 1)
	go func() { _, err := g.Answer(); answered <- err }()
	select {
	case <-answered:
		t.Error("the guest goes on")
	case <-time.After(200 * time.Millisecond):
	}
	_, err := m.Snapshot(t.Context(), t.TempDir(), nacre.SnapshotOptions{})
	wantCode(t, "Snapshot of a guest that stands still", err, nacre.CodeConflict)
	for range 2 {
		if err := m.Resume(t.Context()); err != nil {
			t.Fatalf("Resume: %v", err)
		}
	}
	if err := <-answered; err != nil {
		t.Errorf("after Resume: %v", err)
	}
	snap(t, m, nacre.SnapshotOptions{})
	if err := m.Stop(t.Context()); err != nil {
		t.Errorf("Stop of a guest that stands still: %v", err)
	}
	if e := wait(t, m); e.Reason != nacre.EndKilled {
		t.Errorf("ended with %+v", e)
	}
	h.clean(t, s)
	wantCode(t, "Resume after Stop", m.Resume(t.Context()), nacre.CodeNotFound)
	_, err = m.Snapshot(t.Context(), t.TempDir(), nacre.SnapshotOptions{})
	wantCode(t, "Snapshot after Stop", err, nacre.CodeNotFound)
	DialGuest(t, h.restore(t, r, h.Spec(t), dir)).Do("ping")
}

func testSnapshotFails(t *testing.T, h RuntimeHost) {
	m := h.boot(t, h.runtime(t), h.Spec(t))
	g := DialGuest(t, m)
	dir := t.TempDir()
	if _, err := m.Snapshot(t.Context(), filepath.Join(dir, "missing"), nacre.SnapshotOptions{}); err == nil {
		t.Error("a snapshot to a directory that does not exist")
	}
	g.Do("ping")
	if err := os.WriteFile(filepath.Join(dir, "other"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
	wantCode(t, "Snapshot to a directory that is in use", err, nacre.CodeConflict)
	if left := listing(t, dir); len(left) != 1 {
		t.Errorf("left %v", left)
	}
	g.Do("ping")
	called := 0
	for _, after := range []time.Duration{0, 1, 5, 20, 50} {
		dir := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		_, err := m.Snapshot(ctx, dir, nacre.SnapshotOptions{})
		cancel()
		if err == nil {
			if err := m.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else {
			called++
			wantCode(t, "Snapshot called off", err, nacre.CodeDeadline)
			if left := listing(t, dir); len(left) > 0 {
				t.Errorf("left %v", left)
			}
		}
		g.Do("ping")
	}
	if called == 0 {
		t.Error("no snapshot was called off")
	}
	var all sync.WaitGroup
	for range 4 { // one at a time, the others are told
		dir := t.TempDir()
		all.Go(func() {
			if _, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true}); err != nil {
				wantCode(t, "Snapshot beside another", err, nacre.CodeConflict)
			}
		})
	}
	all.Wait()
	g.Do("ping")
}

func testRestoreKeeps(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	m := h.boot(t, r, h.Spec(t))
	g := DialGuest(t, m)
	g.Do("keep", 8)
	g.Do("append", "/root/last", "the last instant") // nobody syncs
	dir, _ := snap(t, m, nacre.SnapshotOptions{})
	pid := int64(0)
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.Do("kept")
	pid = g.Do("pid").N
	before := listing(t, dir)
	s := h.Spec(t)
	s.Hostname = "restored"
	restored := h.restore(t, r, s, dir)
	rg := DialGuest(t, restored)
	rg.Do("kept")
	rg.Do("kept")
	if got := rg.Do("pid").N; got != pid {
		t.Errorf("the child's pid is %d, was %d", got, pid)
	}
	if got := rg.Do("read", "/root/last").Out; got != "the last instant" {
		t.Errorf("the file holds %q", got)
	}
	if got := rg.Do("hostname").Out; got != "restored" {
		t.Errorf("hostname %q", got)
	}
	if d := time.Duration(rg.Do("slept").N); d < time.Second {
		t.Errorf("a sleep of 1.5 s took %v", d)
	}
	if c, err := restored.Dial(t.Context(), 7000); err != nil {
		t.Errorf("a listening socket: %v", err)
	} else {
		c.Close()
	}
	// The connections of the first machine's time have ended; this one is new.
	for begin := time.Now(); rg.Do("conns").N != 1; {
		if time.Since(begin) > patience() {
			t.Fatalf("%d connections are open in the restored guest", rg.Do("conns").N)
		}
	}
	if u, err := restored.Usage(t.Context()); err != nil || u.MemoryBytes < 1<<20 {
		t.Errorf("Usage %+v, %v", u, err)
	}
	// Each is its own from now on.
	rg.Do("append", "/root/mine", "x")
	if g.Try("read", "/root/mine").Err == "" {
		t.Error("the first machine has a file of the restored one")
	}
	g.Do("kept")
	// A snapshot of a restored machine, restored.
	again, _ := snap(t, restored, nacre.SnapshotOptions{KeepRunning: true})
	DialGuest(t, h.restore(t, r, h.Spec(t), again)).Do("kept")
	for name, size := range listing(t, dir) {
		if before[name] != size {
			t.Errorf("%s of the snapshot changed", name)
		}
	}
	if err := r.VerifySnapshot(t.Context(), dir); err != nil {
		t.Errorf("VerifySnapshot after a restore: %v", err)
	}
}

func testRestoreMany(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	m := h.boot(t, r, h.Spec(t))
	DialGuest(t, m).Do("keep", 4)
	dir, _ := snap(t, m, nacre.SnapshotOptions{KeepRunning: true})
	var all sync.WaitGroup
	guests := make([]*Guest, 10)
	for i := range guests {
		s := h.Spec(t)
		all.Go(func() {
			m, err := r.Restore(t.Context(), s, dir)
			if err != nil {
				t.Errorf("Restore: %v", err)
				return
			}
			h.stopLater(t, m, s)
			g := DialGuest(t, m)
			g.Do("kept")
			guests[i] = g
		})
	}
	all.Wait()
	for i, g := range guests {
		if g == nil {
			continue
		}
		least, most := clockOff(g)
		t.Logf("the clock of copy %d is off by %v to %v", i, least, most)
		if least > closeClock || most < -closeClock {
			t.Errorf("the clock of one of ten that came at once is off by at least %v", min(least.Abs(), most.Abs()))
		}
	}
}

// closeClock is how far a guest's clock may be off.
const closeClock = 50 * time.Millisecond

// clockOff tells how far ahead a guest's clock is: the answer takes a while, so between
// two times. Of a few answers that of the quickest counts.
func clockOff(g *Guest) (least, most time.Duration) {
	for i := range 8 {
		before := time.Now()
		at := time.Unix(0, g.Do("time").N)
		l, m := at.Sub(time.Now()), at.Sub(before)
		if i == 0 || m-l < most-least {
			least, most = l, m
		}
	}
	return least, most
}

func testRestoreCalledOff(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	dir, _ := snap(t, h.boot(t, r, h.Spec(t)), nacre.SnapshotOptions{KeepRunning: true})
	for _, after := range []time.Duration{0, 3, 10, 30, 60, 100} {
		s := h.Spec(t)
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		m, err := r.Restore(ctx, s, dir)
		cancel()
		if err == nil {
			h.stopLater(t, m, s)
			continue
		}
		h.nothing(t, s)
	}
	DialGuest(t, h.restore(t, r, h.Spec(t), dir)).Do("ping")
}

func testRestoreRefuses(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	dir, _ := snap(t, h.boot(t, r, h.Spec(t)), nacre.SnapshotOptions{KeepRunning: true})
	for _, c := range []struct {
		name  string
		dir   string
		spoil func(*nacre.MachineSpec)
		want  nacre.Code
	}{
		{"no snapshot", t.TempDir(), func(*nacre.MachineSpec) {}, nacre.CodeNotFound},
		{"no directory", dir + ".missing", func(*nacre.MachineSpec) {}, nacre.CodeNotFound},
		{"more processors", dir, func(s *nacre.MachineSpec) { s.Resources.CPUs++ }, nacre.CodeConflict},
		{"more memory", dir, func(s *nacre.MachineSpec) { s.Resources.MemoryMiB++ }, nacre.CodeConflict},
		{"more disk", dir, func(s *nacre.MachineSpec) { s.Root.UpperMiB++ }, nacre.CodeConflict},
		{"another image", dir, func(s *nacre.MachineSpec) { s.Root.Image = s.AgentPath }, nacre.CodeConflict},
		{"no machine id", dir, func(s *nacre.MachineSpec) { s.ID = "../x" }, nacre.CodeInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := h.Spec(t)
			c.spoil(&s)
			m, err := r.Restore(t.Context(), s, c.dir)
			wantCode(t, "Restore", err, c.want)
			if err == nil {
				_ = m.Stop(t.Context())
			}
			h.nothing(t, s)
		})
	}
	s := h.Spec(t)
	h.restore(t, r, s, dir)
	_, err := r.Restore(t.Context(), s, dir)
	wantCode(t, "Restore of a machine that runs", err, nacre.CodeConflict)
}
