package node_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
	"pgregory.net/rapid"
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

// TestAPauseClosesTheRouteFirst: traffic ends before the guest stands still, and is
// back when the pause fails.
func TestAPauseClosesTheRouteFirst(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	spec, _ := w.begin()
	routed := false
	w.host.SetHook(func(op string, _ nacre.MachineID) error {
		if op == "machine.snapshot" {
			_, routed = n.Route(spec.Sandbox)
			return nacre.Errorf(nacre.CodeInternal, "no")
		}
		return nil
	})
	if _, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true}); err == nil {
		t.Fatal("it worked")
	}
	if routed {
		t.Error("there was a route while the guest was about to stand still")
	}
	if _, ok := n.Route(spec.Sandbox); !ok {
		t.Error("there is no route after the pause failed")
	}
	if w.host.Machine(w.machine(spec.Sandbox)).Held() {
		t.Error("the guest stands still")
	}
}

// TestFault43_PolicyAfterAResume: a machine never has another policy than its
// sandbox's, from the first moment on.
func TestFault43_PolicyAfterAResume(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	spec := w.spec()
	spec.Network.AllowOut, spec.Network.DenyInternet = []string{"192.0.2.1"}, true
	if _, err := n.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	snap := nacre.NewSnapshotID()
	if _, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: snap, Pause: true}); err != nil {
		t.Fatal(err)
	}
	w.host.SetHook(func(op string, id nacre.MachineID) error {
		if p, ok := w.host.Policy(id); op == "runtime.restore" && (!ok || !p.DenyAll || len(p.Allow) != 1) {
			t.Errorf("it is restored with the policy %+v", p)
		}
		return nil
	})
	spec.Snapshot = snap
	if _, err := n.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
}

// TestRestoredStandbys: what is restored ahead is handed over like any standby, and
// has met nobody before.
func TestRestoredStandbys(t *testing.T) {
	w := newWorld(t)
	w.tweak = func(c *node.Config) {
		c.Standby = node.Standby{Count: 2, Quiet: time.Millisecond, Check: 10 * time.Millisecond}
	}
	w.unaccounted = true
	n := w.start()
	parent, _ := w.begin()
	w.write(parent.Sandbox, "warm")
	snap := nacre.NewSnapshotID()
	if _, err := n.Snapshot(t.Context(), parent.Sandbox, nacre.SnapshotSpec{ID: snap}); err != nil {
		t.Fatal(err)
	}
	n.KeepReady(node.Shape{Build: build, Resources: resources, Snapshot: snap})
	w.eventually("two standbys are ready", func() bool { return w.standbys() == 2 })
	for _, restart := range []bool{false, true} {
		if restart {
			n = w.restart()
			n.KeepReady(node.Shape{Build: build, Resources: resources, Snapshot: snap})
		}
		spec := w.spec()
		spec.Snapshot, spec.Secure, spec.Env = snap, true, map[string]string{"WHO": "me"}
		st, err := n.Start(t.Context(), spec)
		if err != nil || st.BootPath != nacre.BootStandby {
			t.Fatalf("%+v, %v", st, err)
		}
		if got := w.read(spec.Sandbox); got != "warm" {
			t.Errorf("it has %q", got)
		}
		in, _ := w.host.Machine(st.Machine).Guest.Init()
		if in.HostToken != (nacre.TokenKey{}).HostToken(st.Machine) || in.Env["WHO"] != "me" || in.Hostname != string(st.Machine) || in.NewIdentity {
			t.Errorf("it was told %+v", in)
		}
	}
	cold := w.spec()
	if st, err := n.Start(t.Context(), cold); err != nil || st.BootPath != nacre.BootCold {
		t.Fatalf("one that boots: %+v, %v", st, err)
	}
}

// TestPausesAtRandom: whatever is done to a sandbox, and whenever the daemon is
// killed, it is in one place and holds what it should.
func TestPausesAtRandom(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		spec, _ := w.begin()
		w.write(spec.Sandbox, "0")
		var (
			text   = "0"                           // what it holds
			paused nacre.SnapshotID                // where it is kept, "" while it runs
			kept   = map[nacre.SnapshotID]string{} // snapshots that must exist
		)
		for i := range rapid.IntRange(1, 8).Draw(rt, "steps") {
			id := nacre.NewSnapshotID()
			var err error
			what := rapid.SampledFrom([]string{"write", "pause", "snapshot", "resume", "delete"}).Draw(rt, "what")
			if fuse := rapid.IntRange(0, 60).Draw(rt, "fuse"); fuse > 0 && what != "write" {
				w.fake.KillAt(fuse, nil)
			}
			switch {
			case what == "write" && paused == "":
				w.write(spec.Sandbox, fmt.Sprint(i))
				text = fmt.Sprint(i)
			case what == "pause" && paused == "":
				if _, err = w.n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: id, Pause: true}); err == nil {
					paused, kept[id] = id, text
				}
			case what == "snapshot" && paused == "":
				if _, err = w.n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: id}); err == nil {
					kept[id] = text
				}
			case what == "resume" && paused != "":
				s := spec
				s.Snapshot = paused
				if _, err = w.n.Start(t.Context(), s); err == nil {
					paused = ""
				}
			case what == "delete":
				for old := range kept {
					if old != paused && w.n.DeleteSnapshot(t.Context(), old) == nil {
						delete(kept, old)
					}
				}
			}
			if err != nil && !w.fake.Killed() {
				rt.Fatalf("%s: %v", what, err)
			}
			w.restart()
			running := w.machine(spec.Sandbox) != ""
			there := map[nacre.SnapshotID]bool{}
			for _, m := range w.snapshots() {
				there[m.ID] = true
			}
			if what == "pause" && err != nil && there[id] && !running { // it was further than it could say
				paused, kept[id] = id, text
			}
			if running && paused != "" { // so was the resume
				paused = ""
			}
			for old := range kept {
				if !there[old] {
					rt.Fatalf("after %s: snapshot %s is lost", what, old)
				}
			}
			if running != (paused == "") {
				rt.Fatalf("after %s: it runs: %v, it is kept as %q", what, running, paused)
			}
			if running && w.read(spec.Sandbox) != text {
				rt.Fatalf("after %s: it has %q, want %q", what, w.read(spec.Sandbox), text)
			}
		}
		if paused != "" {
			s := spec
			s.Snapshot = paused
			if _, err := w.n.Start(t.Context(), s); err != nil {
				rt.Fatal(err)
			}
			if got := w.read(spec.Sandbox); got != text {
				rt.Fatalf("at last it has %q, want %q", got, text)
			}
		}
	})
}

// TestFault27_ResumeAgainstKill: of a resume and a stop at once either wins, and
// nothing is left of the loser.
func TestFault27_ResumeAgainstKill(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	w.host.BootTime = 2 * time.Millisecond
	spec, _ := w.begin()
	w.write(spec.Sandbox, "held")
	snap := nacre.NewSnapshotID()
	if _, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: snap, Pause: true}); err != nil {
		t.Fatal(err)
	}
	resumed := spec
	resumed.Snapshot = snap
	for i := range 10 {
		done := make(chan error, 1)
		go func() { _, err := n.Start(t.Context(), resumed); done <- err }()
		time.Sleep(time.Duration(i) * time.Millisecond / 2) // any moment will do
		if err := n.Stop(t.Context(), spec.Sandbox); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err == nil {
			if err := n.Stop(t.Context(), spec.Sandbox); err != nil {
				t.Fatal(err)
			}
		} else if !nacre.IsCode(err, nacre.CodeConflict) {
			t.Fatalf("the resume ended with %v", err)
		}
		if l := w.leaks(); len(l) > 0 || w.machine(spec.Sandbox) != "" {
			t.Fatalf("left behind: %v", l)
		}
	}
	w.whole(spec, snap, "held")
}

// TestPausesWaitForTheirTurn: many at once stand still one after the other, each for
// a short time.
func TestPausesWaitForTheirTurn(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	var specs []nacre.StartSpec
	for range 40 {
		spec, _ := w.begin()
		specs = append(specs, spec)
	}
	var mu sync.Mutex
	most, now := 0, 0
	w.host.SetHook(func(op string, _ nacre.MachineID) error {
		mu.Lock()
		defer mu.Unlock()
		switch op {
		case "machine.snapshot":
			now++
			most = max(most, now)
		case "machine.stop":
			now--
		}
		return nil
	})
	var wg sync.WaitGroup
	for _, s := range specs {
		wg.Go(func() {
			if _, err := n.Snapshot(t.Context(), s.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if limit := 2 * runtime.NumCPU(); most > limit {
		t.Errorf("%d stood still at once, want at most %d", most, limit)
	}
	if got := len(w.snapshots()); got != len(specs) {
		t.Errorf("%d of %d are kept", got, len(specs))
	}
}

// TestLogsOfPausedSandboxesStay: however long it is paused.
func TestLogsOfPausedSandboxesStay(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	w.tweak = func(c *node.Config) { c.Clock = func() time.Time { return now } }
	n := w.start()
	spec, st := w.begin()
	w.host.Machine(st.Machine).Guest.Log(nacre.LogStdout, "long ago", nil)
	gone, st := w.begin()
	w.host.Machine(st.Machine).Guest.Log(nacre.LogStdout, "over", nil)
	if _, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true}); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(t.Context(), gone.Sandbox); err != nil {
		t.Fatal(err)
	}
	now = now.Add(30 * 24 * time.Hour)
	n = w.restart() // which deletes what is old
	lines := func(id nacre.SandboxID) int {
		l, err := n.Logs(t.Context(), id, nacre.LogQuery{})
		if err != nil {
			t.Fatal(err)
		}
		return len(l)
	}
	w.eventually("the ended sandbox's log is deleted", func() bool { return lines(gone.Sandbox) == 0 })
	if lines(spec.Sandbox) != 1 {
		t.Error("the paused sandbox's log is deleted")
	}
}

// TestPausedWhileItsMachineStays: when the machine cannot be taken down after a
// pause, the pause has worked all the same: nobody reaches the machine any more, and
// the resume, a stop or the next daemon takes it away.
func TestPausedWhileItsMachineStays(t *testing.T) {
	for _, how := range []string{"resume", "stop", "restart"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t)
			n := w.start()
			spec, st := w.begin()
			w.write(spec.Sandbox, "held")
			w.host.SetHook(func(op string, _ nacre.MachineID) error {
				if op == "machine.stop" {
					return nacre.Errorf(nacre.CodeInternal, "it does not die")
				}
				return nil
			})
			snap := nacre.NewSnapshotID()
			if _, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: snap, Pause: true}); err != nil {
				t.Fatal(err)
			}
			if _, ok := n.Route(spec.Sandbox); ok {
				t.Error("there is a route")
			}
			if w.machine(spec.Sandbox) != st.Machine {
				t.Error("the machine that stays is not told of")
			}
			w.host.SetHook(nil)
			switch how {
			case "stop":
				if err := n.Stop(t.Context(), spec.Sandbox); err != nil {
					t.Fatal(err)
				}
			case "restart":
				n = w.restart()
			}
			spec.Snapshot = snap
			if _, err := n.Start(t.Context(), spec); err != nil {
				t.Fatal(err)
			}
			if got := w.read(spec.Sandbox); got != "held" {
				t.Errorf("it has %q", got)
			}
			if w.host.Machine(st.Machine) != nil {
				t.Error("the old machine is there")
			}
			if l := w.leaks(); len(l) > 0 {
				t.Errorf("left behind: %v", l)
			}
		})
	}
}
