package firecracker

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// TestWorkingSet: the first restore remembers what the guest touched, which is a part
// of its memory, and a later one has that read ahead: it waits for the disk less often.
func TestWorkingSet(t *testing.T) {
	disk := newDisk(t)
	r := newRuntime(t)
	m, err := r.Start(t.Context(), specOn(t, disk))
	check(t, err)
	nacretest.DialGuest(t, m).Do("keep", 16)
	dir := filepath.Join(disk, "snapshot")
	check(t, os.Mkdir(dir, 0o700))
	_, err = m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
	check(t, err)
	check(t, m.Stop(t.Context()))
	f, err := os.Open(filepath.Join(dir, memFile))
	check(t, err)
	defer f.Close()

	// restore returns how often the guest waited for the disk before it answered.
	restore := func(r *Runtime, what string) int64 {
		t.Helper()
		set, _ := r.sets.Recall(f)
		check(t, f.Sync())
		check(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		l := &launch{r: r, spec: specOn(t, disk)}
		l.snap, err = r.openSnapshot(dir)
		check(t, err)
		begin := time.Now()
		m, err := r.launch(t.Context(), l)
		check(t, err)
		t.Logf("%s: %d faults, %d of them waited for the disk; %d KiB read ahead; answered after %v",
			what, l.faults.Minor+l.faults.Major, l.faults.Major, l.prefetched>>10, time.Since(begin).Round(time.Millisecond))
		nacretest.DialGuest(t, m).Do("kept")
		if l.prefetched != set.Bytes() {
			t.Errorf("%s: %d bytes were read ahead, want %d", what, l.prefetched, set.Bytes())
		}
		check(t, m.Stop(t.Context()))
		return l.faults.Major
	}
	if _, known := r.sets.Recall(f); known {
		t.Error("a set is known before the first restore")
	}
	restore(r, "first")
	set, known := r.sets.Recall(f)
	if n := set.Bytes(); !known || n == 0 || n > memorySize(128)/2 {
		t.Fatalf("after the first restore %d bytes are known (%t)", n, known)
	}
	if cold, warm := restore(newRuntime(t), "without the set"), restore(r, "with it"); warm >= cold {
		t.Errorf("with the set a restore waited for the disk %d times, without %d times", warm, cold)
	}
}

// specOn is newSpec with the machine's files in dir.
func specOn(t *testing.T, dir string) nacre.MachineSpec {
	t.Helper()
	s := newSpec(t)
	s.Root.UpperDir, s.StateDir = filepath.Join(dir, string(s.ID), "upper"), filepath.Join(dir, string(s.ID), "state")
	for _, d := range []string{s.Root.UpperDir, s.StateDir} {
		check(t, os.MkdirAll(d, 0o700))
	}
	return s
}

// newDisk returns a directory on a disk. All else of an emulated host is in its memory,
// which no page has to be read into.
func newDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if !kvmhost.Emulated() {
		return dir
	}
	const device = "zram0"
	check(t, os.WriteFile("/sys/block/"+device+"/disksize", []byte("1G"), 0))
	t.Cleanup(func() { check(t, os.WriteFile("/sys/block/"+device+"/reset", []byte("1"), 0)) })
	if out, err := exec.Command("mkfs.ext4", "-q", "/dev/"+device).CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("%w: %s", err, out))
	}
	check(t, unix.Mount("/dev/"+device, dir, "ext4", 0, ""))
	t.Cleanup(func() { check(t, unix.Unmount(dir, 0)) })
	return dir
}
