package firecracker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

// TestReclaimable: a guest is bothered for what it has freed, and not for what it never
// touched or still uses.
func TestReclaimable(t *testing.T) {
	for _, c := range []struct {
		name                   string
		memory, free, resident int
		copied                 bool
		want                   int
	}{
		{"fresh: 50 used, the rest never touched", 1000, 950, 50, false, 0},
		{"touched 600 and freed them", 1000, 950, 650, false, 600},
		{"touched 600 and uses them", 1000, 350, 650, false, 0},
		{"all was touched, what it needs meanwhile stays", 1000, 950, 1000, false, 950 - spare(1000)},
		{"a copy that wrote nothing", 1000, 500, 3, true, 3},
		{"a copy that wrote 300", 1000, 900, 300, true, 300},
		{"a copy that is full", 1000, 10, 300, true, 0},
	} {
		if got := reclaimable(c.memory, c.free, c.resident, c.copied); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// TestWaitingForAGuestsMemory: a guest is waited for until it has done what it was asked to, as long
// as it comes nearer, and never past the time that it was given.
func TestWaitingForAGuestsMemory(t *testing.T) { synctest.Test(t, waitForMemory) }

func waitForMemory(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name      string
		says      []int // -1 is an error; the last again and again
		way, want int
		patience  time.Duration
		best      int
		err       error
	}{
		{"falls", []int{90, 50, 20}, -1, 20, time.Minute, 20, nil},
		{"rises", []int{20, 50, 89}, 1, 90, time.Minute, 89, nil},
		{"stops on its way down", []int{90, 50}, -1, 20, time.Minute, 50, nil},
		{"stops on its way up", []int{20, 50}, 1, 90, time.Minute, 50, nil},
		{"begins late", append(slices.Repeat([]int{90}, 30), 20), -1, 20, time.Minute, 20, nil},
		{"moves now and then", slices.Concat([]int{90}, slices.Repeat([]int{70}, 20), slices.Repeat([]int{50}, 20), []int{20}), -1, 20, time.Minute, 20, nil},
		{"has moved quickly, then no more", append([]int{90, 80, 70}, append(slices.Repeat([]int{70}, 200), 20)...), -1, 20, time.Minute, 70, nil},
		{"goes the other way", []int{50, 60, 70}, -1, 20, time.Minute, 50, nil},
		{"says nothing", []int{90, -1}, -1, 20, time.Minute, 90, broken},
		{"is slow", []int{90, 89, 88, 87, 86, 85, 84, 83, 82, 81, 80, 79, 78}, -1, 20, 35 * time.Millisecond, 87, nil},
	} {
		said := slices.Clone(c.says)
		begin := time.Now()
		ask := func(context.Context) (int, error) {
			n := said[0]
			if len(said) > 1 {
				said = said[1:]
			}
			if n < 0 {
				return 0, broken
			}
			return n, nil
		}
		best, err := waiting{ask, c.patience, balloonPatience, balloonStall}.until(t.Context(), c.way, c.want)
		if !errors.Is(err, c.err) || best != c.best || time.Since(begin) > 30*time.Second {
			t.Errorf("%s: %d, %v", c.name, best, err)
		}
	}
}

// TestFreedMemoryCostsNothing: what a guest used and freed is no part of its snapshot,
// and it has all of its memory afterwards, as has a copy. Without the balloon it costs
// what it was.
func TestFreedMemoryCostsNothing(t *testing.T) {
	const mib = 64
	with, without := freed(t, false, mib), freed(t, true, mib)
	if with.more > mib<<20/4 {
		t.Errorf("the snapshot occupies %d MiB, %d more than before %d MiB were used and freed", with.occupied>>20, with.more>>20, mib)
	}
	if without.more < mib<<20/2 {
		t.Errorf("without a balloon it occupies %d MiB, %d more than before: the test proves nothing", without.occupied>>20, without.more>>20)
	}
	t.Logf("%d MiB were used and freed: the snapshot occupies %d MiB, and %d without a balloon", mib, with.occupied>>20, without.occupied>>20)
}

type cost struct {
	occupied, more int64         // bytes on the disk; more than before
	took, stopped  time.Duration // the snapshot, and how long the guest stood still
}

// freed has a guest use and free memory, and returns what its snapshot costs then.
func freed(t testing.TB, no bool, mib int) cost {
	t.Helper()
	r := newRuntime(t)
	r.cfg.NoBalloon = no
	spec := func() nacre.MachineSpec {
		s := newSpec(t)
		s.Resources.MemoryMiB += max(0, mib-64)
		return s
	}
	m, err := r.Start(t.Context(), spec())
	check(t, err)
	take := func() (dir string, c cost) {
		t.Helper()
		dir = t.TempDir()
		begin := time.Now()
		info, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
		check(t, err)
		c.took, c.stopped = time.Since(begin), info.Stopped
		st, err := os.Stat(filepath.Join(dir, memFile))
		check(t, err)
		c.occupied = st.Sys().(*syscall.Stat_t).Blocks * 512
		return dir, c
	}
	use := func(m nacre.Machine) { // and free
		t.Helper()
		nacretest.DialGuest(t, m).Do("run", "/bin/tool", "eat", mib)
	}
	_, before := take()
	use(m)
	dir, after := take()
	after.more = after.occupied - before.occupied
	use(m)
	check(t, m.Stop(t.Context()))
	fork, err := r.Restore(t.Context(), spec(), dir)
	check(t, err)
	nacretest.DialGuest(t, fork).Do("run", "/bin/tool", "eat", min(mib, 64))
	check(t, fork.Stop(t.Context()))
	check(t, os.RemoveAll(dir))
	return after
}

// TestBalloonLeftFull: a server that is killed while a guest's balloon is full leaves a
// guest that the next one gives its memory back to.
func TestBalloonLeftFull(t *testing.T) {
	r := newRuntime(t)
	started, err := r.Start(t.Context(), newSpec(t))
	check(t, err)
	m := started.(*machine)
	free, err := m.freeMemory(t.Context())
	check(t, err)
	check(t, m.Hold.Begin())
	check(t, m.api.fillBalloon(t.Context(), free-spare(128)))
	least, err := m.awaitFree(t.Context(), time.Minute, -1, spare(128))
	check(t, err)
	if least > free/2 {
		t.Fatalf("of %d MiB %d are free with a full balloon", free, least)
	}
	h := m.Handle()
	check(t, r.Close())
	again, err := newRuntime(t).Recover(t.Context(), h)
	check(t, err)
	check(t, again.Resume(t.Context()))
	got, err := again.(*machine).awaitFree(t.Context(), time.Minute, 1, free)
	check(t, err)
	if got < free*3/4 { // an eighth may be in the lists of the processors, which the kernel does not count
		t.Errorf("%d MiB are free, of %d before", got, free)
	}
	check(t, again.Stop(t.Context()))
}

// TestFillTime: the time grows with the memory, and no guest keeps the others' snapshots
// waiting for long, however much it says that it has.
func TestFillTime(t *testing.T) {
	for mib, want := range map[int]time.Duration{0: time.Second, 64: 1625 * time.Millisecond, 512: 2 * time.Second, 1 << 20: 2 * time.Second} {
		if got := fillTime(mib); got != want {
			t.Errorf("%d MiB: %v, want %v", mib, got, want)
		}
	}
}
