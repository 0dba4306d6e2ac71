package firecracker

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/sparse"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// occupies is what a file costs.
func occupies(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	n, err := blocks(f)
	check(t, err)
	return n
}

// checkDisk has a snapshot's file system checked, after its journal was written back as a
// mount does.
func checkDisk(t *testing.T, dir string) {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	check(t, sparse.Clone(filepath.Join(dir, diskFile), disk, 0o600))
	if out, err := exec.Command("e2fsck", "-p", disk).CombinedOutput(); err != nil {
		t.Errorf("e2fsck -p: %v: %s", err, out)
	}
	if out, err := exec.Command("e2fsck", "-f", "-n", disk).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
	check(t, os.Remove(disk))
}

// TestFreedDiskCostsNothing: what a guest wrote and deleted costs neither the host nor a
// snapshot; what is left is whole, in the guest that goes on and in a copy, which has all
// the room that it was promised.
func TestFreedDiskCostsNothing(t *testing.T) {
	const mib, size = 128, 192
	r := newRuntime(t)
	spec := newSpec(t)
	spec.Root.UpperMiB = size
	m, err := r.Start(t.Context(), spec)
	check(t, err)
	g := nacretest.DialGuest(t, m)
	g.Do("tree", "/root/tree")
	was := g.Do("describe", "/root/tree").Out
	disk := filepath.Join(spec.Root.UpperDir, upperFile)
	take := func(m nacre.Machine) string {
		t.Helper()
		dir := t.TempDir()
		_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
		check(t, err)
		return dir
	}
	g.Do("write", mib, "/root/big")
	g.Do("run", "/bin/tool", "sync")
	if n := occupies(t, disk); n < mib<<20 {
		t.Fatalf("the disk occupies %d MiB after %d were written: the test proves nothing", n>>20, mib)
	}
	full := occupies(t, disk)
	g.Do("run", "/bin/tool", "rm", "/root/big")
	dir := take(m)
	after, copied := occupies(t, disk), occupies(t, filepath.Join(dir, diskFile))
	t.Logf("%d MiB were written and deleted: the disk occupies %d MiB, %d before, and the snapshot's %d", mib, after>>20, full>>20, copied>>20)
	for _, n := range []int64{after, copied} {
		if n > 24<<20 {
			t.Errorf("%d MiB are occupied; want all of what was deleted to be given back", n>>20)
		}
	}
	checkDisk(t, dir)
	g = nacretest.DialGuest(t, m)
	look := func(g *nacretest.Guest) {
		t.Helper()
		g.Do("append", "/proc/sys/vm/drop_caches", "3")
		if got := g.Do("describe", "/root/tree").Out; got != was {
			t.Errorf("what is left is\n%s\nwant\n%s", got, was)
		}
	}
	look(g)
	check(t, m.Stop(t.Context()))

	forked := newSpec(t)
	forked.Root.UpperMiB = size
	fork, err := r.Restore(t.Context(), forked, dir)
	check(t, err)
	g = nacretest.DialGuest(t, fork)
	look(g)
	if n := g.Do("disk", "/").N; n != size<<20 {
		t.Errorf("the copy's disk has %d bytes", n)
	}
	if f := g.Try("write", 2*size, "/root/all"); f.Err == "" || f.N < (size*5/6)<<20 { // the file system and the tree have the rest
		t.Errorf("%d MiB could be written to a disk of %d, %q", f.N>>20, size, f.Err)
	}
	look(g)
	check(t, fork.Stop(t.Context()))
}

// TestTrimWhileAGuestWrites: blocks that a guest takes into use again around the moment
// in which free ones are given back are not among them.
func TestTrimWhileAGuestWrites(t *testing.T) {
	r := newRuntime(t)
	spec := newSpec(t)
	spec.Root.UpperMiB = 192
	m, err := r.Start(t.Context(), spec)
	check(t, err)
	nacretest.DialGuest(t, m).Do("churn", "/root/churn")
	disk := filepath.Join(spec.Root.UpperDir, upperFile)
	won, dir := int64(0), ""
	for range 2 {
		g := nacretest.DialGuest(t, m)
		g.Do("write", 48, "/root/big")
		g.Do("run", "/bin/tool", "sync")
		g.Do("run", "/bin/tool", "rm", "/root/big")
		before := occupies(t, disk)
		dir = t.TempDir()
		_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
		check(t, err)
		won += before - occupies(t, disk)
		checkDisk(t, dir)
	}
	if won < 64<<20 {
		t.Errorf("%d MiB were given back; the test proves little", won>>20)
	}
	n := nacretest.DialGuest(t, m).Do("churned").N
	check(t, m.Stop(t.Context()))
	forked := newSpec(t)
	forked.Root.UpperMiB = 192
	fork, err := r.Restore(t.Context(), forked, dir)
	check(t, err)
	of := nacretest.DialGuest(t, fork).Do("churned").N
	t.Logf("%d MiB were given back while the guest wrote %d files, its copy %d", won>>20, n, of)
	check(t, fork.Stop(t.Context()))
}

// TestFault05_NobodyLetsTheDiskGoOn: a guest that was asked to hold its file system
// still by a server that is gone, or hangs, goes on by itself; so does one whose
// processors were stopped as well, once the next server lets them.
func TestFault05_NobodyLetsTheDiskGoOn(t *testing.T) {
	r, spec := newRuntime(t), newSpec(t)
	started, err := r.Start(t.Context(), spec)
	check(t, err)
	m := started.(*machine)
	size := uint64(spec.Root.UpperMiB) << 20 / wire.ExtentBlock
	writes := func(m nacre.Machine, within time.Duration) {
		t.Helper()
		begin := time.Now()
		nacretest.DialGuest(t, m).Do("append", "/root/file", "x")
		if took := time.Since(begin); took > within {
			t.Errorf("the guest wrote after %v", took)
		}
	}
	freeze := func() *frozen {
		t.Helper()
		f, err := m.freeze(t.Context(), size)
		check(t, err)
		if len(f.free) == 0 {
			t.Error("the guest has nothing free")
		}
		return f
	}
	f := freeze()
	if _, err := m.freeze(t.Context(), size); err == nil {
		t.Error("a file system that stands still was taken again")
	}
	check(t, f.c.Close()) // as the kernel does for who is killed
	writes(m, wire.FreezeFor/2)

	f = freeze()
	writes(m, 2*wire.FreezeFor)
	if held := uptime() - f.since; held < trimLease {
		t.Errorf("the guest went on after %v, in which the host takes it to stand still", held)
	}
	if err := f.thaw(time.Minute); err == nil {
		t.Error("who comes too late is not told so")
	}

	f = freeze()
	check(t, m.Hold.Begin())
	check(t, m.api.setState(t.Context(), statePaused))
	h := m.Handle()
	check(t, f.c.Close())
	check(t, r.Close())
	again, err := newRuntime(t).Recover(t.Context(), h)
	check(t, err)
	check(t, again.Resume(t.Context()))
	writes(again, 2*wire.FreezeFor)
	check(t, again.Stop(t.Context()))
}

// TestTrimIsTheGuestsOwn: whatever a guest says is free, no other file changes, nor what
// stands behind its file system; and a guest that took too long loses nothing.
func TestTrimIsTheGuestsOwn(t *testing.T) {
	const mib = 64
	dir := t.TempDir()
	path, other := filepath.Join(dir, "disk"), filepath.Join(dir, "snapshot")
	content := bytes.Repeat([]byte("data"), int(upperSize(mib))/4)
	check(t, os.WriteFile(path, content, 0o600))
	check(t, sparse.Clone(path, other, 0o600))
	disk, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	defer disk.Close()
	var odd []wire.Extent // as many as there may be
	for i := range uint32(mib << 20 / wire.ExtentBlock / 2) {
		odd = append(odd, wire.Extent{Start: 2 * i, Count: 1})
	}
	late := frozen{since: uptime() - trimLease - 1}
	if won, err := late.release(disk, odd, time.Now().Add(trimStill)); won != 0 || err == nil || !strings.Contains(err.Error(), "took so long") {
		t.Errorf("%d, %v of a guest that may have gone on", won, err)
	}
	same(t, path, content)
	if won, err := (&frozen{since: uptime()}).release(disk, odd, time.Now().Add(-1)); won != 0 || err != nil {
		t.Errorf("%d, %v when there is no time left", won, err)
	}
	full, there, err := occupied(t.Context(), disk, odd)
	check(t, err)
	if len(full) != len(odd) || there != mib<<20/2 {
		t.Errorf("%d extents with %d bytes", len(full), there)
	}
	begin := time.Now()
	won, err := (&frozen{since: uptime()}).release(disk, odd, begin.Add(trimStill))
	check(t, err)
	if took := time.Since(begin); took > 2*trimStill || won <= 0 {
		t.Errorf("%d bytes in %v", won, took)
	}
	all := []wire.Extent{{Start: 0, Count: mib << 20 / wire.ExtentBlock}}
	_, err = (&frozen{since: uptime()}).release(disk, all, time.Now().Add(trimStill))
	check(t, err)
	same(t, path, append(make([]byte, mib<<20), content[mib<<20:]...))
	same(t, other, content)
	if _, there, err := occupied(t.Context(), disk, all); there != 0 || err != nil {
		t.Errorf("%d bytes are left, %v", there, err)
	}
}

func same(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s has another content", filepath.Base(path))
	}
}

// TestSnapshotCopiesTheMachinesDisk: a VMM that puts another file in the place of its
// disk's name gets none of the host's files into a snapshot.
func TestSnapshotCopiesTheMachinesDisk(t *testing.T) {
	m, _ := startMachine(t)
	secret := filepath.Join(t.TempDir(), "secret")
	check(t, os.WriteFile(secret, []byte("secret"), 0o600))
	name := filepath.Join(m.jail.root, upperName)
	check(t, os.Remove(name))
	check(t, os.Symlink(secret, name))
	dir := t.TempDir()
	_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
	check(t, err)
	checkDisk(t, dir)
}
