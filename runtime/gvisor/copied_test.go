package gvisor

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/nacretest"
)

func roomy() ([]cgroup.Room, error) { return []cgroup.Room{{Total: 1 << 50, Free: 1 << 50}}, nil }

// TestCopiesAccount: all copies together take a quarter of what there is at most, and
// leave another quarter free, of the host and of each limit.
func TestCopiesAccount(t *testing.T) {
	for name, c := range map[string]struct {
		rooms []cgroup.Room
		err   error
		takes []int64
		want  int // of these are granted
	}{
		"a quarter":             {rooms: []cgroup.Room{{Total: 400, Free: 400}}, takes: []int64{60, 40, 1}, want: 2},
		"too large":             {rooms: []cgroup.Room{{Total: 400, Free: 400}}, takes: []int64{101}},
		"little is free":        {rooms: []cgroup.Room{{Total: 400, Free: 150}}, takes: []int64{50, 1}, want: 1},
		"less than the reserve": {rooms: []cgroup.Room{{Total: 400, Free: 99}}, takes: []int64{1}},
		"a limit of its own":    {rooms: []cgroup.Room{{Total: 400, Free: 400}, {Total: 80, Free: 80}}, takes: []int64{20, 1}, want: 1},
		"nobody can tell":       {err: errors.New("no"), takes: []int64{1}},
	} {
		t.Run(name, func(t *testing.T) {
			a := copies{rooms: func() ([]cgroup.Room, error) { return c.rooms, c.err }}
			var gives []func()
			for _, n := range c.takes {
				if give, ok := a.take(n); ok {
					gives = append(gives, give)
				}
			}
			if len(gives) != c.want {
				t.Errorf("%d of %v are granted, want %d", len(gives), c.takes, c.want)
			}
			for _, give := range gives {
				give()
				give()
			}
			if a.taken != 0 {
				t.Errorf("%d are taken when all was given back", a.taken)
			}
		})
	}
}

// TestHostHasRooms: what is read of the host is there.
func TestHostHasRooms(t *testing.T) {
	rooms, err := newRuntime(t).rooms()
	check(t, err)
	if last := rooms[len(rooms)-1]; last.Free <= 0 || last.Free >= last.Total {
		t.Errorf("the host has %+v", last)
	}
}

// TestCopied: what was written to a copy comes to the file, whatever it is and however
// little, and its memory is given back.
func TestCopied(t *testing.T) {
	r := &Runtime{}
	r.copies.rooms = roomy
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		const room = 6 << 20
		b := make([]byte, rapid.IntRange(0, room/pageSize).Draw(t, "pages")*pageSize)
		if seed := rapid.Uint64().Draw(t, "seed"); seed%4 != 0 { // else zeros
			c := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
			_, _ = c.Read(b)
		}
		c, err := r.newCopied(context.Background(), room)
		if err != nil || c == nil {
			t.Fatalf("no copy: %v", err)
		}
		flags := os.O_CREATE | os.O_RDWR
		if rapid.Bool().Draw(t, "direct") {
			flags |= unix.O_DIRECT
		}
		n++
		path := filepath.Join(dir, strconv.Itoa(n))
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			t.Skip(err)
		}
		defer f.Close()
		_, werr := c.file.WriteAt(b, 0)
		if err := errors.Join(werr, c.writeTo(context.Background(), f)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes came, %v, want %d, or others", len(got), err, len(b))
		}
		_ = os.Remove(path)
		held, err := c.file.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		dup := -1
		_ = held.Control(func(fd uintptr) { dup, _ = unix.Dup(int(fd)) })
		defer unix.Close(dup)
		c.close()
		var st unix.Stat_t
		if err := unix.Fstat(dup, &st); err != nil || st.Blocks != 0 || r.copies.taken != 0 {
			t.Errorf("%d blocks and %d bytes are still taken, %v", st.Blocks, r.copies.taken, err)
		}
	})
}

// large starts a guest whose snapshots are copied in memory first.
func large(t *testing.T, r *Runtime) (nacre.Machine, func() nacre.MachineSpec) {
	t.Helper()
	spec := func() nacre.MachineSpec {
		s := newSpec(t)
		s.Resources.MemoryMiB = 512
		return s
	}
	m := start(t, r, spec())
	nacretest.DialGuest(t, m).Do("hold", 150)
	return m, spec
}

// checkHeld restores a snapshot and looks at its memory.
func checkHeld(t *testing.T, r *Runtime, s nacre.MachineSpec, dir string, mib int64) {
	t.Helper()
	check(t, r.VerifySnapshot(t.Context(), dir))
	m, err := r.Restore(t.Context(), s, dir)
	check(t, err)
	stopLater(t, m, s)
	if n := nacretest.DialGuest(t, m).Do("held").N; n != mib*256 {
		t.Errorf("%d pages of %d are as they were", n, mib*256)
	}
	check(t, m.Stop(t.Context()))
}

// TestSnapshotByCopy: a guest's snapshot is the same with a copy in memory and without,
// and for one that grows out of the copy; the memory is not there any more afterwards.
func TestSnapshotByCopy(t *testing.T) {
	r := newRuntime(t)
	m, spec := large(t, r)
	g := nacretest.DialGuest(t, m)
	held := int64(150)
	for _, c := range []struct {
		name string
		room func() ([]cgroup.Room, error)
	}{
		{"room", roomy},
		{"no room", func() ([]cgroup.Room, error) { return nil, errors.New("none") }},
		{"outgrown", func() ([]cgroup.Room, error) {
			g.Do("hold", 100)
			held += 100
			return roomy()
		}},
	} {
		asked, most := 0, int64(0)
		r.copies.rooms = func() ([]cgroup.Room, error) {
			asked++
			return c.room()
		}
		dir := t.TempDir()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true, SumPages: true})
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}()
		for end := false; !end; {
			r.copies.mu.Lock()
			most = max(most, r.copies.taken)
			r.copies.mu.Unlock()
			select {
			case <-done:
				end = true
			case <-time.After(time.Millisecond):
			}
		}
		if asked != 1 || (most == 0) != (c.name == "no room") || r.copies.taken != 0 {
			t.Errorf("%s: room was asked for %d times, %d bytes were taken, and %d are", c.name, asked, most, r.copies.taken)
		}
		g.Do("ping")
		checkHeld(t, r, spec(), dir, held)
	}
}

// TestFault11_DiskFullAfterTheCopy: the guest has gone on already when the disk turns out
// to be too small; nothing is left, in memory neither.
func TestFault11_DiskFullAfterTheCopy(t *testing.T) {
	if !nacretest.InMountNamespace(t) {
		return
	}
	check(t, unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	r := newRuntime(t)
	r.copies.rooms = roomy
	m, spec := large(t, r)
	dir := t.TempDir()
	check(t, unix.Mount("none", dir, "tmpfs", 0, "size=64m"))
	_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
	if !nacre.IsCode(err, nacre.CodeNoSpace) {
		t.Errorf("%v, want no_space", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 || r.copies.taken != 0 {
		t.Errorf("left %v, and %d bytes of memory", left, r.copies.taken)
	}
	check(t, unix.Unmount(dir, unix.MNT_DETACH))
	nacretest.DialGuest(t, m).Do("ping")
	_, err = m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
	check(t, err)
	checkHeld(t, r, spec(), dir, 150)
}

// TestFault03_DaemonKilledDuringCopy: the copy ends with the daemon, and the guest goes
// on and can be kept again.
func TestFault03_DaemonKilledDuringCopy(t *testing.T) {
	for _, after := range []time.Duration{20, 60, 100, 140, 200} {
		spec := newSpec(t)
		spec.Resources.MemoryMiB = 512
		do, kill := newDaemon(t, host.program)
		h, err := do(order{MachineSpec: spec})
		check(t, err)
		r := newRuntime(t)
		m, err := r.Recover(t.Context(), h)
		check(t, err)
		nacretest.DialGuest(t, m).Do("hold", 150)
		check(t, r.Close())
		go func() {
			time.Sleep(after * time.Millisecond)
			kill()
		}()
		do.try(order{SnapshotDir: t.TempDir(), KeepRunning: true})
		kill()

		r = newRuntime(t)
		m, err = r.Recover(t.Context(), h)
		check(t, err)
		stopLater(t, m, spec)
		check(t, m.Resume(t.Context()))
		dir := t.TempDir()
		_, err = m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
		check(t, err)
		fds := filepath.Join("/proc", strconv.Itoa(m.(*machine).st.PID), "fd")
		entries, err := os.ReadDir(fds)
		check(t, err)
		for _, e := range entries { // the sandbox has the descriptors of no copy
			to, _ := os.Readlink(filepath.Join(fds, e.Name()))
			if strings.HasPrefix(to, "/#") {
				t.Errorf("killed after %d ms: the sandbox holds %s", after, to)
			}
		}
		again := newSpec(t)
		again.Resources.MemoryMiB = 512
		checkHeld(t, r, again, dir, 150)
		check(t, m.Stop(t.Context()))
	}
}
