package firecracker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/agentfs"
	"github.com/nacrehq/nacre/internal/sparse"
	"github.com/nacrehq/nacre/nacretest"
)

// TestBase: what a snapshot begins with is the base and nothing else, and an unknown
// base is none.
func TestBase(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600)
		check(t, err)
		_, err = f.WriteString(content)
		check(t, err)
		return f
	}
	var b base
	for i, c := range []struct {
		set  func()
		size int64
		ok   bool
		want string
	}{
		{func() {}, 4, false, ""},
		{func() { b.set(nil) }, 4, true, "\x00\x00\x00\x00"},
		{func() { b.set(file("a", "from")) }, 4, true, "from"},
		{func() { check(t, os.Remove(filepath.Join(dir, "a"))) }, 4, true, "from"}, // whoever deletes the snapshot
		{func() {}, 5, false, ""},                                                  // of another size
		{func() { b.forget() }, 4, false, ""},
	} {
		c.set()
		out := file(fmt.Sprint(i), "")
		ok, err := b.copyTo(out, c.size)
		check(t, err)
		check(t, out.Close())
		got, err := os.ReadFile(out.Name())
		check(t, err)
		if ok != c.ok || string(got) != c.want {
			t.Errorf("%d: %t, %q; want %t, %q", i, ok, got, c.ok, c.want)
		}
	}
}

// TestSnapshotWritesWhatChanged: the VMM writes the pages that the guest has touched
// since the last snapshot, or since the one that it was restored from, and what it was
// told to write them over is whole. Only a daemon that took the machine back has all
// written once.
func TestSnapshotWritesWhatChanged(t *testing.T) {
	r := newRuntime(t)
	all := memorySize(newSpec(t).Resources.MemoryMiB)
	// take returns how much the VMM wrote for it.
	take := func(m nacre.Machine) (dir string, wrote int64) {
		t.Helper()
		dir = t.TempDir()
		pid := m.(*machine).Proc.PID
		before := written(t, pid)
		_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
		check(t, err)
		return dir, written(t, pid) - before
	}
	m, err := r.Start(t.Context(), newSpec(t))
	check(t, err)
	nacretest.DialGuest(t, m).Do("keep", 16)
	_, first := take(m)
	dir, second := take(m)
	if first > all*3/4 || second > first/2 {
		t.Errorf("of %d bytes of memory the VMM wrote %d, then %d", all, first, second)
	}
	fork, err := r.Restore(t.Context(), newSpec(t), dir)
	check(t, err)
	nacretest.DialGuest(t, fork).Do("kept")
	dir, third := take(fork)
	if third > first/2 {
		t.Errorf("of a copy the VMM wrote %d bytes, of the guest %d", third, first)
	}
	check(t, fork.Stop(t.Context()))
	check(t, r.VerifySnapshot(t.Context(), dir))
	again, err := r.Restore(t.Context(), newSpec(t), dir)
	check(t, err)
	nacretest.DialGuest(t, again).Do("kept")
	check(t, again.Stop(t.Context()))

	h := m.Handle()
	check(t, r.Close())
	r = newRuntime(t)
	m, err = r.Recover(t.Context(), h)
	check(t, err)
	_, full := take(m)
	_, after := take(m)
	if full < all || after > full/4 {
		t.Errorf("of a machine that was taken back the VMM wrote %d bytes, then %d", full, after)
	}
	nacretest.DialGuest(t, m).Do("kept")
	t.Logf("of %d MiB the VMM wrote %d, %d after that, %d of a copy, %d after a restart, %d after that (MiB)",
		all>>20, first>>20, second>>20, third>>20, full>>20, after>>20)
	check(t, m.Stop(t.Context()))
}

// written is how many bytes the process has written in its life.
func written(t *testing.T, pid int) (n int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	check(t, err)
	if _, err := fmt.Sscanf(string(b), "rchar: %d\nwchar: %d", new(int64), &n); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return n
}

// TestSweepRemovesOldInitDrives: those that no machine has, and not a moment after they
// were made.
func TestSweepRemovesOldInitDrives(t *testing.T) {
	spec := newSpec(t)
	dir := t.TempDir()
	spec.AgentPath = filepath.Join(dir, "agent")
	check(t, sparse.Clone(filepath.Join(host.dir, "testguest"), spec.AgentPath, 0o755))
	first := newRuntime(t)
	m, err := first.Start(t.Context(), spec)
	check(t, err)
	used, err := first.stock.images.Of(spec.AgentPath, first.stock.initImage)
	check(t, err)
	check(t, first.Close())

	// The next version of the daemon, with another agent.
	f, err := os.OpenFile(spec.AgentPath, os.O_APPEND|os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteString("next")
	check(t, errors.Join(err, f.Close()))
	old := filepath.Join(dir, "firecracker-00000000000000000000000000000000.erofs")
	check(t, os.WriteFile(old, nil, 0o444))
	past := time.Now().Add(-2 * agentfs.Grace)
	for _, path := range []string{old, used} {
		check(t, os.Chtimes(path, past, past))
	}
	c := config(nacretest.Log(t))
	c.Agent = spec.AgentPath
	r, err := New(c)
	check(t, err)
	t.Cleanup(func() { check(t, r.Close()) })
	there := func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	}
	keep := func(id nacre.MachineID) bool { return id == spec.ID }
	check(t, r.Sweep(t.Context(), keep))
	if !there(old) {
		t.Error("swept while nobody knew what a kept machine uses")
	}
	m, err = r.Recover(t.Context(), m.Handle())
	check(t, err)
	check(t, r.Sweep(t.Context(), keep))
	if there(old) || !there(used) {
		t.Errorf("old %t, used %t", there(old), there(used))
	}
	check(t, m.Stop(t.Context()))
	check(t, r.Sweep(t.Context(), keep))
	if there(used) {
		t.Error("a drive that nobody has any more stayed")
	}
}
