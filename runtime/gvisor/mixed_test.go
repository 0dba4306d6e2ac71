package gvisor

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/runtime/mixed"
)

// beside returns the driver and, with it, one that makes no real machines.
func beside(t testing.TB, r *Runtime) *mixed.Runtime {
	t.Helper()
	second := nacretest.NewFakeHost().Daemon().Driver(nacre.Capabilities{Runtime: "second", Snapshots: true, RestoreKey: "second/1"})
	m, err := mixed.New([]nacre.Runtime{r, second}, nil)
	check(t, err)
	return m
}

// TestContractBesideAnother: behind a runtime of several drivers all is as before.
func TestContractBesideAnother(t *testing.T) {
	nacretest.TestRuntime(t, nacretest.RuntimeHost{
		New: func(t testing.TB) (nacre.Runtime, func()) {
			m := beside(t, newRuntime(t))
			return m, func() { _ = m.Close() }
		},
		Spec:      newSpec,
		Daemon:    inDaemon,
		Leftovers: leftovers,
	})
}

// TestAnothersSnapshot: each driver restores its own ones, and tells those of another
// from damaged ones.
func TestAnothersSnapshot(t *testing.T) {
	r := newRuntime(t)
	m := beside(t, r)
	dirs := map[nacre.RuntimeName]string{}
	for _, name := range []nacre.RuntimeName{nacre.RuntimeGVisor, "second"} {
		spec := newSpec(t)
		spec.Runtime = name
		machine, err := m.Start(t.Context(), spec)
		check(t, err)
		stopLater(t, machine, spec)
		if machine.Handle().Runtime != name {
			t.Errorf("asked for %s: %+v", name, machine.Handle())
		}
		dirs[name] = t.TempDir()
		_, err = machine.Snapshot(t.Context(), dirs[name], nacre.SnapshotOptions{KeepRunning: true})
		check(t, err)
	}
	for of, dir := range dirs {
		if err := m.VerifySnapshot(t.Context(), dir); err != nil {
			t.Errorf("a snapshot of %s: %v", of, err)
		}
		for on := range dirs {
			spec := newSpec(t)
			spec.Runtime = on
			machine, err := m.Restore(t.Context(), spec, dir)
			if err == nil {
				stopLater(t, machine, spec)
			}
			if on == of && err != nil || on != of && !nacre.IsCode(err, nacre.CodeMismatch) {
				t.Errorf("a snapshot of %s on %s: %v", of, on, err)
			}
		}
	}
	// A damaged one is its driver's word, whoever is asked first.
	manifest := filepath.Join(dirs["second"], "memory.json")
	check(t, os.WriteFile(manifest, []byte("{}"), 0o600))
	if err := m.VerifySnapshot(t.Context(), dirs["second"]); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("a damaged one: %v", err)
	}
}
