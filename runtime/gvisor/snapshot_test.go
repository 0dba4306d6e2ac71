package gvisor

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/snapfile"
	"github.com/nacrehq/nacre/nacretest"
)

// TestRestoreKeyNamesGVisorOfGoMod: checkpoints are bound to gVisor's version.
func TestRestoreKeyNamesGVisorOfGoMod(t *testing.T) {
	b, err := os.ReadFile("../../go.mod")
	check(t, err)
	if !strings.Contains(string(b), "gvisor.dev/gvisor "+gvisorVersion+"\n") {
		t.Errorf("gvisorVersion %s is not the one in go.mod", gvisorVersion)
	}
}

// TestFault03_DaemonKilledDuringSnapshot: whenever that is, the guest is there
// afterwards and goes on with all it had.
func TestFault03_DaemonKilledDuringSnapshot(t *testing.T) {
	held := 0
	for _, after := range []time.Duration{0, 10, 20, 30, 45, 60, 80, 110, 150, 200} {
		for _, keep := range []bool{false, true} {
			spec := newSpec(t)
			do, kill := newDaemon(t, host.program)
			h, err := do(order{MachineSpec: spec})
			check(t, err)
			r := newRuntime(t)
			m, err := r.Recover(t.Context(), h)
			check(t, err)
			nacretest.DialGuest(t, m).Do("keep", 24)
			check(t, r.Close())
			dir := t.TempDir()
			go func() {
				time.Sleep(after * time.Millisecond)
				kill()
			}()
			do.try(order{SnapshotDir: dir, KeepRunning: keep})
			kill()

			r = newRuntime(t)
			m, err = r.Recover(t.Context(), h)
			check(t, err)
			stopLater(t, m, spec)
			if m.(*machine).Hold.Marked() {
				held++
			}
			if keep { // it goes on by itself, whoever is there to let it
				nacretest.DialGuest(t, m).Do("kept")
			}
			for range 2 {
				check(t, m.Resume(t.Context()))
			}
			nacretest.DialGuest(t, m).Do("kept")
			// The interrupted one does not hinder the next, and a whole one is whole.
			_, err = m.Snapshot(t.Context(), t.TempDir(), nacre.SnapshotOptions{KeepRunning: true})
			check(t, err)
			nacretest.DialGuest(t, m).Do("kept")
			if _, err := os.Stat(filepath.Join(dir, snapfile.Manifest)); err == nil {
				check(t, r.VerifySnapshot(t.Context(), dir))
			}
			check(t, m.Stop(t.Context()))
		}
	}
	if held == 0 {
		t.Error("no daemon was killed while its guest stood still")
	}
	t.Logf("%d of 20 daemons were killed during their snapshot", held)
}

func TestFault11_DiskFullDuringSnapshot(t *testing.T) {
	if !nacretest.InMountNamespace(t) {
		return
	}
	check(t, unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	dir := t.TempDir()
	r := newRuntime(t)
	m := start(t, r, newSpec(t))
	g := nacretest.DialGuest(t, m)
	g.Do("keep", 8)
	for _, size := range []string{"64k", "3500k", "8m", "12m"} {
		check(t, unix.Mount("none", dir, "tmpfs", 0, "size="+size))
		for _, keep := range []bool{false, true} {
			_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: keep})
			if !nacre.IsCode(err, nacre.CodeNoSpace) {
				t.Errorf("with %s of disk: %v, want no_space", size, err)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left %v", left)
			}
			g.Do("kept")
		}
		check(t, unix.Unmount(dir, unix.MNT_DETACH))
	}
	g.Do("write", 8, "/root/big")
	for _, size := range []string{"4k", "64k", "3500k"} {
		check(t, unix.Mount("none", dir, "tmpfs", 0, "size="+size))
		_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{FilesOnly: true})
		if !nacre.IsCode(err, nacre.CodeNoSpace) {
			t.Errorf("files alone, with %s of disk: %v, want no_space", size, err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left %v", left)
		}
		g.Do("kept")
		check(t, unix.Unmount(dir, unix.MNT_DETACH))
	}
	_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
	check(t, err)
	spec := newSpec(t)
	restored, err := r.Restore(t.Context(), spec, dir)
	check(t, err)
	stopLater(t, restored, spec)
	nacretest.DialGuest(t, restored).Do("kept")
}

// TestRestoredMonotonicClock shows what a guest's monotonic clock does while it is
// a snapshot.
func TestRestoredMonotonicClock(t *testing.T) {
	r := newRuntime(t)
	m := start(t, r, newSpec(t))
	g := nacretest.DialGuest(t, m)
	dir := t.TempDir()
	before := time.Duration(g.Do("ticks").N)
	_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
	check(t, err)
	check(t, m.Stop(context.Background()))
	const away = 1500 * time.Millisecond
	time.Sleep(away)
	spec := newSpec(t)
	m2, err := r.Restore(t.Context(), spec, dir)
	check(t, err)
	stopLater(t, m2, spec)
	after := time.Duration(nacretest.DialGuest(t, m2).Do("ticks").N)
	if after < before {
		t.Errorf("it went back from %v to %v", before, after)
	}
	t.Logf("%v, away for %v, %v", before, away, after)
}

// TestSnapshotNearMemoryLimit: what gVisor writes and reads counts for the
// machine's memory limit too, but gives way.
func TestSnapshotNearMemoryLimit(t *testing.T) {
	r := newRuntime(t)
	big := func() nacre.MachineSpec {
		s := newSpec(t)
		s.Resources.MemoryMiB = 512
		return s
	}
	m := start(t, r, big())
	g := nacretest.DialGuest(t, m)
	g.Do("hold", 500)
	for range 3 {
		dir := t.TempDir()
		_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
		check(t, err)
		g.Do("ping")
		spec := big()
		restored, err := r.Restore(t.Context(), spec, dir)
		check(t, err)
		stopLater(t, restored, spec)
		if n := nacretest.DialGuest(t, restored).Do("held").N; n != 500*256 {
			t.Errorf("%d pages of %d are as they were", n, 500*256)
		}
		check(t, restored.Stop(t.Context()))
	}
}

// TestSparseUpper: a writable layer costs a snapshot what is in it, not its size.
func TestSparseUpper(t *testing.T) {
	r := newRuntime(t)
	sparse := func() nacre.MachineSpec {
		s := newSpec(t)
		s.Root.UpperMiB = 10 << 10
		return s
	}
	m := start(t, r, sparse())
	g := nacretest.DialGuest(t, m)
	g.Do("sparse", 9<<10, "/root/sparse")
	g.Do("keep", 16) // in memory, and in a file
	dir := t.TempDir()
	info, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
	check(t, err)
	var disk int64
	for _, f := range info.Files {
		disk += f.Disk
	}
	t.Logf("%d MiB in %d MiB on disk", info.Bytes()>>20, disk>>20)
	if info.Bytes() > 64<<20 {
		t.Errorf("16 MiB of memory and 16 of files make a snapshot of %d MiB", info.Bytes()>>20)
	}
	spec := sparse()
	restored, err := r.Restore(t.Context(), spec, dir)
	check(t, err)
	stopLater(t, restored, spec)
	nacretest.DialGuest(t, restored).Do("kept")
	var st unix.Stat_t
	check(t, unix.Stat(filepath.Join(spec.Root.UpperDir, upperFile), &st))
	if used := st.Blocks * 512; used > 64<<20 {
		t.Errorf("the restored writable layer takes %d MiB", used>>20)
	}
	if got := nacretest.DialGuest(t, restored).Do("disk", "/").N; got != 10<<30 {
		t.Errorf("the disk shows %d bytes", got)
	}
}

// TestAllStopped reads stacks as gVisor prints them.
func TestAllStopped(t *testing.T) {
	const (
		other   = "goroutine 1 [sync.Cond.Wait]:\nmain.main()\n"
		stopped = "goroutine 41 [sync.Cond.Wait, 2 minutes]:\nx/kernel.(*Task).doStop(0x1)\n\t/a.go:1\nx/kernel.(*Task).run(0x1, 0x1)\n"
		waking  = "goroutine 42 [runnable]:\nx/kernel.(*Task).doStop(0x1)\n\t/a.go:1\nx/kernel.(*Task).run(0x1, 0x1)\n"
		runs    = "goroutine 43 [select]:\nx/kernel.(*Task).block(0x1)\n\t/a.go:1\nx/kernel.(*Task).run(0x1, 0x1)\n"
	)
	for want, all := range map[bool][][]string{
		true:  {{other, stopped}, {stopped, stopped, other}},
		false: {{}, {other}, {other, runs}, {stopped, runs}, {stopped, waking}},
	} {
		for _, s := range all {
			if got := allStopped(strings.Join(s, "\n")); got != want {
				t.Errorf("%v, want %v:\n%s", got, want, s)
			}
		}
	}
}

// TestSnapshotsInARow: a guest that is stopped again as soon as it went on, while it
// is busy, comes to no harm.
func TestSnapshotsInARow(t *testing.T) {
	r := newRuntime(t)
	m := start(t, r, newSpec(t))
	g := nacretest.DialGuest(t, m)
	g.Do("keep", 2)
	for range 3 {
		nacretest.DialGuest(t, m).Send("spin", 5000)
	}
	for i := range 50 {
		_, err := m.Snapshot(t.Context(), t.TempDir(), nacre.SnapshotOptions{KeepRunning: i%2 == 0})
		check(t, err)
		check(t, m.Resume(t.Context()))
	}
	g.Do("kept")
}

// TestAgentIsSummedOnce: a second snapshot does not read all of the agent.
func TestAgentIsSummedOnce(t *testing.T) {
	r := newRuntime(t)
	m := start(t, r, newSpec(t))
	first, second := t.TempDir(), t.TempDir()
	_, err := m.Snapshot(t.Context(), first, nacre.SnapshotOptions{KeepRunning: true})
	check(t, err)
	check(t, r.VerifySnapshot(t.Context(), first))
	r.sums.Range(func(path, _ any) bool {
		r.sums.Store(path, "a sum that only who does not read takes over")
		return true
	})
	_, err = m.Snapshot(t.Context(), second, nacre.SnapshotOptions{KeepRunning: true})
	check(t, err)
	if err := r.VerifySnapshot(t.Context(), second); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("the agent was read again: %v", err)
	}
	check(t, r.VerifySnapshot(t.Context(), first))
}

// TestSnapshotsSpecIsItsOwn: what a snapshot's guest may do, as an older server wrote
// it, is not what the next new guest may.
func TestSnapshotsSpecIsItsOwn(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, make([]byte, 8<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := nacre.MachineSpec{ID: "m1", StateDir: dir, Root: nacre.RootFS{Image: image}}
	before, err := json.Marshal(guestSpec(spec))
	if err != nil {
		t.Fatal(err)
	}
	older := guestSpec(spec)
	older.Process.Capabilities.Bounding = []string{"CAP_OF_THE_PAST"}
	older.Mounts = []specs.Mount{{Destination: "/x", Type: "tmpfs"}, {Destination: "/y", Type: "tmpfs"}}
	raw, err := json.Marshal(older)
	if err != nil {
		t.Fatal(err)
	}
	l := &launch{r: &Runtime{}, spec: spec, snap: &snapshot{Snapshot: &snapfile.Snapshot{}, birth: birth{Spec: raw}}}
	b, _ := l.birth("") // what it says of the image is not the subject
	if string(b.Spec) != string(raw) {
		t.Errorf("the guest of the snapshot became\n%s, want\n%s", b.Spec, raw)
	}
	if after, err := json.Marshal(guestSpec(spec)); err != nil || string(after) != string(before) {
		t.Errorf("a new guest became\n%s, want\n%s", after, before)
	}
}
