package node_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
	"pgregory.net/rapid"
)

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
		case "machine.kill":
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

// TestPausedWhileItsMachineStays: when the machine cannot be killed after a pause, the pause has worked all the same: nobody reaches the machine any more, and
// the resume, a stop or the next daemon takes it away.
func TestPausedWhileItsMachineStays(t *testing.T) {
	for _, how := range []string{"resume", "stop", "restart"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t)
			n := w.start()
			spec, st := w.begin()
			w.write(spec.Sandbox, "held")
			w.host.SetHook(func(op string, _ nacre.MachineID) error {
				if op == "machine.kill" || op == "machine.stop" {
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
			// Of a daemon before, it is swept in the background.
			w.eventually("the old machine is gone", func() bool { return w.host.Machine(st.Machine) == nil })
			if l := w.leaks(); len(l) > 0 {
				t.Errorf("left behind: %v", l)
			}
		})
	}
}

// TestALineAtTheMomentOfASnapshot: what the guest logs between the host's last look
// and the moment at which it stands still is in the sandbox's log once, when it goes
// back to the snapshot and when it goes on after a pause.
func TestALineAtTheMomentOfASnapshot(t *testing.T) {
	for _, pause := range []bool{false, true} {
		t.Run(fmt.Sprint("pause ", pause), func(t *testing.T) {
			w := newWorld(t)
			n := w.start()
			spec, st := w.begin()
			lines := func() (out []string) {
				l, err := n.Logs(t.Context(), spec.Sandbox, nacre.LogQuery{})
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range l {
					out = append(out, e.Message)
				}
				return out
			}
			guest := w.host.Machine(st.Machine).Guest
			guest.Log(nacre.LogStdout, "early", nil)
			w.eventually("the first line is kept", func() bool { return len(lines()) == 1 })
			w.host.SetHook(func(op string, _ nacre.MachineID) error {
				if op == "machine.snapshot" {
					guest.Log(nacre.LogStdout, "late", nil)
				}
				return nil
			})
			snap := nacre.NewSnapshotID()
			if _, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: snap, Pause: pause}); err != nil {
				t.Fatal(err)
			}
			w.host.SetHook(nil)
			want := []string{"early", "late", "again"}
			if !pause {
				guest.Log(nacre.LogStdout, "undone", nil)
				w.eventually("the last line is kept", func() bool { return len(lines()) == 3 })
				if err := n.Stop(t.Context(), spec.Sandbox); err != nil {
					t.Fatal(err)
				}
				want = []string{"early", "late", "undone", "again"}
			}
			spec.Snapshot = snap
			st, err := n.Start(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			n = w.restart() // before anything of the new machine is written
			w.host.Machine(st.Machine).Guest.Log(nacre.LogStdout, "again", nil)
			w.eventually("the new line is kept", func() bool { l := lines(); return len(l) > 0 && l[len(l)-1] == "again" })
			if got := lines(); !slices.Equal(got, want) {
				t.Errorf("the log is %q, want %q", got, want)
			}
		})
	}
}

// TestPauseOfAGuestThatDoesNotAnswer: it is kept as it is, unless a healthy one is
// asked for; and it comes back with its files although its agent never answers.
func TestPauseOfAGuestThatDoesNotAnswer(t *testing.T) {
	w := newWorld(t)
	n := w.start()
	spec, st := w.begin()
	w.write(spec.Sandbox, "kept")
	var mu sync.Mutex
	deaf := map[nacre.MachineID]bool{st.Machine: true}
	known := map[nacre.MachineID]bool{st.Machine: true} // restored from it: deaf as well
	w.host.SetHook(func(at string, id nacre.MachineID) error {
		mu.Lock()
		defer mu.Unlock()
		if at == "runtime.restore" && len(known) == 1 {
			known[id], deaf[id] = true, true
		}
		if strings.HasPrefix(at, "agent.") && deaf[id] {
			return nacre.Errorf(nacre.CodeUnavailable, "no answer")
		}
		return nil
	})
	keep := nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true, Healthy: true}
	_, err := n.Snapshot(t.Context(), spec.Sandbox, keep)
	wantCode(t, err, nacre.CodeUnavailable)
	if _, ok := n.Route(spec.Sandbox); !ok || len(w.snapshots()) > 0 {
		t.Fatal("the refused pause left something behind, or took the sandbox down")
	}
	keep.Healthy = false
	if _, err := n.Snapshot(t.Context(), spec.Sandbox, keep); err != nil {
		t.Fatal(err)
	}
	spec.Snapshot = keep.ID
	w.tweak = func(c *node.Config) { c.BootTimeout = 300 * time.Millisecond } // for what never answers
	n = w.restart()
	_, err = n.Start(t.Context(), spec)
	wantCode(t, err, nacre.CodeDeadline)
	w.tweak = nil
	n = w.restart()
	mu.Lock()
	clear(known)
	known[st.Machine] = true
	mu.Unlock()
	spec.Boot = true
	got, err := n.Start(t.Context(), spec)
	if err != nil || got.BootPath != nacre.BootCold {
		t.Fatalf("%+v, %v", got, err)
	}
	if text := w.read(spec.Sandbox); text != "kept" {
		t.Fatalf("the file has %q", text)
	}
	if err := n.Stop(t.Context(), spec.Sandbox); err != nil {
		t.Fatal(err)
	}
	if l := w.leaks(); len(l) > 0 {
		t.Fatalf("left behind: %v", l)
	}
}
