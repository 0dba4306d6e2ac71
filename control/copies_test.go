package control_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
)

// TestSnapshotsOfSandboxes: of a running one and of a paused one, named, described,
// listed, deleted; and what is in use stays.
func TestSnapshotsOfSandboxes(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{Env: map[string]string{"A": "1"}})
	w.write(s.ID, "/f", "1")
	one := w.snapshot(s.ID, nacre.SnapshotRequest{Name: "n", Comment: "first"})
	if one.State != nacre.SnapshotReady || one.Bytes == 0 || one.DiskBytes == 0 || one.RestoreKey == "" || one.Sandbox != s.ID || one.Comment != "first" {
		t.Fatalf("%+v", one)
	}
	if got := w.get(s.ID); got.State != nacre.StateRunning || got.Machine != s.Machine {
		t.Fatalf("the sandbox did not go on: %+v", got)
	}
	w.write(s.ID, "/f", "2")
	p := w.pause(s.ID)
	two := w.snapshot(s.ID, nacre.SnapshotRequest{Name: "n"})
	if two.ID != p.Snapshot || two.Kind != nacre.SnapshotUser {
		t.Fatalf("%+v", two)
	}
	_, err := w.svc.Snapshot(t.Context(), team, s.ID, nacre.SnapshotRequest{})
	wantCode(t, err, nacre.CodeConflict)
	page, err := w.svc.ListSnapshots(t.Context(), team, nacre.SnapshotFilter{})
	if err != nil || len(page.Snapshots) != 2 {
		t.Fatalf("%+v, %v", page, err)
	}
	err = w.svc.DeleteSnapshot(t.Context(), team, two.ID)
	wantCode(t, err, nacre.CodeConflict)
	if !strings.Contains(nacre.ErrorMessage(err), string(s.ID)) {
		t.Fatalf("the holder is not named: %v", err)
	}
	w.resume(s.ID)
	if got := w.get(s.ID); got.Origin != two.ID {
		t.Fatalf("%+v", got)
	}
	c := w.create(nacre.CreateRequest{Template: "n", Env: map[string]string{"B": "2"}})
	if w.read(c.ID, "/f") != "2" || c.Parent != s.ID || c.Env["A"] != "1" || c.Env["B"] != "2" || c.BootPath != nacre.BootWarm {
		t.Fatalf("from the newest of the name: %+v", c)
	}
	c = w.create(nacre.CreateRequest{Template: string(one.ID)})
	if w.read(c.ID, "/f") != "1" {
		t.Fatal("from the older one by its id")
	}
	_, err = w.svc.Create(t.Context(), team, nacre.CreateRequest{Template: "n", Resources: nacre.Resources{MemoryMiB: 999}})
	wantCode(t, err, nacre.CodeInvalid)
	for _, n := range []nacre.SnapshotID{one.ID, two.ID} {
		if err := w.svc.DeleteSnapshot(t.Context(), team, n); err != nil {
			t.Fatal(err)
		}
		wantCode(t, w.svc.DeleteSnapshot(t.Context(), team, n), nacre.CodeNotFound)
		_, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{Template: string(n)})
		wantCode(t, err, nacre.CodeNotFound)
	}
	if w.read(c.ID, "/f") != "1" {
		t.Fatal("a copy needs the snapshot still")
	}
	w.settles("after all")
	if list, err := w.node.Snapshots(t.Context()); err != nil || len(list) > 0 {
		t.Fatalf("files are left: %+v, %v", list, err)
	}
	_, err = w.svc.Snapshot(t.Context(), team, s.ID, nacre.SnapshotRequest{Name: strings.Repeat("x", 200)})
	wantCode(t, err, nacre.CodeInvalid)
	_, err = w.svc.Snapshot(t.Context(), team, s.ID, nacre.SnapshotRequest{Keep: -1})
	wantCode(t, err, nacre.CodeInvalid)
}

// TestFork: copies go on where the source is, each as somebody of its own; the source
// does not notice.
func TestFork(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{Timeout: time.Hour, Secure: true, Metadata: map[string]string{"k": "v"},
		Env: map[string]string{"A": "1", "B": "1"}, Network: nacre.NetworkPolicy{DenyInternet: true}})
	w.write(s.ID, "/f", "here")
	check := func(list []nacre.Forked, err error, n int) {
		t.Helper()
		if err != nil || len(list) != n {
			t.Fatalf("%d copies, %v", len(list), err)
		}
		seen := map[any]bool{s.ID: true, s.Machine: true}
		for _, f := range list {
			c := f.Sandbox
			if f.Err != nil || c.State != nacre.StateRunning || seen[c.ID] || seen[c.Machine] || c.Snapshot != "" || c.Origin == "" || c.Parent != s.ID {
				t.Fatalf("%+v", f)
			}
			seen[c.ID], seen[c.Machine] = true, true
			if c.Env["A"] != "1" || c.Env["B"] != "2" || c.Metadata["k"] != "v" || !c.Secure || !c.Network.DenyInternet || c.Name != "copy" {
				t.Fatalf("%+v", c)
			}
			if d := time.Until(c.Deadline); d < 59*time.Second || d > time.Minute {
				t.Fatalf("a copy has %s", d)
			}
			if w.read(c.ID, "/f") != "here" {
				t.Fatal("a copy lacks the file")
			}
			in, _ := w.host.Machine(c.Machine).Guest.Init()
			if seen[in.AccessToken] || seen[in.Hostname] || seen[string(in.Entropy)] || in.Env["B"] != "2" || !in.NewIdentity {
				t.Fatalf("the copy was told %+v", in)
			}
			seen[in.AccessToken], seen[in.Hostname], seen[string(in.Entropy)] = true, true, true
			if p, _ := w.host.Policy(c.Machine); !p.DenyAll {
				t.Fatal("the copy may reach what the source may not")
			}
		}
	}
	req := nacre.ForkRequest{Count: 10, Env: map[string]string{"B": "2"}, Timeout: time.Minute, Name: "copy"}
	of := func(s nacre.SandboxID, n nacre.SnapshotID, count int) nacre.ForkRequest {
		r := req
		r.Sandbox, r.Snapshot, r.Count = s, n, count
		return r
	}
	list, err := w.svc.Fork(t.Context(), team, of(s.ID, "", 10))
	check(list, err, 10)
	if got := w.get(s.ID); got.State != nacre.StateRunning || got.Machine != s.Machine || !got.Deadline.Equal(s.Deadline) {
		t.Fatalf("the source: %+v", got)
	}
	n := w.snapshot(s.ID, nacre.SnapshotRequest{})
	list, err = w.svc.Fork(t.Context(), team, of("", n.ID, 2))
	check(list, err, 2)
	w.pause(s.ID)
	list, err = w.svc.Fork(t.Context(), team, of(s.ID, "", 2))
	check(list, err, 2)
	if got := w.get(s.ID); got.State != nacre.StatePaused {
		t.Fatalf("the source: %+v", got)
	}
	w.resume(s.ID)
	w.settles("forked")
	if n := w.snapshots(); len(n[nacre.SnapshotFork])+len(n[nacre.SnapshotPause]) > 0 || len(n[nacre.SnapshotUser]) != 1 {
		t.Fatalf("snapshots: %+v", n)
	}
	list, err = w.svc.Fork(t.Context(), team, nacre.ForkRequest{Sandbox: s.ID, OwnEnv: true, Env: map[string]string{"C": "3"}})
	if err != nil || list[0].Err != nil {
		t.Fatal(list, err)
	}
	in, _ := w.host.Machine(list[0].Sandbox.Machine).Guest.Init()
	if got := list[0].Sandbox.Env; len(got) != 1 || got["C"] != "3" || len(in.Env) != 1 || in.Env["C"] != "3" {
		t.Fatalf("with variables of its own it has %v and was told %v", got, in.Env)
	}
	for _, bad := range []nacre.ForkRequest{{}, {Sandbox: s.ID, Snapshot: n.ID}, {Sandbox: s.ID, Count: 101}, {Sandbox: s.ID, Count: -1},
		{Sandbox: s.ID, Timeout: -1}, {Sandbox: s.ID, OnTimeout: "x"}, {Sandbox: s.ID, Name: "\n"}, {Sandbox: s.ID, Env: map[string]string{"=": ""}}} {
		_, err := w.svc.Fork(t.Context(), team, bad)
		wantCode(t, err, nacre.CodeInvalid)
	}
}

// TestForkOutcomes: each copy has its own outcome.
func TestForkOutcomes(t *testing.T) {
	w := newWorld(t)
	w.limits.MaxPerTeam = 3
	w.start()
	s := w.create(nacre.CreateRequest{})
	list, err := w.svc.Fork(t.Context(), team, nacre.ForkRequest{Sandbox: s.ID, Count: 5})
	if err != nil {
		t.Fatal(err)
	}
	good := 0
	for _, f := range list {
		if f.Err == nil {
			good++
			continue
		}
		wantCode(t, f.Err, nacre.CodeExhausted)
	}
	if good != 2 {
		t.Fatalf("%d copies with room for 2", good)
	}
	w.settles("forked")
}

// TestRestore: a sandbox goes back to where it was, as itself.
func TestRestore(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{Timeout: time.Hour})
	w.write(s.ID, "/f", "1")
	n := w.snapshot(s.ID, nacre.SnapshotRequest{})
	w.write(s.ID, "/f", "2")
	got, err := w.svc.Restore(t.Context(), team, s.ID, n.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.State != nacre.StateRunning || got.ID != s.ID || got.Machine == s.Machine || !got.Deadline.Equal(s.Deadline) || got.Origin != n.ID || w.read(s.ID, "/f") != "1" {
		t.Fatalf("%+v", got)
	}
	w.write(s.ID, "/f", "3")
	w.pause(s.ID)
	if _, err = w.svc.Restore(t.Context(), team, s.ID, n.ID); err != nil || w.read(s.ID, "/f") != "1" {
		t.Fatal("a paused one", err)
	}
	forks, err := w.svc.Fork(t.Context(), team, nacre.ForkRequest{Sandbox: s.ID})
	if err != nil || forks[0].Err != nil {
		t.Fatal(err, forks)
	}
	child := forks[0].Sandbox
	w.pause(child.ID)
	w.resume(child.ID)
	w.write(child.ID, "/f", "4")
	if _, err := w.svc.Restore(t.Context(), team, child.ID, n.ID); err != nil || w.read(child.ID, "/f") != "1" {
		t.Fatal("to a snapshot of its parent", err)
	}
	stranger := w.create(nacre.CreateRequest{})
	_, err = w.svc.Restore(t.Context(), team, stranger.ID, n.ID)
	wantCode(t, err, nacre.CodeConflict)
	w.settles("restored")

	// The node cannot: it is paused at the snapshot, and can be resumed later.
	broken := atomic.Bool{}
	broken.Store(true)
	w.host.SetHook(func(op string, _ nacre.MachineID) error {
		if op == "runtime.restore" && broken.Load() {
			return errors.New("no")
		}
		return nil
	})
	w.write(s.ID, "/f", "5")
	if _, err := w.svc.Restore(t.Context(), team, s.ID, n.ID); err == nil {
		t.Fatal("it worked")
	}
	if got := w.get(s.ID); got.State != nacre.StatePaused || got.Snapshot != n.ID || got.PausedAt.IsZero() || got.Detail == "" {
		t.Fatalf("%+v", got)
	}
	wantCode(t, w.svc.DeleteSnapshot(t.Context(), team, n.ID), nacre.CodeConflict)
	broken.Store(false)
	w.resume(s.ID)
	if w.read(s.ID, "/f") != "1" {
		t.Fatal("not at the snapshot")
	}
	w.settles("after a failed restore")
}

// TestFault25_WrongSnapshot: a snapshot that cannot be restored here is refused with
// the reason before anything is given up.
func TestFault25_WrongSnapshot(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	n := w.snapshot(s.ID, nacre.SnapshotRequest{})
	_, err := w.db.UpdateSnapshot(t.Context(), team, n.ID, func(n *nacre.Snapshot) ([]nacre.Event, error) {
		n.RestoreKey = "another processor"
		return nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.svc.Restore(t.Context(), team, s.ID, n.ID)
	wantCode(t, err, nacre.CodeMismatch)
	_, err = w.svc.Fork(t.Context(), team, nacre.ForkRequest{Snapshot: n.ID})
	wantCode(t, err, nacre.CodeMismatch)
	_, err = w.svc.Create(t.Context(), team, nacre.CreateRequest{Template: string(n.ID)})
	wantCode(t, err, nacre.CodeMismatch)
	if got := w.get(s.ID); got.State != nacre.StateRunning || got.Machine != s.Machine {
		t.Fatalf("%+v", got)
	}
	if err := w.node.DeleteSnapshot(t.Context(), n.ID); err != nil { // behind control's back
		t.Fatal(err)
	}
	w.restart()
	w.settles("without the files")
	_, err = w.svc.GetSnapshot(t.Context(), team, n.ID)
	wantCode(t, err, nacre.CodeNotFound)
}

// TestFault25_RestoreToADamagedSnapshot: it is refused before anything is given up, of
// a running sandbox and of a paused one.
func TestFault25_RestoreToADamagedSnapshot(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	n := w.snapshot(s.ID, nacre.SnapshotRequest{})
	w.write(s.ID, "/f", "since")
	damaged := atomic.Bool{}
	damaged.Store(true)
	w.host.SetHook(func(op string, _ nacre.MachineID) error {
		if damaged.Load() && (op == "runtime.verify" || op == "runtime.restore") {
			return nacre.Errorf(nacre.CodeConflict, "the snapshot is damaged")
		}
		return nil
	})
	_, err := w.svc.Restore(t.Context(), team, s.ID, n.ID)
	wantCode(t, err, nacre.CodeConflict)
	if got := w.get(s.ID); got.State != nacre.StateRunning || got.Machine != s.Machine || w.read(s.ID, "/f") != "since" {
		t.Fatalf("a running one: %+v", got)
	}
	was := w.pause(s.ID)
	_, err = w.svc.Restore(t.Context(), team, s.ID, n.ID)
	wantCode(t, err, nacre.CodeConflict)
	if got := w.get(s.ID); got.State != nacre.StatePaused || got.Snapshot != was.Snapshot || !got.PausedAt.Equal(was.PausedAt) {
		t.Fatalf("a paused one: %+v", got)
	}
	damaged.Store(false)
	w.resume(s.ID)
	if w.read(s.ID, "/f") != "since" {
		t.Fatal("what the sandbox did since is lost")
	}
	w.settles("refused")
}

// TestRestoreOfAPausedOneFails: it stays paused where it was, and says why.
func TestRestoreOfAPausedOneFails(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	n := w.snapshot(s.ID, nacre.SnapshotRequest{})
	w.write(s.ID, "/f", "since")
	was := w.pause(s.ID)
	full := atomic.Bool{}
	full.Store(true)
	w.host.SetHook(func(op string, _ nacre.MachineID) error {
		if full.Load() && op == "runtime.restore" {
			return nacre.Errorf(nacre.CodeExhausted, "the host is full")
		}
		return nil
	})
	_, err := w.svc.Restore(t.Context(), team, s.ID, n.ID)
	wantCode(t, err, nacre.CodeExhausted)
	got := w.get(s.ID)
	if got.State != nacre.StatePaused || got.Snapshot != was.Snapshot || !got.PausedAt.Equal(was.PausedAt) || !strings.Contains(got.Detail, "full") {
		t.Fatalf("%+v", got)
	}
	// At no moment was it paused where it was to go: a kill then would have left it there.
	events, err := w.db.Events(t.Context(), nacre.EventFilter{TeamID: team, SandboxID: s.ID, Kinds: []nacre.EventKind{nacre.EventPaused}})
	if err != nil || len(events) != 1 || events[0].Data["snapshot"] != string(was.Snapshot) {
		t.Fatalf("it was paused: %+v, %v", events, err)
	}
	full.Store(false)
	w.settles("refused")
	w.resume(s.ID)
	if w.read(s.ID, "/f") != "since" {
		t.Fatal("what the sandbox did since is lost")
	}
	w.pause(s.ID)
	if _, err := w.svc.Restore(t.Context(), team, s.ID, n.ID); err != nil {
		t.Fatal(err)
	}
	w.settles("restored")
}

// gatedSnapshots holds the writes of snapshots' records.
type gatedSnapshots struct {
	nacre.SnapshotStore
	insert, retire func()
}

func (s gatedSnapshots) InsertSnapshot(ctx context.Context, n nacre.Snapshot, ev ...nacre.Event) error {
	s.insert()
	return s.SnapshotStore.InsertSnapshot(ctx, n, ev...)
}

func (s gatedSnapshots) RetireSnapshot(ctx context.Context, t nacre.TeamID, id nacre.SnapshotID, ev ...nacre.Event) (nacre.Snapshot, error) {
	s.retire()
	return s.SnapshotStore.RetireSnapshot(ctx, t, id, ev...)
}

// TestAForkWaitsForFewWrites: the record of the snapshot between a sandbox and its copies
// is written while that is taken and deleted behind the answer, which the end of the
// server waits for. A copy's is written once, while its guest is told who it is, and
// what the copies are made of is no event of anybody's.
func TestAForkWaitsForFewWrites(t *testing.T) {
	taken, told, answered := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var forks atomic.Bool
	w := newWorld(t)
	w.rules = func(c *control.Config) {
		c.Snapshots = gatedSnapshots{c.Snapshots,
			func() { await(t, "the snapshot is taken while its record is written", taken) },
			func() { await(t, "the fork is answered before its snapshot is deleted", answered) }}
		c.Store = gatedStore{c.Store, func(rec nacre.Sandbox) {
			if !forks.Load() {
				return
			}
			if rec.State != nacre.StateRunning || rec.Machine == "" || rec.BootPath != nacre.BootWarm {
				t.Errorf("a copy's record is written as %s, on %q, %s", rec.State, rec.Machine, rec.BootPath)
			}
			await(t, "the guest is told while the record is written", told)
		}, nil}
		c.RecordAfter = time.Minute
	}
	w.start()
	s := w.create(nacre.CreateRequest{})
	forks.Store(true)
	var once, again sync.Once
	w.host.SetHook(func(op string, _ nacre.MachineID) error {
		switch op {
		case "machine.snapshot":
			once.Do(func() { close(taken) })
		case "agent.init":
			again.Do(func() { close(told) })
		}
		return nil
	})
	list, err := w.svc.Fork(t.Context(), team, nacre.ForkRequest{Sandbox: s.ID})
	if err != nil || list[0].Err != nil {
		t.Fatal(list, err)
	}
	c := list[0].Sandbox
	if got := w.get(c.ID); got.State != nacre.StateRunning || got.Machine != c.Machine || got.Parent != s.ID || got.Snapshot != "" {
		t.Errorf("the copy's record is %+v", got)
	}
	if n := len(w.snapshots()[nacre.SnapshotFork]); n != 1 {
		t.Errorf("%d snapshots are yet to be deleted", n)
	}
	for _, k := range w.kinds(s.ID) {
		if k == nacre.EventSnapshotCreated || k == nacre.EventSnapshotDeleted {
			t.Errorf("the source's team is told %s", k)
		}
	}
	time.AfterFunc(10*time.Millisecond, func() { close(answered) })
	w.stop()
	w.rules = nil
	w.start()
	if n := w.snapshots(); len(n) > 0 {
		t.Errorf("the server ended before the snapshot was deleted: %+v", n)
	}
	w.settles("forked")
}

// TestAForkWhoseSnapshotHasNoRecord fails, and leaves no files.
func TestAForkWhoseSnapshotHasNoRecord(t *testing.T) {
	for _, when := range []string{"before it is taken", "when it is taken"} {
		t.Run(when, func(t *testing.T) {
			taken := make(chan struct{})
			w := newWorld(t)
			w.rules = func(c *control.Config) {
				c.Snapshots = refusingSnapshots{c.Snapshots, func() {
					if when == "when it is taken" {
						await(t, "the snapshot is taken", taken)
					}
				}}
			}
			w.start()
			s := w.create(nacre.CreateRequest{})
			w.host.SetHook(func(op string, _ nacre.MachineID) error {
				if op == "machine.snapshot" {
					close(taken)
				}
				return nil
			})
			_, err := w.svc.Fork(t.Context(), team, nacre.ForkRequest{Sandbox: s.ID})
			wantCode(t, err, nacre.CodeUnavailable)
			if n, err := w.node.Snapshots(t.Context()); err != nil || len(n) > 0 {
				t.Errorf("left behind: %+v, %v", n, err)
			}
			if got := w.get(s.ID); got.State != nacre.StateRunning || got.Machine != s.Machine {
				t.Errorf("the source: %+v", got)
			}
			w.settles("not forked")
		})
	}
}

// refusingSnapshots is a store that cannot be written.
type refusingSnapshots struct {
	nacre.SnapshotStore
	wait func()
}

func (s refusingSnapshots) InsertSnapshot(context.Context, nacre.Snapshot, ...nacre.Event) error {
	s.wait()
	return nacre.Errorf(nacre.CodeUnavailable, "the store is out of reach")
}
