package nacretest

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// fakeSpec gives a machine a build's root.
func fakeSpec(build string) nacre.MachineSpec {
	id := nacre.NewMachineID()
	return nacre.MachineSpec{ID: id, Root: nacre.RootFS{Image: "/fake/" + build, UpperMiB: 64}, Resources: nacre.Resources{CPUs: 1, MemoryMiB: 128}}
}

func TestFakeSnapshots(t *testing.T) {
	host := NewFakeHost()
	d := host.Daemon()
	r := d.Runtime()
	spec := fakeSpec("a")
	m, err := r.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	agent := d.NewAgent(m.Dial, "host", "")
	if err := agent.Init(t.Context(), nacre.AgentInit{HostToken: "host"}); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Files().Write(t.Context(), "root", "/root/x", strings.NewReader("kept")); err != nil {
		t.Fatal(err)
	}
	p, err := agent.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "sleep", Args: []string{"100"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	wantCode(t, "a call of a guest that stands still", agent.Healthy(short), nacre.CodeUnavailable)
	if again, err := d.Runtime().Recover(t.Context(), m.Handle()); err != nil || !host.Machine(again.ID()).Held() {
		t.Errorf("Recover let the guest go on (%v)", err)
	}
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := agent.Healthy(t.Context()); err != nil {
		t.Errorf("after Resume: %v", err)
	}
	restored, err := r.Restore(t.Context(), fakeSpec("a"), dir)
	if err != nil {
		t.Fatal(err)
	}
	other := d.NewAgent(restored.Dial, "host", "")
	f, _, err := other.Files().Read(t.Context(), "root", "/root/x")
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(f); string(b) != "kept" {
		t.Errorf("the file holds %q", b)
	}
	if _, err := other.Processes().Connect(t.Context(), p.PID()); err != nil {
		t.Errorf("the process: %v", err)
	}
	_, err = r.Restore(t.Context(), fakeSpec("b"), dir)
	wantCode(t, "Restore over another root", err, nacre.CodeConflict)
	_, err = r.Restore(t.Context(), fakeSpec("a"), t.TempDir())
	wantCode(t, "Restore of nothing", err, nacre.CodeNotFound)
	if err := os.WriteFile(filepath.Join(dir, fakeMemoryFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "VerifySnapshot", r.VerifySnapshot(t.Context(), dir), nacre.CodeConflict)
	_, err = r.Restore(t.Context(), fakeSpec("a"), dir)
	wantCode(t, "Restore of a damaged one", err, nacre.CodeConflict)
}

// TestFakeSnapshotKilled: a daemon killed at any step leaves the guest there, to be
// let go on.
func TestFakeSnapshotKilled(t *testing.T) {
	for n := 1; n < 6; n++ {
		host := NewFakeHost()
		d := host.Daemon()
		spec := fakeSpec("a")
		m, err := d.Runtime().Start(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		d.KillAt(n, nil)
		_, err = m.Snapshot(t.Context(), t.TempDir(), nacre.SnapshotOptions{KeepRunning: true})
		if (err != nil) != d.Killed() {
			t.Errorf("step %d: %v", n, err)
		}
		next := host.Daemon()
		again, err := next.Runtime().Recover(t.Context(), m.Handle())
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Resume(t.Context()); err != nil || host.Machine(spec.ID).Held() {
			t.Errorf("step %d: the guest does not go on (%v)", n, err)
		}
	}
}
