package gvisor

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

// TestLoadTakesFewThreads: a guest's pages are read by so few threads that the guest
// comes before them. Left alone gVisor takes 128, of which each stays.
func TestLoadTakesFewThreads(t *testing.T) {
	const mib = 256
	r := newRuntime(t)
	big := func() nacre.MachineSpec {
		s := newSpec(t)
		s.Resources.MemoryMiB = 2 * mib
		return s
	}
	m := start(t, r, big())
	nacretest.DialGuest(t, m).Do("hold", mib)
	dir := t.TempDir()
	_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
	check(t, err)
	check(t, m.Stop(t.Context()))
	spec := big()
	restored, err := r.Restore(t.Context(), spec, dir)
	check(t, err)
	stopLater(t, restored, spec)
	if n := nacretest.DialGuest(t, restored).Do("held").N; n != mib*256 {
		t.Errorf("%d pages of %d are as they were", n, mib*256)
	}
	u, err := restored.Usage(t.Context())
	check(t, err)
	if u.PIDs > 40 {
		t.Errorf("a restored guest has %d threads on the host", u.PIDs)
	}
	t.Logf("%d threads", u.PIDs)
}

// TestFault03_DaemonKilledAfterRestore: what is still to be loaded then comes all
// the same.
func TestFault03_DaemonKilledAfterRestore(t *testing.T) {
	const mib = 256
	big := func() nacre.MachineSpec {
		s := newSpec(t)
		s.Resources.MemoryMiB = 2 * mib
		return s
	}
	r := newRuntime(t)
	m := start(t, r, big())
	nacretest.DialGuest(t, m).Do("hold", mib)
	dir := t.TempDir()
	_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
	check(t, err)
	check(t, m.Stop(t.Context()))

	spec := big()
	do, kill := newDaemon(t, host.program)
	h, err := do(order{MachineSpec: spec, RestoreDir: dir})
	kill()
	check(t, err)
	taken, err := r.Recover(t.Context(), h)
	check(t, err)
	stopLater(t, taken, spec)
	if n := nacretest.DialGuest(t, taken).Do("held").N; n != mib*256 {
		t.Errorf("%d pages of %d are as they were", n, mib*256)
	}
}

// TestLargePagesPassTheCache: a large snapshot takes no second copy of its pages in
// the host's memory, and on the disk no more than it holds.
func TestLargePagesPassTheCache(t *testing.T) {
	const mib = 200
	dir := t.TempDir()
	var fs unix.Statfs_t
	check(t, unix.Statfs(dir, &fs))
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skip("SKIP: the temporary directory is in memory, where everything is cached")
	}
	r := newRuntime(t)
	spec := newSpec(t)
	spec.Resources.MemoryMiB = 2 * mib
	m := start(t, r, spec)
	nacretest.DialGuest(t, m).Do("hold", mib)
	info, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
	check(t, err)
	f, err := os.Open(filepath.Join(dir, pagesFile))
	check(t, err)
	defer f.Close()
	for _, file := range info.Files {
		if file.Name != pagesFile {
			continue
		}
		if file.Size < mib<<20 || file.Disk > file.Size+1<<20 {
			t.Errorf("%d bytes of pages occupy %d", file.Size, file.Disk)
		}
		if isCached(int(f.Fd()), file.Size) {
			t.Error("the pages are in the host's memory a second time")
		}
	}
}
