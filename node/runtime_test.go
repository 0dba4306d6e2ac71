package node_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/node"
	"github.com/nacrehq/nacre/runtime/mixed"
)

func driver(name nacre.RuntimeName) nacre.Capabilities {
	return nacre.Capabilities{Runtime: name, Snapshots: true, RestoreKey: string(name) + "/1/test"}
}

// with makes the next node have these drivers, of which those with Kept make no machines.
func (w *world) with(cs ...nacre.Capabilities) {
	w.tweak = func(cfg *node.Config) {
		var made, kept []nacre.Runtime
		for _, c := range cs {
			if c.Kept {
				c.Kept = false
				kept = append(kept, w.fake.Driver(c))
			} else {
				made = append(made, w.fake.Driver(c))
			}
		}
		r, err := mixed.New(made, kept)
		if err != nil {
			w.tb.Fatal(err)
		}
		cfg.Runtime = r
		cfg.Standby = node.Standby{Quiet: time.Millisecond, Check: 10 * time.Millisecond}
	}
}

func (w *world) startOn(rt nacre.RuntimeName, snap nacre.SnapshotID) (nacre.StartSpec, nacre.Started, error) {
	spec := w.spec()
	spec.Runtime, spec.Snapshot = rt, snap
	st, err := w.n.Start(w.tb.Context(), spec)
	return spec, st, err
}

// refused demands an error of that code that names all words.
func refused(t *testing.T, what string, err error, code nacre.Code, words ...string) {
	t.Helper()
	if !nacre.IsCode(err, code) {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
	for _, w := range words {
		if !strings.Contains(nacre.ErrorMessage(err), w) {
			t.Errorf("%s: %q does not name %s", what, nacre.ErrorMessage(err), w)
		}
	}
}

// TestAStartIsMadeOfWhatItAsksFor: of the driver that the start names, of the first
// one when it names none, and of no other one's standby.
func TestAStartIsMadeOfWhatItAsksFor(t *testing.T) {
	w := newWorld(t)
	w.with(driver("one"), driver("two"))
	w.unaccounted = true
	w.start()
	for asked, want := range map[nacre.RuntimeName]nacre.RuntimeName{"": "one", "one": "one", "two": "two"} {
		_, st, err := w.startOn(asked, "")
		if err != nil || st.Runtime != want || w.host.Machine(st.Machine).Runtime != want {
			t.Errorf("asked for %q: %+v, %v", asked, st, err)
		}
	}
	before := len(w.host.Machines())
	_, _, err := w.startOn("three", "")
	refused(t, "a driver that is not here", err, nacre.CodeUnsupported, "three", "one and two")
	if n := len(w.host.Machines()); n != before {
		t.Errorf("%d machines, were %d", n, before)
	}
	two := w.tweak
	w.tweak = func(c *node.Config) { two(c); c.Standby.Count = 1 }
	w.restart().KeepReady(node.Shape{Build: build, Resources: resources}, node.Shape{Build: build, Runtime: "two", Resources: resources})
	w.eventually("a standby of each", func() bool { return w.standbys() == 2 })
	w.n.KeepReady()
	w.eventually("none is kept", func() bool { return w.standbys() == 0 })
	w.n.KeepReady(node.Shape{Build: build, Resources: resources})
	w.eventually("a standby of the default", func() bool { return w.standbys() == 1 })
	if _, st, err := w.startOn("two", ""); err != nil || st.BootPath != nacre.BootCold || st.Runtime != "two" {
		t.Errorf("beside another driver's standby: %+v, %v", st, err)
	}
	if _, st, err := w.startOn("one", ""); err != nil || st.BootPath != nacre.BootStandby || st.Runtime != "one" {
		t.Errorf("with a standby: %+v, %v", st, err)
	}
}

// TestASnapshotGoesOnWhatItWasTakenOnOnly: another driver, and another version or
// processor, are refused, and the error names both.
func TestASnapshotGoesOnWhatItWasTakenOnOnly(t *testing.T) {
	w := newWorld(t)
	w.with(driver("one"), driver("two"))
	w.unaccounted = true
	n := w.start()
	spec, _, err := w.startOn("two", "")
	if err != nil {
		t.Fatal(err)
	}
	snap := nacre.NewSnapshotID()
	m, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: snap, Pause: true})
	if err != nil || nacre.RuntimeOf(m.RestoreKey) != "two" {
		t.Fatalf("%+v, %v", m, err)
	}
	for _, asked := range []nacre.RuntimeName{"", "two"} {
		if _, st, err := w.startOn(asked, snap); err != nil || st.Runtime != "two" {
			t.Errorf("asked for %q: %+v, %v", asked, st, err)
		}
	}
	_, _, err = w.startOn("one", snap)
	refused(t, "on another driver", err, nacre.CodeMismatch, "one", "two")
	newer := driver("two")
	newer.RestoreKey = "two/2/test"
	w.with(newer)
	w.host.Vanish()
	w.eventually("the machines' ends are known", func() bool {
		list, err := n.Machines(t.Context())
		return err == nil && !slices.ContainsFunc(list, func(m nacre.MachineStatus) bool { return m.Exit == nil })
	})
	w.restart()
	_, _, err = w.startOn("", snap)
	refused(t, "on another version", err, nacre.CodeMismatch, "two/1/test", "two/2/test")
	w.with(driver("one"))
	w.restart()
	_, _, err = w.startOn("", snap)
	refused(t, "without its driver", err, nacre.CodeMismatch, "two/1/test", "one")
	w.with(driver("one"), driver("two"))
	w.restart()
	if _, st, err := w.startOn("two", snap); err != nil || st.BootPath != nacre.BootWarm {
		t.Errorf("with its driver again: %+v, %v", st, err)
	}
}

// TestAnotherRuntimesStandbysOfASnapshot: they are not handed over either.
func TestAnotherRuntimesStandbysOfASnapshot(t *testing.T) {
	w := newWorld(t)
	w.with(driver("one"), driver("two"))
	w.unaccounted = true
	two := w.tweak
	w.tweak = func(c *node.Config) { two(c); c.Standby.Count = 1 }
	n := w.start()
	spec, _, err := w.startOn("two", "")
	if err != nil {
		t.Fatal(err)
	}
	snap := nacre.NewSnapshotID()
	if _, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: snap}); err != nil {
		t.Fatal(err)
	}
	n.KeepReady(node.Shape{Build: build, Resources: resources, Snapshot: snap})
	w.eventually("a standby is ready", func() bool { return w.standbys() == 1 })
	_, _, err = w.startOn("one", snap)
	refused(t, "another driver's standby", err, nacre.CodeMismatch, "one", "two")
	if _, st, err := w.startOn("two", snap); err != nil || st.BootPath != nacre.BootStandby || st.Runtime != "two" {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestANodeWithoutTheDriverOfARunningMachineTouchesNothing: it refuses to take stock,
// and the machines run on until a node with the driver comes.
func TestANodeWithoutTheDriverOfARunningMachineTouchesNothing(t *testing.T) {
	w := newWorld(t)
	w.with(driver("one"), driver("two"))
	w.start()
	spec, st, err := w.startOn("two", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.startOn("one", ""); err != nil {
		t.Fatal(err)
	}
	handles := filepath.Join(w.dir, "node", "handles")
	got, err := node.RunningOn(handles)
	if err != nil || len(got) != 2 || got["one"].Sandboxes != 1 || got["two"].Sandboxes != 1 {
		t.Errorf("RunningOn: %+v, %v", got, err)
	}
	w.fake.Kill()
	w.stop()
	both := w.tweak
	w.with(driver("one"))
	_, err = w.tryStart()
	refused(t, "a node without it", err, nacre.CodeConflict, "two", "1 sandbox")
	if m := w.host.Machine(st.Machine); m == nil || len(w.host.Machines()) != 2 {
		t.Fatal("a machine was ended")
	}
	w.tweak = both
	w.start()
	r, ok := w.n.Route(spec.Sandbox)
	if !ok || r.Machine != st.Machine {
		t.Errorf("%+v, %v", r, ok)
	}
	// One that ended, and one from before the host's restart, are nobody's any more.
	w.host.Machine(st.Machine).Crash(nacre.EndOOM, "x")
	w.eventually("the end is on disk", func() bool { got, _ := node.RunningOn(handles); return got["two"] == node.Running{} })
	w.fake.Kill()
	w.stop()
	w.with(driver("one"))
	if _, err := w.tryStart(); err != nil {
		t.Errorf("with none of it running: %v", err)
	}
	if got, err := node.RunningOn(filepath.Join(w.dir, "none")); err != nil || len(got) != 0 {
		t.Errorf("RunningOn nothing: %+v, %v", got, err)
	}
}

// TestAKeptDriverRunsWhatThereIs: its machines are taken back and serve on, and no new
// one is made on it.
func TestAKeptDriverRunsWhatThereIs(t *testing.T) {
	w := newWorld(t)
	w.with(driver("one"))
	w.unaccounted = true
	w.start()
	spec, st := w.begin()
	w.write(spec.Sandbox, "here")
	old := driver("one")
	old.Kept = true
	w.with(driver("two"), old)
	n := w.restart()
	if r, ok := n.Route(spec.Sandbox); !ok || r.Machine != st.Machine || w.read(spec.Sandbox) != "here" {
		t.Errorf("%+v, %v", r, ok)
	}
	if _, now := w.begin(); now.Runtime != "two" {
		t.Errorf("a new one: %+v", now)
	}
	_, _, err := w.startOn("one", "")
	refused(t, "a new one of the kept", err, nacre.CodeUnsupported, "one", "two")
	snap := nacre.NewSnapshotID()
	if _, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: snap}); err != nil {
		t.Errorf("a snapshot: %v", err)
	}
	_, _, err = w.startOn("", snap)
	refused(t, "a restore on the kept", err, nacre.CodeMismatch, "one", "two")
	if err := n.Stop(t.Context(), spec.Sandbox); err != nil || w.host.Machine(st.Machine) != nil {
		t.Errorf("Stop: %v", err)
	}
}

// TestARuntimeWithoutSnapshots: what it cannot do is refused by its name, and the
// sandbox runs on.
func TestARuntimeWithoutSnapshots(t *testing.T) {
	w := newWorld(t)
	w.with(driver("one"), nacre.Capabilities{Runtime: "plain"})
	n := w.start()
	spec, _, err := w.startOn("plain", "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true})
	refused(t, "a pause", err, nacre.CodeConflict, "plain")
	if _, ok := n.Route(spec.Sandbox); !ok {
		t.Error("it cannot be reached")
	}
	if left, _ := n.Snapshots(t.Context()); len(left) > 0 {
		t.Errorf("left %+v", left)
	}
	w.restart()
	if _, ok := w.n.Route(spec.Sandbox); !ok {
		t.Error("it was not taken back")
	}
}

// TestNodeContractOnTwoRuntimes: the second driver's machines are as good.
func TestNodeContractOnTwoRuntimes(t *testing.T) {
	nacretest.TestNode(t, func(t *testing.T) nacretest.NodeUnderTest {
		w := newWorld(t)
		w.with(driver("one"), driver("two"))
		w.start()
		u := w.underTest()
		return onSecond(u)
	})
}

func onSecond(u nacretest.NodeUnderTest) nacretest.NodeUnderTest {
	spec, again := u.Spec, u.Restart
	u.Spec = func() nacre.StartSpec { s := spec(); s.Runtime = "two"; return s }
	u.Restart = func(t *testing.T) nacretest.NodeUnderTest { return onSecond(again(t)) }
	return u
}
