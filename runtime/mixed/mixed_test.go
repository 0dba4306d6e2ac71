package mixed_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/runtime/mixed"
)

// drivers are of one host, as they are in a server.
func drivers(host *nacretest.FakeHost, names ...nacre.RuntimeName) (out []nacre.Runtime) {
	for _, n := range names {
		out = append(out, host.Daemon().Driver(nacre.Capabilities{Runtime: n, Snapshots: n != "plain", RestoreKey: string(n) + "/1"}))
	}
	return out
}

func spec(on nacre.RuntimeName) nacre.MachineSpec {
	return nacre.MachineSpec{ID: nacre.NewMachineID(), Runtime: on, Root: nacre.RootFS{Image: "/image"}}
}

func wantCode(t *testing.T, what string, err error, code nacre.Code) {
	t.Helper()
	if !nacre.IsCode(err, code) {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
}

// TestAMachineIsItsDrivers: it is made by the one that its spec names, taken back by
// the one that its handle does, and swept by its own.
func TestAMachineIsItsDrivers(t *testing.T) {
	host := nacretest.NewFakeHost()
	r, err := mixed.New(drivers(host, "one", "two"), drivers(host, "old"))
	if err != nil {
		t.Fatal(err)
	}
	if r.Name() != "one" {
		t.Errorf("it is called %s", r.Name())
	}
	kept := map[nacre.MachineID]bool{}
	var handles []nacre.Handle
	for asked, want := range map[nacre.RuntimeName]nacre.RuntimeName{"": "one", "one": "one", "two": "two"} {
		m, err := r.Start(t.Context(), spec(asked))
		if err != nil || m.Handle().Runtime != want || host.Machine(m.ID()).Runtime != want {
			t.Fatalf("asked for %q: %+v, %v", asked, m, err)
		}
		handles = append(handles, m.Handle())
		kept[m.ID()] = asked != ""
	}
	old, err := drivers(host, "old")[0].Start(t.Context(), spec(""))
	if err != nil {
		t.Fatal(err)
	}
	kept[old.ID()] = true
	again, err := mixed.New(drivers(host, "two", "one"), drivers(host, "old"))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range append(handles, old.Handle()) {
		if m, err := again.Recover(t.Context(), h); err != nil || m.Handle().Runtime != h.Runtime {
			t.Errorf("%+v: %v", h, err)
		}
	}
	stranger := handles[0]
	stranger.Runtime = "three"
	_, err = again.Recover(t.Context(), stranger)
	wantCode(t, "Recover of a driver's that is not here", err, nacre.CodeUnsupported)
	if host.Machine(stranger.Machine) == nil {
		t.Error("its machine was ended")
	}
	if err := again.Sweep(t.Context(), func(id nacre.MachineID) bool { return kept[id] }); err != nil {
		t.Error(err)
	}
	for id, want := range kept {
		if got := host.Machine(id) != nil; got != want {
			t.Errorf("after Sweep %s is there: %v", id, got)
		}
	}
}

// TestWhatIsNotMade: a driver that is not here, and one that is kept, are refused by
// their names; a kept one's machines run.
func TestWhatIsNotMade(t *testing.T) {
	host := nacretest.NewFakeHost()
	r, err := mixed.New(drivers(host, "one", "two"), drivers(host, "old"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []nacre.RuntimeName{"old", "three"} {
		_, err := r.Start(t.Context(), spec(name))
		wantCode(t, "Start", err, nacre.CodeUnsupported)
		_, rerr := r.Restore(t.Context(), spec(name), t.TempDir())
		wantCode(t, "Restore", rerr, nacre.CodeUnsupported)
		for _, err := range []error{err, rerr} {
			if m := nacre.ErrorMessage(err); !strings.Contains(m, string(name)) || !strings.Contains(m, "one and two") {
				t.Errorf("%s: %q", name, m)
			}
		}
	}
	can := r.Capabilities()
	for name, want := range map[nacre.RuntimeName]bool{"": true, "one": true, "two": true, "old": true, "three": false} {
		if _, ok := can.Of(name); ok != want {
			t.Errorf("of %q: %v", name, ok)
		}
	}
	if d, _ := can.Of("old"); !d.Kept {
		t.Errorf("%+v", d)
	}
	for _, c := range []struct {
		key  string
		want string // in the refusal; "" restores
	}{
		{"one/1", ""}, {"two/1", ""}, {"one/2", "one/1"}, {"two/", "two/1"}, {"old/1", "one and two"}, {"three/1", "one and two"}, {"", "one/1"},
	} {
		err := can.CanRestore("s", c.key)
		if (err == nil) != (c.want == "") || err != nil && (!nacre.IsCode(err, nacre.CodeMismatch) ||
			!strings.Contains(nacre.ErrorMessage(err), c.key) || !strings.Contains(nacre.ErrorMessage(err), c.want)) {
			t.Errorf("a snapshot of %q: %v", c.key, err)
		}
	}
}

func TestNew(t *testing.T) {
	host := nacretest.NewFakeHost()
	if _, err := mixed.New(nil, drivers(host, "one")); err == nil {
		t.Error("of none")
	}
	if _, err := mixed.New(drivers(host, "one"), drivers(host, "one")); err == nil {
		t.Error("of two that are called the same")
	}
}

type closer struct {
	nacre.Runtime
	name string
	did  *[]string
	err  error
}

func (c closer) Close() error { *c.did = append(*c.did, c.name); return c.err }

func (c closer) Sweep(context.Context, func(nacre.MachineID) bool) error { return c.err }

// TestOneThatFailsKeepsNoOtherFromItsPart: each is closed, the last first, and swept.
func TestOneThatFailsKeepsNoOtherFromItsPart(t *testing.T) {
	host := nacretest.NewFakeHost()
	var did []string
	ds := drivers(host, "one", "two", "three")
	failed := errors.New("it is broken")
	ds[0] = closer{ds[0], "one", &did, nil}
	ds[2] = closer{ds[2], "three", &did, failed}
	r, err := mixed.New(ds, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Start(t.Context(), spec("two"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Sweep(t.Context(), func(nacre.MachineID) bool { return false }); !errors.Is(err, failed) || host.Machine(m.ID()) != nil {
		t.Errorf("Sweep: %v", err)
	}
	if err := r.Close(); !errors.Is(err, failed) || !slices.Equal(did, []string{"three", "one"}) {
		t.Errorf("closed %v: %v", did, err)
	}
}
