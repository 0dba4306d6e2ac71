package firecracker

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

// TestFreedMemoryCostsNothing: what a guest used and freed is no part of its snapshot,
// and it has all of its memory afterwards, as has a copy.
func TestFreedMemoryCostsNothing(t *testing.T) {
	r := newRuntime(t)
	r.cfg.Balloon = true
	m, _ := startMachineOf(t, r)
	g := nacretest.DialGuest(t, m)
	take := func() (dir string, occupied int64) {
		t.Helper()
		dir = t.TempDir()
		_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
		check(t, err)
		st, err := os.Stat(filepath.Join(dir, memFile))
		check(t, err)
		return dir, st.Sys().(*syscall.Stat_t).Blocks * 512
	}
	use := func(g *nacretest.Guest) { // and free
		t.Helper()
		g.Do("run", "/bin/tool", "eat", "64")
	}
	_, before := take()
	use(g)
	dir, after := take()
	if more := after - before; more > 24<<20 {
		t.Errorf("the snapshot occupies %d MiB, %d more than before 64 MiB were used and freed", after>>20, more>>20)
	}
	t.Logf("the snapshot occupies %d MiB, and %d after 64 MiB were used and freed", before>>20, after>>20)
	use(g)
	spec := newSpec(t)
	fork, err := m.r.Restore(t.Context(), spec, dir)
	check(t, err)
	use(nacretest.DialGuest(t, fork))
	check(t, fork.Stop(t.Context()))
}
