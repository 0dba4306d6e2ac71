package firecracker

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// TestFault25_OtherRelease: a snapshot of one release is not given to another one, and
// the message names both. Where two are at hand, it is tried in both directions.
func TestFault25_OtherRelease(t *testing.T) {
	tested := newRuntime(t)
	c := config(nacretest.Log(t))
	c.Firecracker, c.Jailer, c.CgroupParent = kvmhost.PinnedFirecracker, kvmhost.PinnedJailer, parent+"-pinned"
	pinned, err := New(c)
	check(t, err)
	t.Cleanup(func() { check(t, pinned.Close()); check(t, pinned.RemoveParent()) })
	if pinned.version == tested.version {
		pinned.version.patch++ // which only has another name
		pinned.key, err = restoreKey(pinned.version)
		check(t, err)
	}
	for _, way := range [][2]*Runtime{{tested, pinned}, {pinned, tested}} {
		from, to := way[0], way[1]
		m, err := from.Start(t.Context(), newSpec(t))
		check(t, err)
		nacretest.DialGuest(t, m).Do("ping")
		dir := t.TempDir()
		_, err = m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
		check(t, err)
		check(t, m.Stop(t.Context()))
		_, err = to.Restore(t.Context(), newSpec(t), dir)
		if msg := nacre.ErrorMessage(err); !nacre.IsCode(err, nacre.CodeMismatch) ||
			!strings.Contains(msg, from.version.String()) || !strings.Contains(msg, to.version.String()) {
			t.Errorf("a snapshot of %s on %s: %v", from.version, to.version, err)
		}
		if err := to.VerifySnapshot(t.Context(), dir); !nacre.IsCode(err, nacre.CodeMismatch) {
			t.Errorf("a snapshot of %s verified by %s: %v", from.version, to.version, err)
		}
		again, err := from.Restore(t.Context(), newSpec(t), dir) // it is whole
		check(t, err)
		check(t, again.Stop(t.Context()))
	}
}

// TestFault23_ForksAreTheirOwn: a hundred of a guest that runs, ten at a time, have random
// numbers, identifiers and a name of their own. The guest's kernel is told by the VMM, too, that
// it is a copy. For the time that a copy has see Fault24.
func TestFault23_ForksAreTheirOwn(t *testing.T) {
	r := newRuntime(t)
	m, err := r.Start(t.Context(), newSpec(t))
	check(t, err)
	g := nacretest.DialGuest(t, m)
	g.Do("random")
	if r := g.Try("read", "/sys/bus/platform/drivers/vmgenid/"+vmGenID(r.version)+":00/modalias"); r.Err != "" {
		t.Errorf("the guest's kernel does not use VMGENID: %s", r.Err)
	}
	dir := t.TempDir()
	_, err = m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
	check(t, err)
	var mu sync.Mutex
	seen := map[string]string{}
	own := func(who string, g *nacretest.Guest) {
		values := append(strings.Fields(g.Do("random").Out), g.Do("read", "/proc/sys/kernel/random/uuid").Out, g.Do("hostname").Out)
		mu.Lock()
		defer mu.Unlock()
		for _, v := range values {
			if other, ok := seen[v]; ok {
				t.Errorf("%s and %s have %q", who, other, v)
			}
			seen[v] = who
		}
	}
	own("the first guest", g)
	var all errgroup.Group
	all.SetLimit(10)
	for i := range 100 {
		spec := newSpec(t)
		spec.Hostname = fmt.Sprint("fork-", i)
		all.Go(func() error {
			f, err := r.Restore(t.Context(), spec, dir)
			if err != nil {
				return err
			}
			own(spec.Hostname, nacretest.DialGuest(t, f))
			return f.Stop(t.Context())
		})
	}
	check(t, all.Wait())
	if want := 101 * 5; len(seen) != want { // of each guest
		t.Errorf("%d values of a hundred forks and the first, want %d", len(seen), want)
	}
	check(t, m.Stop(t.Context()))
}

// vmGenID is what a release calls the device by which it tells a guest that it is a copy.
func vmGenID(v version) string {
	if v.compare(version{1, 16, 0}) < 0 {
		return "FCVMGID"
	}
	return "VMGENCTR"
}

// TestFault24_PausedTimeIsNotLived: what a guest measures time-outs with does not count
// the time that it was a file, while its wall clock does. Releases before 1.16 have it
// count where the host's kernel is 5.16 or later (Firecracker's change #5809).
func TestFault24_PausedTimeIsNotLived(t *testing.T) {
	r := newRuntime(t)
	m, err := r.Start(t.Context(), newSpec(t))
	check(t, err)
	dir := t.TempDir()
	_, err = m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
	check(t, err)
	saved := time.Now()
	check(t, m.Resume(t.Context()))
	ticks := func(m nacre.Machine) time.Duration { return time.Duration(nacretest.DialGuest(t, m).Do("ticks").N) }
	before := ticks(m)
	check(t, m.Stop(t.Context()))
	const age = 20 * time.Second
	time.Sleep(time.Until(saved.Add(age))) // the time that passes is what is tested
	m, err = r.Restore(t.Context(), newSpec(t), dir)
	check(t, err)
	after := ticks(m)
	passed := time.Since(saved)
	off := wrong(nacretest.DialGuest(t, m))
	t.Logf("Firecracker %s: of %v the guest counted %v; its wall clock is off by %v", r.version, passed, after-before, off)
	if off > time.Second {
		t.Errorf("the wall clock is off by %v", off)
	}
	if counted := after-before > age/2; counted && r.version.compare(version{1, 16, 0}) >= 0 {
		t.Errorf("of %v the guest counted %v", passed, after-before)
	}
	check(t, m.Stop(t.Context()))
}

// TestFault24_HostClockStepped: the host's clock is set an hour on while a guest is a file,
// and back again. A restored guest has the time that the host has then, and what it
// measures time-outs with has not jumped (of releases before 1.16 see above).
func TestFault24_HostClockStepped(t *testing.T) {
	if !kvmhost.Emulated() {
		t.Skip("it sets the host's clock, and only an emulated host is the tests' own")
	}
	r := newRuntime(t)
	m, err := r.Start(t.Context(), newSpec(t))
	check(t, err)
	begin := time.Now()
	ticks := func() time.Duration { return time.Duration(nacretest.DialGuest(t, m).Do("ticks").N) }
	first := ticks()
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		dir := t.TempDir()
		_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
		check(t, err)
		check(t, m.Stop(t.Context()))
		stepClock(t, step)
		m, err = r.Restore(t.Context(), newSpec(t), dir)
		check(t, err)
		if off := wrong(nacretest.DialGuest(t, m)); off > time.Second {
			t.Errorf("the host's clock was set by %v, and the guest's is off by %v", step, off)
		}
		// What passed is the host's own measure of it, which does not jump.
		lived, passed := ticks()-first, time.Since(begin)
		t.Logf("Firecracker %s: the host's clock was set by %v; since its start the guest counted %v, the host %v", r.version, step, lived, passed)
		if jumped := lived < 0 || lived > passed+time.Second; jumped && r.version.compare(version{1, 16, 0}) >= 0 {
			t.Errorf("since its start the guest counted %v, the host %v", lived, passed)
		}
	}
	check(t, m.Stop(t.Context()))
}

// wrong is by how much a guest's wall clock is wrong at least: its answer takes a while.
func wrong(g *nacretest.Guest) time.Duration {
	from := time.Now()
	at := time.Unix(0, g.Do("time").N)
	return max(from.Sub(at), at.Sub(time.Now()), 0)
}

// stepClock sets the host's clock, and back when the test ends.
func stepClock(t *testing.T, by time.Duration) {
	t.Helper()
	set := func(by time.Duration) error {
		now := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
		return unix.ClockSettime(unix.CLOCK_REALTIME, &now)
	}
	check(t, set(by))
	t.Cleanup(func() { check(t, set(-by)) })
}

// TestSnapshotLoad: a release is told what it knows, by the name that it has for it.
func TestSnapshotLoad(t *testing.T) {
	for _, c := range []struct {
		v          version
		want, lack string
	}{
		{version{1, 12, 1}, `"enable_diff_snapshots":true`, "track_dirty_pages"},
		{version{1, 13, 0}, `"track_dirty_pages":true`, "enable_diff_snapshots"},
		{version{1, 16, 1}, `"track_dirty_pages":true`, "enable_diff_snapshots"},
	} {
		b, err := json.Marshal(newSnapshotLoad(c.v, birth{Tracks: true}))
		check(t, err)
		if !strings.Contains(string(b), c.want) || strings.Contains(string(b), c.lack) {
			t.Errorf("%s: %s", c.v, b)
		}
	}
}
