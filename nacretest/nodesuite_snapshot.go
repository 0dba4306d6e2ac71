package nacretest

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

func nodeSnapshotCases() []nodeCase {
	return []nodeCase{
		{"a pause keeps everything and ends the machine", nodePause},
		{"a snapshot of a running sandbox leaves it alone, and copies share nothing", nodeFork},
		{"a sandbox goes back to its snapshot", nodeRollback},
		{"of files alone a sandbox boots", nodeFilesOnly},
		{"of what has memory too a sandbox boots when it is to", nodeReboot},
		{"what cannot be restored is refused with the reason", nodeSnapshotRefused},
		{"whether a snapshot can be gone on from is told before anything is given up", nodeCheckSnapshot},
		{"one snapshot of a sandbox at a time, and a stop calls it off", nodeSnapshotStopped},
		{"a deleted snapshot is gone, a paused sandbox outlives the daemon", nodeSnapshotRestart},
	}
}

// pause keeps a sandbox and ends its machine.
func (n NodeUnderTest) pause(t *testing.T, id nacre.SandboxID) nacre.SnapshotManifest {
	t.Helper()
	m, err := n.Node.Snapshot(t.Context(), id, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true})
	if err != nil {
		t.Fatalf("pause: %v", err)
	}
	return m
}

// from starts the sandbox of spec from a snapshot.
func (n NodeUnderTest) from(t *testing.T, spec nacre.StartSpec, snap nacre.SnapshotID) nacre.Started {
	t.Helper()
	spec.Snapshot = snap
	st, err := n.Node.Start(t.Context(), spec)
	if err != nil {
		t.Fatalf("start from a snapshot: %v", err)
	}
	return st
}

func (n NodeUnderTest) agent(t *testing.T, id nacre.SandboxID) nacre.Agent {
	t.Helper()
	a, err := n.Traffic.Agent(t.Context(), id)
	if err != nil {
		t.Fatalf("agent: %v", err)
	}
	return a
}

// file reads a file of the guest.
func (n NodeUnderTest) file(t *testing.T, id nacre.SandboxID, path string) string {
	t.Helper()
	r, _, err := n.agent(t, id).Files().Read(t.Context(), "", path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// stdout returns what the sandbox's log says was printed, oldest first.
func (n NodeUnderTest) stdout(t *testing.T, id nacre.SandboxID) []string {
	t.Helper()
	l, err := n.Telemetry.Logs(t.Context(), id, nacre.LogQuery{Type: nacre.LogStdout})
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range l {
		out = append(out, strings.TrimSpace(e.Message))
	}
	return out
}

// logs waits until the sandbox's log has exactly those lines.
func (n NodeUnderTest) logs(t *testing.T, id nacre.SandboxID, want ...string) {
	t.Helper()
	var got []string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if got = n.stdout(t, id); slices.Equal(got, want) {
			return
		}
	}
	t.Fatalf("the log of %s has %q, want %q", id, got, want)
}

func nodePause(t *testing.T, n NodeUnderTest) {
	spec := n.Spec()
	spec.Secure = true
	spec.Env = map[string]string{"KEPT": "yes"}
	first, err := n.Node.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	agent := n.agent(t, spec.Sandbox)
	n.run(t, spec.Sandbox, "echo before")
	ps, err := agent.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "sleep", Args: []string{"0.5"}})
	if err != nil {
		t.Fatal(err)
	}
	defer ps.Close()
	if _, err := agent.Files().Write(t.Context(), "", "/tmp/last", strings.NewReader("the last instant")); err != nil {
		t.Fatal(err)
	}
	m := n.pause(t, spec.Sandbox)
	if m.Sandbox != spec.Sandbox || m.Machine != first.Machine || !m.Pause || m.Build != spec.Build || m.RestoreKey == "" || m.DiskBytes <= 0 || m.Bytes() <= 0 || m.Stopped <= 0 {
		t.Errorf("manifest: %+v", m)
	}
	if _, ok := n.Traffic.Route(spec.Sandbox); ok {
		t.Error("there is still a route")
	}
	if list, err := n.Node.Machines(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("machines: %+v, %v", list, err)
	}
	n.stop(t, spec.Sandbox) // returns when the host has all back that the machine held
	n.noLeaks(t)
	n.logs(t, spec.Sandbox, "before")
	if list, err := n.Node.Snapshots(t.Context()); err != nil || len(list) != 1 || list[0].ID != m.ID {
		t.Errorf("snapshots: %+v, %v", list, err)
	}

	second := n.from(t, spec, m.ID)
	if second.Machine == first.Machine || second.BootPath != nacre.BootWarm {
		t.Errorf("%+v after %+v", second, first)
	}
	agent = n.agent(t, spec.Sandbox)
	if got := n.file(t, spec.Sandbox, "/tmp/last"); got != "the last instant" {
		t.Errorf("the file has %q", got)
	}
	// The process of before has its pid and ends by itself.
	again, err := agent.Processes().Connect(t.Context(), ps.PID())
	if err != nil {
		t.Fatalf("the process is gone: %v", err)
	}
	for {
		ev, err := again.Next()
		if err != nil {
			t.Fatal(err)
		}
		if ev.Exit != nil {
			if ev.Exit.Code != 0 {
				t.Errorf("it ended with %+v", ev.Exit)
			}
			break
		}
	}
	again.Close()
	if got := n.run(t, spec.Sandbox, "echo $KEPT"); got != "yes\n" {
		t.Errorf("after the resume: %q", got)
	}
	n.logs(t, spec.Sandbox, "before", "yes")
	if r, ok := n.Traffic.Route(spec.Sandbox); !ok || r.Machine != second.Machine || !r.Secure {
		t.Errorf("route: %+v, %v", r, ok)
	}
	third := n.pause(t, spec.Sandbox)
	if third.Hostname != m.Hostname {
		t.Errorf("the guest's name was %q and is %q", m.Hostname, third.Hostname)
	}
	n.from(t, spec, third.ID)
	n.run(t, spec.Sandbox, "echo third")
	n.logs(t, spec.Sandbox, "before", "yes", "third")
	n.stop(t, spec.Sandbox)
	n.noLeaks(t)
}

func nodeFork(t *testing.T, n NodeUnderTest) {
	parent := n.Spec()
	parent.Secure, parent.Env = true, map[string]string{"SECRET": "the parent's"}
	if _, err := n.Node.Start(t.Context(), parent); err != nil {
		t.Fatal(err)
	}
	n.run(t, parent.Sandbox, "echo parent")
	m, err := n.Node.Snapshot(t.Context(), parent.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID()})
	if err != nil || m.Pause {
		t.Fatalf("%+v, %v", m, err)
	}
	n.run(t, parent.Sandbox, "echo goes on")
	forks := make([]nacre.StartSpec, 3)
	for i := range forks {
		forks[i] = n.Spec()
		forks[i].Secure, forks[i].Env = true, map[string]string{"MINE": "fork"}
		n.from(t, forks[i], m.ID)
	}
	// A copy of a copy.
	m2, err := n.Node.Snapshot(t.Context(), forks[0].Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID()})
	if err != nil {
		t.Fatal(err)
	}
	if m2.Hostname == m.Hostname {
		t.Error("a fork has its parent's name")
	}
	for _, f := range forks {
		if got := n.run(t, f.Sandbox, "echo $MINE$SECRET"); got != "fork\n" {
			t.Errorf("a fork says %q", got)
		}
		n.logs(t, f.Sandbox, "fork")
		n.stop(t, f.Sandbox)
	}
	if err := n.Node.DeleteSnapshot(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	n.run(t, parent.Sandbox, "echo still")
	n.stop(t, parent.Sandbox)
	n.logs(t, parent.Sandbox, "parent", "goes on", "still")
	n.noLeaks(t)
}

func nodeRollback(t *testing.T, n NodeUnderTest) {
	spec, _ := n.start(t)
	n.run(t, spec.Sandbox, "echo one")
	m, err := n.Node.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID()})
	if err != nil {
		t.Fatal(err)
	}
	n.run(t, spec.Sandbox, "echo two")
	n.stop(t, spec.Sandbox)
	n.from(t, spec, m.ID)
	n.run(t, spec.Sandbox, "echo three")
	n.stop(t, spec.Sandbox)
	n.logs(t, spec.Sandbox, "one", "two", "three")
	n.noLeaks(t)
}

func nodeFilesOnly(t *testing.T, n NodeUnderTest) {
	spec, _ := n.start(t)
	if _, err := n.agent(t, spec.Sandbox).Files().Write(t.Context(), "", "/tmp/kept", strings.NewReader("kept")); err != nil {
		t.Fatal(err)
	}
	n.run(t, spec.Sandbox, "echo first")
	m, err := n.Node.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true, FilesOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if !m.FilesOnly {
		t.Fatalf("%+v", m)
	}
	if st := n.from(t, spec, m.ID); st.BootPath != nacre.BootCold {
		t.Errorf("%+v", st)
	}
	if got := n.file(t, spec.Sandbox, "/tmp/kept"); got != "kept" {
		t.Errorf("the file has %q", got)
	}
	n.run(t, spec.Sandbox, "echo second")
	n.stop(t, spec.Sandbox)
	n.logs(t, spec.Sandbox, "first", "second")
	n.noLeaks(t)
}

func nodeReboot(t *testing.T, n NodeUnderTest) {
	spec, _ := n.start(t)
	agent := n.agent(t, spec.Sandbox)
	if _, err := agent.Files().Write(t.Context(), "", "/tmp/kept", strings.NewReader("kept")); err != nil {
		t.Fatal(err)
	}
	p, err := agent.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "/bin/sh", Args: []string{"-c", "sleep 1000"}})
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	m := n.pause(t, spec.Sandbox)
	again := spec
	again.Snapshot, again.Boot = m.ID, true
	for range 2 { // the snapshot is as it was
		st, err := n.Node.Start(t.Context(), again)
		if err != nil {
			t.Fatal(err)
		}
		if st.BootPath != nacre.BootCold {
			t.Errorf("%+v", st)
		}
		if got := n.file(t, spec.Sandbox, "/tmp/kept"); got != "kept" {
			t.Errorf("the file has %q", got)
		}
		if list, err := n.agent(t, spec.Sandbox).Processes().List(t.Context()); err != nil || len(list) > 0 {
			t.Errorf("what runs after a boot: %+v, %v", list, err)
		}
		n.stop(t, spec.Sandbox)
	}
	n.from(t, spec, m.ID)
	if list, err := n.agent(t, spec.Sandbox).Processes().List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("with its memory: %+v, %v", list, err)
	}
	n.stop(t, spec.Sandbox)
	if list, err := n.Node.Snapshots(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("snapshots: %+v, %v", list, err)
	}
	n.noLeaks(t)
}

func nodeCheckSnapshot(t *testing.T, n NodeUnderTest) {
	spec, _ := n.start(t)
	id := nacre.NewSnapshotID()
	if _, err := n.Node.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: id}); err != nil {
		t.Fatal(err)
	}
	if err := n.Node.CheckSnapshot(t.Context(), id); err != nil {
		t.Errorf("of a whole one: %v", err)
	}
	nodeWantCode(t, n.Node.CheckSnapshot(t.Context(), nacre.NewSnapshotID()), nacre.CodeNotFound)
	n.run(t, spec.Sandbox, "echo unharmed")
	if err := n.Node.DeleteSnapshot(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	nodeWantCode(t, n.Node.CheckSnapshot(t.Context(), id), nacre.CodeNotFound)
	n.stop(t, spec.Sandbox)
	n.noLeaks(t)
}

func nodeSnapshotRefused(t *testing.T, n NodeUnderTest) {
	spec, _ := n.start(t)
	keep := nacre.SnapshotSpec{ID: nacre.NewSnapshotID()}
	if _, err := n.Node.Snapshot(t.Context(), spec.Sandbox, keep); err != nil {
		t.Fatal(err)
	}
	_, err := n.Node.Snapshot(t.Context(), spec.Sandbox, keep)
	nodeWantCode(t, err, nacre.CodeConflict) // the id is taken
	n.run(t, spec.Sandbox, "echo unharmed")
	_, err = n.Node.Snapshot(t.Context(), nacre.NewSandboxID(), nacre.SnapshotSpec{ID: nacre.NewSnapshotID()})
	nodeWantCode(t, err, nacre.CodeNotFound)
	_, err = n.Node.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: "../../etc"})
	nodeWantCode(t, err, nacre.CodeInvalid)
	again := spec
	again.Snapshot = keep.ID
	_, err = n.Node.Start(t.Context(), again)
	nodeWantCode(t, err, nacre.CodeConflict) // it has a machine
	n.stop(t, spec.Sandbox)
	for name, c := range map[string]struct {
		change func(*nacre.StartSpec)
		code   nacre.Code
	}{
		"unknown":        {func(s *nacre.StartSpec) { s.Snapshot = nacre.NewSnapshotID() }, nacre.CodeNotFound},
		"no id":          {func(s *nacre.StartSpec) { s.Snapshot = "../x" }, nacre.CodeNotFound},
		"another build":  {func(s *nacre.StartSpec) { s.Build = nacre.NewBuildID() }, nacre.CodeConflict},
		"other memory":   {func(s *nacre.StartSpec) { s.Resources.MemoryMiB *= 2 }, nacre.CodeConflict},
		"more CPUs":      {func(s *nacre.StartSpec) { s.Resources.CPUs++ }, nacre.CodeConflict},
		"a bigger disk":  {func(s *nacre.StartSpec) { s.Resources.DiskMiB *= 2 }, nacre.CodeConflict},
		"it itself is":   {func(*nacre.StartSpec) {}, ""},
		"more processes": {func(s *nacre.StartSpec) { s.Resources.MaxPIDs *= 2 }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := again
			c.change(&s)
			_, err := n.Node.Start(t.Context(), s)
			if c.code == "" && err != nil {
				t.Fatal(err)
			}
			if c.code != "" {
				nodeWantCode(t, err, c.code)
			}
			n.stop(t, s.Sandbox)
		})
	}
	n.noLeaks(t)
}

func nodeSnapshotStopped(t *testing.T, n NodeUnderTest) {
	for i := range 6 {
		spec, _ := n.start(t)
		snap := nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: i%2 == 0}
		errs := make(chan error, 2)
		take := func(s nacre.SnapshotSpec) { _, err := n.Node.Snapshot(t.Context(), spec.Sandbox, s); errs <- err }
		go take(snap)
		go take(nacre.SnapshotSpec{ID: nacre.NewSnapshotID()})
		time.Sleep(time.Duration(i) * time.Millisecond) // any moment will do
		n.stop(t, spec.Sandbox)
		for range 2 {
			err := <-errs
			if c := nacre.ErrorCode(err); err != nil && c != nacre.CodeConflict && c != nacre.CodeNotFound {
				t.Errorf("a snapshot ended with %v", err)
			}
		}
		if _, ok := n.Traffic.Route(spec.Sandbox); ok {
			t.Fatal("it runs")
		}
	}
	n.noLeaks(t)
}

func nodeSnapshotRestart(t *testing.T, n NodeUnderTest) {
	if n.Restart == nil {
		t.Skip("no Restart")
	}
	spec, _ := n.start(t)
	n.run(t, spec.Sandbox, "echo before")
	gone, err := n.Node.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID()})
	if err != nil {
		t.Fatal(err)
	}
	m := n.pause(t, spec.Sandbox)
	for range 2 {
		if err := n.Node.DeleteSnapshot(t.Context(), gone.ID); err != nil {
			t.Fatal(err)
		}
	}
	s := spec
	s.Snapshot = gone.ID
	_, err = n.Node.Start(t.Context(), s)
	nodeWantCode(t, err, nacre.CodeNotFound)
	n = n.Restart(t)
	list, err := n.Node.Snapshots(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != m.ID || list[0].Machine != m.Machine {
		t.Fatalf("snapshots: %+v, %v", list, err)
	}
	n.from(t, spec, m.ID)
	// A restored sandbox is one like any other to the next daemon.
	n = n.Restart(t)
	n.run(t, spec.Sandbox, "echo after")
	n.logs(t, spec.Sandbox, "before", "after")
	n.stop(t, spec.Sandbox)
	n.noLeaks(t)
}
