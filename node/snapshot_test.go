package node_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

func (w *world) snapshots() []nacre.SnapshotManifest {
	w.tb.Helper()
	list, err := w.n.Snapshots(w.tb.Context())
	if err != nil {
		w.tb.Fatal(err)
	}
	return list
}

// machine returns the sandbox's machine here, "" for none.
func (w *world) machine(id nacre.SandboxID) nacre.MachineID {
	w.tb.Helper()
	list, err := w.n.Machines(w.tb.Context())
	if err != nil {
		w.tb.Fatal(err)
	}
	for _, m := range list {
		if m.Sandbox == id && m.Exit == nil {
			return m.Machine
		}
	}
	return ""
}

// write and read use a file of the sandbox.
func (w *world) write(id nacre.SandboxID, text string) {
	w.tb.Helper()
	a, err := w.n.Agent(w.tb.Context(), id)
	if err == nil {
		_, err = a.Files().Write(w.tb.Context(), "", "/tmp/state", strings.NewReader(text))
	}
	if err != nil {
		w.tb.Fatal(err)
	}
}

func (w *world) read(id nacre.SandboxID) string {
	w.tb.Helper()
	a, err := w.n.Agent(w.tb.Context(), id)
	if err != nil {
		w.tb.Fatal(err)
	}
	r, _, err := a.Files().Read(w.tb.Context(), "", "/tmp/state")
	if err != nil {
		w.tb.Fatal(err)
	}
	defer r.Close()
	var b strings.Builder
	buf := make([]byte, 100)
	for {
		n, err := r.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			return b.String()
		}
	}
}

// whole fails unless the sandbox has either a machine or the snapshot, with the
// text in it, and nothing else is left; it returns which.
func (w *world) whole(spec nacre.StartSpec, snap nacre.SnapshotID, text string) (paused bool) {
	w.tb.Helper()
	kept := false
	for _, m := range w.snapshots() {
		kept = kept || m.ID == snap
	}
	running := w.machine(spec.Sandbox) != ""
	if kept == running {
		w.tb.Fatalf("kept %v, running %v; log:\n%s", kept, running, w.logged())
	}
	w.eventually("nothing else is left", func() bool { return len(w.leaks()) == 0 })
	files, err := os.ReadDir(filepath.Join(w.dir, "snapshots", "plain"))
	if err != nil || len(files) != len(w.snapshots()) {
		w.tb.Fatalf("%d snapshots, and on disk %v, %v", len(w.snapshots()), files, err)
	}
	if kept {
		spec.Snapshot = snap
		if _, err := w.n.Start(w.tb.Context(), spec); err != nil {
			w.tb.Fatalf("it cannot go on: %v", err)
		}
	}
	if got := w.read(spec.Sandbox); got != text {
		w.tb.Fatalf("it has %q, want %q", got, text)
	}
	return kept
}

// steps calls fn with 1, 2, ... until it tells that the fuse was longer than all
// that there was to do.
func steps(t *testing.T, fn func(w *world, at int) (burnt bool)) {
	for at := 1; ; at++ {
		w := newWorld(t)
		w.start()
		burnt := fn(w, at)
		w.stop()
		if !burnt {
			t.Logf("%d steps", at-1)
			return
		}
		if at > 200 {
			t.Fatal("it never ends")
		}
	}
}

// TestFault03_KilledInAPause: killed at each step of a pause, the sandbox runs, or
// it is kept and has no machine; what it held is there, and nothing else.
func TestFault03_KilledInAPause(t *testing.T) {
	for _, files := range []bool{false, true} {
		t.Run(fmt.Sprint("files only ", files), func(t *testing.T) {
			ran, kept := 0, 0
			steps(t, func(w *world, at int) bool {
				spec, _ := w.begin()
				w.write(spec.Sandbox, "held")
				snap := nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true, FilesOnly: files}
				w.fake.KillAt(at, nil)
				_, err := w.n.Snapshot(t.Context(), spec.Sandbox, snap)
				if err == nil { // the machine is cleared away behind it
					w.eventually("the machine is gone, or the daemon", func() bool { return w.fake.Killed() || w.promised() == 0 })
				}
				burnt := w.fake.Killed()
				if err != nil && !burnt {
					t.Fatalf("step %d: %v", at, err)
				}
				w.restart()
				if w.whole(spec, snap.ID, "held") {
					kept++
				} else {
					ran++
				}
				if err == nil && len(w.snapshots()) != 1 {
					t.Fatalf("step %d: the pause was said to have worked", at)
				}
				return burnt
			})
			if ran < 3 || kept < 3 {
				t.Errorf("it ran on %d times and was kept %d times: some step is not tried", ran, kept)
			}
		})
	}
}

// TestFault03_KilledInASnapshot: the sandbox runs on whatever happens, and the
// snapshot is whole or not there. An earlier one is never touched.
func TestFault03_KilledInASnapshot(t *testing.T) {
	steps(t, func(w *world, at int) bool {
		spec, _ := w.begin()
		w.write(spec.Sandbox, "first")
		first := nacre.SnapshotSpec{ID: nacre.NewSnapshotID()}
		if _, err := w.n.Snapshot(t.Context(), spec.Sandbox, first); err != nil {
			t.Fatal(err)
		}
		w.write(spec.Sandbox, "second")
		second := nacre.SnapshotSpec{ID: nacre.NewSnapshotID()}
		w.fake.KillAt(at, nil)
		_, err := w.n.Snapshot(t.Context(), spec.Sandbox, second)
		burnt := w.fake.Killed()
		w.restart()
		if got := w.read(spec.Sandbox); got != "second" {
			t.Fatalf("step %d: the sandbox has %q", at, got)
		}
		want := map[nacre.SnapshotID]string{first.ID: "first", second.ID: "second"}
		list := w.snapshots()
		if len(list) == 0 || err == nil && len(list) != 2 {
			t.Fatalf("step %d: %d snapshots, %v", at, len(list), err)
		}
		for _, m := range list {
			fork := w.spec()
			fork.Snapshot = m.ID
			if _, err := w.n.Start(t.Context(), fork); err != nil {
				t.Fatalf("step %d: %v", at, err)
			}
			if got := w.read(fork.Sandbox); got != want[m.ID] {
				t.Fatalf("step %d: a fork has %q, want %q", at, got, want[m.ID])
			}
		}
		return burnt
	})
}

// TestFault03_KilledInAResume: killed at each step of a resume, the sandbox is kept
// still, and no half-restored machine is handed to anybody.
func TestFault03_KilledInAResume(t *testing.T) {
	steps(t, func(w *world, at int) bool {
		spec, _ := w.begin()
		w.write(spec.Sandbox, "held")
		snap := nacre.NewSnapshotID()
		if _, err := w.n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: snap, Pause: true}); err != nil {
			t.Fatal(err)
		}
		resumed := spec
		resumed.Snapshot = snap
		w.fake.KillAt(at, nil)
		_, err := w.n.Start(t.Context(), resumed)
		burnt := w.fake.Killed()
		w.restart()
		id := w.machine(spec.Sandbox)
		if err == nil && id == "" {
			t.Fatalf("step %d: it was started and has no machine", at)
		}
		if id != "" {
			// Its guest was introduced as this machine's, or it would not be here.
			if in, _ := w.host.Machine(id).Guest.Init(); in.HostToken != (nacre.TokenKey{}).HostToken(id) {
				t.Fatalf("step %d: a guest that was never introduced was handed out", at)
			}
			if err := w.n.Stop(t.Context(), spec.Sandbox); err != nil {
				t.Fatal(err)
			}
		}
		w.whole(spec, snap, "held")
		return burnt
	})
}

// TestFault03_KilledInADelete: a snapshot is there, or it is gone with all its files.
func TestFault03_KilledInADelete(t *testing.T) {
	steps(t, func(w *world, at int) bool {
		spec, _ := w.begin()
		w.write(spec.Sandbox, "held")
		snap := nacre.NewSnapshotID()
		if _, err := w.n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: snap}); err != nil {
			t.Fatal(err)
		}
		w.fake.KillAt(at, nil)
		err := w.n.DeleteSnapshot(t.Context(), snap)
		_ = w.arts.Close() // its files go in the background
		burnt := w.fake.Killed()
		w.restart()
		list := w.snapshots()
		if err == nil && len(list) != 0 {
			t.Fatalf("step %d: it was deleted and is there", at)
		}
		files, _ := os.ReadDir(filepath.Join(w.dir, "snapshots", "plain"))
		if len(files) != len(list) {
			t.Fatalf("step %d: %d snapshots and %v", at, len(list), files)
		}
		return burnt
	})
}

// TestFault11_FullDiskInAPause: it is said, and the sandbox runs on, reachable as
// before; nothing is left of the attempt, and the next one works.
func TestFault11_FullDiskInAPause(t *testing.T) {
	full := nacre.Errorf(nacre.CodeNoSpace, "the disk is full")
	for _, op := range []string{"machine.snapshot", "reserve"} {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t)
			w.start()
			spec, _ := w.begin()
			w.write(spec.Sandbox, "held")
			snap := nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true}
			stats := *w.stats.Load()
			short := stats
			short.DiskFree = 2 << 30 // just the reserve
			if op == "reserve" {
				w.stats.Store(&short)
				time.Sleep(120 * time.Millisecond) // the figures are read at most every 100 ms
			}
			w.host.SetHook(func(at string, _ nacre.MachineID) error {
				if at == op {
					return full
				}
				return nil
			})
			_, err := w.n.Snapshot(t.Context(), spec.Sandbox, snap)
			wantCode(t, err, nacre.CodeNoSpace)
			w.host.SetHook(nil)
			w.stats.Store(&stats)
			time.Sleep(120 * time.Millisecond)
			if w.whole(spec, snap.ID, "held") {
				t.Fatal("it is kept")
			}
			if _, err := w.n.Snapshot(t.Context(), spec.Sandbox, snap); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestFault11_FullDiskAtTheManifest: also when the last step fails the guest goes on.
func TestFault11_FullDiskAtTheManifest(t *testing.T) {
	for _, step := range []string{"sync files", "commit: write", "commit: rename", "commit: sync"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			w.failAt = step
			w.start()
			spec, _ := w.begin()
			w.write(spec.Sandbox, "held")
			snap := nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true}
			if _, err := w.n.Snapshot(t.Context(), spec.Sandbox, snap); err == nil {
				t.Fatal("it worked")
			}
			if w.whole(spec, snap.ID, "held") {
				t.Fatal("it is kept")
			}
			w.failAt = ""
			w.restart()
			if w.whole(spec, snap.ID, "held") {
				t.Fatal("after a restart it is kept")
			}
		})
	}
}
