package gvisor

import (
	"testing"

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
