package firecracker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/uffd"
	"github.com/nacrehq/nacre/nacretest"
)

// largePages has so many pages of 2 MiB free while the test runs, and demands that all of
// them are free when it ends. What the host had set apart before it has again then.
func largePages(t *testing.T, n int) {
	t.Helper()
	free, total, err := HugePages()
	check(t, err)
	setApart(t, total-free+n)
	t.Cleanup(func() {
		if free := freePages(t); free != n {
			t.Errorf("%d pages of 2 MiB are free at the end, and %d were at the beginning", free, n)
		}
		setApart(t, total)
	})
}

// setApart asks until the host has moved together what it can.
func setApart(t *testing.T, n int) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		check(t, os.WriteFile(filepath.Join(hugePagesDir, "nr_hugepages"), []byte(strconv.Itoa(n)), 0))
		_, total, err := HugePages()
		check(t, err)
		if total == n {
			return
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("the host has set %d pages of 2 MiB apart, %d were asked for", total, n)
		}
		check(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
		check(t, os.WriteFile("/proc/sys/vm/compact_memory", []byte("1"), 0))
	}
}

func freePages(t *testing.T) int {
	t.Helper()
	free, _, err := HugePages()
	check(t, err)
	return free
}

// largeSpec is newSpec in pages of 2 MiB.
func largeSpec(t *testing.T) nacre.MachineSpec {
	s := newSpec(t)
	s.Resources.HugePages = true
	return s
}

// stopped stops the machine when the test ends, and demands that nothing is left.
func stopped(t *testing.T, m nacre.Machine, s nacre.MachineSpec) *machine {
	t.Helper()
	t.Cleanup(func() {
		if err := m.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		if left := leftovers(s); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return m.(*machine)
}

// TestLargePages: a guest in pages of 2 MiB boots, is kept, goes on, and twice more in
// copies; who finds none free is told so, and what was promised is kept.
func TestLargePages(t *testing.T) {
	one := HugePagesFor(128)
	largePages(t, 3*one)
	r := newRuntime(t)
	spec := largeSpec(t)
	started, err := r.Start(t.Context(), spec)
	check(t, err)
	m := stopped(t, started, spec)
	g := nacretest.DialGuest(t, m)
	g.Do("keep", 16)
	has, err := hugePagesOf(m.Proc.PID)
	check(t, err)
	if u, err := m.Usage(t.Context()); err != nil || has == 0 || u.MemoryBytes < int64(has)*uffd.PageSize {
		t.Errorf("the machine uses %+v (%v), and has %d large pages", u, err, has)
	}
	dir := t.TempDir()
	info, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
	check(t, err)
	for _, f := range info.Files {
		if f.Name == memFile && (f.Size != memorySize(128) || f.Disk > f.Size*3/4) {
			t.Errorf("of its %d KiB of memory %d are on the disk", f.Size>>10, f.Disk>>10)
		}
	}
	check(t, m.Resume(t.Context()))
	g.Do("kept")
	for range 2 { // and both at once
		spec := newSpec(t) // the snapshot says what its pages are
		started, err := r.Restore(t.Context(), spec, dir)
		check(t, err)
		c := stopped(t, started, spec)
		nacretest.DialGuest(t, c).Do("kept")
		awaitPager(t, c)
		if n, err := hugePagesOf(c.Proc.PID); err != nil || n == 0 || n > one {
			t.Errorf("a copy has %d large pages (%v)", n, err)
		}
	}
	full := largeSpec(t)
	for what, start := range map[string]func() (nacre.Machine, error){
		"a boot":    func() (nacre.Machine, error) { return r.Start(t.Context(), full) },
		"a restore": func() (nacre.Machine, error) { return r.Restore(t.Context(), full, dir) },
	} {
		if _, err := start(); !nacre.IsCode(err, nacre.CodeExhausted) || !strings.Contains(nacre.ErrorMessage(err), "vm.nr_hugepages") {
			t.Errorf("%s without free pages: %v", what, err)
		}
	}
	if entries, err := os.ReadDir(full.StateDir); err != nil || len(entries) > 0 || len(leftovers(full)) > 0 {
		t.Errorf("what was refused left %v, %v", entries, leftovers(full))
	}
	g.Do("kept")
	full.Resources.MemoryMiB++
	if _, err := r.Start(t.Context(), full); nacre.ErrorField(err) != "Resources.MemoryMiB" {
		t.Errorf("half a page: %v", err)
	}
}

// awaitPager returns when the machine's memory is there.
func awaitPager(t *testing.T, m *machine) {
	t.Helper()
	for begin := time.Now(); m.pager.proc.Alive(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatal("the pager does not come to an end")
		}
	}
	if last, _ := m.pager.read(); last != wordDone {
		t.Fatalf("the pager's last word is %q", last)
	}
}

// largeSnapshot is one of a guest in pages of 2 MiB, which is gone.
func largeSnapshot(t *testing.T, r *Runtime, dir string) {
	t.Helper()
	m, err := r.Start(t.Context(), largeSpec(t))
	check(t, err)
	nacretest.DialGuest(t, m).Do("keep", 16)
	_, err = m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
	check(t, err)
	check(t, m.Stop(t.Context()))
}

// TestFault05_PagerKilledOrStopped: a guest whose memory will not come any more ends, and
// why is said; so it is where nobody was there to see it.
func TestFault05_PagerKilledOrStopped(t *testing.T) {
	largePages(t, HugePagesFor(128))
	dir := t.TempDir()
	r := newRuntime(t)
	largeSnapshot(t, r, dir)
	signal := func(s unix.Signal) func(*machine) error {
		return func(m *machine) error { return unix.Kill(m.pager.proc.PID, s) }
	}
	for _, c := range []struct {
		name string
		do   func(*machine) error
		want string
	}{
		{"killed", signal(unix.SIGKILL), "memory back from its snapshot"},
		{"stopped", signal(unix.SIGSTOP), "did not answer"},
		{"killed after a snapshot", func(m *machine) error { // which the VMM reads all of the memory for
			if _, err := m.Snapshot(t.Context(), t.TempDir(), nacre.SnapshotOptions{KeepRunning: true}); err != nil {
				return err
			}
			if n, err := hugePagesOf(m.Proc.PID); err != nil || n != HugePagesFor(128) {
				t.Errorf("the VMM has %d large pages after the snapshot (%v)", n, err)
			}
			return unix.Kill(m.pager.proc.PID, unix.SIGKILL)
		}, "memory back from its snapshot"},
		{"the VMM first", func(m *machine) error { return unix.Kill(m.Proc.PID, unix.SIGKILL) }, "machine"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRuntime(t)
			r.lazy = true
			spec := newSpec(t)
			started, err := r.Restore(t.Context(), spec, dir)
			check(t, err)
			m := stopped(t, started, spec)
			nacretest.DialGuest(t, m).Do("ping")
			check(t, c.do(m))
			ended(t, m, c.want)
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", m.pager.proc.PID)); err == nil {
				check(t, m.Stop(t.Context()))
				if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.pager.proc.PID)); err == nil {
					t.Errorf("the pager is still there:\n%s", b)
				}
			}
		})
	}
	for _, seen := range []bool{true, false} {
		t.Run("after the daemon, seen "+strconv.FormatBool(seen), func(t *testing.T) {
			spec := newSpec(t)
			h, kill := ordered(t, order{MachineSpec: spec, From: dir, Lazy: true})
			kill()
			r := newRuntime(t)
			var st state
			check(t, unmarshal(h.State, &st))
			end := func() { check(t, unix.Kill(st.Pager.PID, unix.SIGKILL)) }
			if !seen {
				end()
			}
			back, err := r.Recover(t.Context(), h)
			check(t, err)
			m := stopped(t, back, spec)
			if seen {
				nacretest.DialGuest(t, m).Do("kept") // by the pager that the dead daemon started
				if _, err := r.Start(t.Context(), largeSpec(t)); !nacre.IsCode(err, nacre.CodeExhausted) {
					t.Errorf("the pages of a machine that was taken back were promised again: %v", err)
				}
				end()
			}
			ended(t, m, "memory back from its snapshot")
		})
	}
}

// ended demands that the machine crashes soon, and says so.
func ended(t *testing.T, m *machine, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	e, err := m.Wait(ctx)
	if err != nil || e.Reason != nacre.EndCrash || !strings.Contains(e.Detail, want) {
		t.Errorf("%+v, %v; want a crash that says %q", e, err, want)
	}
	if want == "machine" && strings.Contains(e.Detail, "snapshot") {
		t.Errorf("the pager is blamed: %+v", e)
	}
}

// TestLargePagesWorkingSet: what a guest waited for is remembered, and is filled first the
// next time: it waits for less.
func TestLargePagesWorkingSet(t *testing.T) {
	largePages(t, HugePagesFor(128))
	disk := newDisk(t)
	r := newRuntime(t)
	dir := filepath.Join(disk, "snapshot")
	check(t, os.Mkdir(dir, 0o700))
	m, err := r.Start(t.Context(), func() nacre.MachineSpec {
		s := specOn(t, disk)
		s.Resources.HugePages = true
		return s
	}())
	check(t, err)
	nacretest.DialGuest(t, m).Do("keep", 16)
	_, err = m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
	check(t, err)
	check(t, m.Stop(t.Context()))
	f, err := os.Open(filepath.Join(dir, memFile))
	check(t, err)
	defer f.Close()
	restore := func(r *Runtime, what string) int64 {
		t.Helper()
		check(t, f.Sync())
		check(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		l := &launch{r: r, spec: specOn(t, disk)}
		l.spec.Resources.HugePages = true
		l.snap, err = r.openSnapshot(dir)
		check(t, err)
		begin := time.Now()
		m, err := r.launch(t.Context(), l)
		check(t, err)
		t.Logf("%s: %d pages of 2 MiB waited for, %d KiB read ahead; answered after %v", what, l.faults.Major, l.prefetched>>10, time.Since(begin).Round(time.Millisecond))
		nacretest.DialGuest(t, m).Do("kept")
		check(t, m.Stop(t.Context()))
		return l.faults.Major
	}
	r.lazy = true
	cold := restore(r, "one by one, nothing else filled")
	set, known := r.sets.Recall(f)
	if !known || set.Bytes() != cold*uffd.PageSize {
		t.Errorf("%d bytes are known (%t), %d pages were waited for", set.Bytes(), known, cold)
	}
	restore(newRuntime(t), "without the set")
	r.lazy = false
	if warm := restore(r, "with it"); warm >= cold {
		t.Errorf("with the set a guest waited for %d pages, without for %d", warm, cold)
	}
}
