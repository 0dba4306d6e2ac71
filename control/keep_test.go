package control_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
)

// write puts a file into a guest.
func (w *world) write(id nacre.SandboxID, path, content string) {
	w.tb.Helper()
	agent, err := w.node.Agent(w.tb.Context(), id)
	if err == nil {
		_, err = agent.Files().Write(w.tb.Context(), "", path, strings.NewReader(content))
	}
	if err != nil {
		w.tb.Fatalf("write %s in %s: %v", path, id, err)
	}
}

// read returns a file of a guest, "" when there is none.
func (w *world) read(id nacre.SandboxID, path string) string {
	w.tb.Helper()
	agent, err := w.node.Agent(w.tb.Context(), id)
	if err != nil {
		w.tb.Fatalf("the agent of %s: %v", id, err)
	}
	r, _, err := agent.Files().Read(w.tb.Context(), "", path)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return ""
	}
	if err != nil {
		w.tb.Fatalf("read %s in %s: %v", path, id, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		w.tb.Fatal(err)
	}
	return string(b)
}

func (w *world) pause(id nacre.SandboxID) nacre.Sandbox {
	w.tb.Helper()
	s, err := w.svc.Pause(w.tb.Context(), team, id, nacre.PauseRequest{})
	if err != nil {
		w.tb.Fatalf("pause: %v", err)
	}
	return s
}

func (w *world) resume(id nacre.SandboxID) nacre.Sandbox {
	w.tb.Helper()
	s, resumed, err := w.svc.Resume(w.tb.Context(), team, id, nacre.ResumeRequest{})
	if err != nil || !resumed {
		w.tb.Fatalf("resume: %v, %v", resumed, err)
	}
	return s
}

func (w *world) snapshot(id nacre.SandboxID, r nacre.SnapshotRequest) nacre.Snapshot {
	w.tb.Helper()
	n, err := w.svc.Snapshot(w.tb.Context(), team, id, r)
	if err != nil {
		w.tb.Fatalf("snapshot: %v", err)
	}
	return n
}

// snapshots returns all records of snapshots, by kind.
func (w *world) snapshots() map[nacre.SnapshotKind][]nacre.Snapshot {
	w.tb.Helper()
	page, err := w.db.ListSnapshots(w.tb.Context(), nacre.SnapshotFilter{AllTeams: true, Limit: 1000,
		Kinds: []nacre.SnapshotKind{nacre.SnapshotUser, nacre.SnapshotPause, nacre.SnapshotFork, nacre.SnapshotWarm}})
	if err != nil {
		w.tb.Fatal(err)
	}
	out := map[nacre.SnapshotKind][]nacre.Snapshot{}
	for _, n := range page.Snapshots {
		out[n.Kind] = append(out[n.Kind], n)
	}
	return out
}

func (w *world) kinds(id nacre.SandboxID) []nacre.EventKind {
	var out []nacre.EventKind
	for _, e := range w.events(id) {
		out = append(out, e.Kind)
	}
	return out
}

// TestPauseAndResume: nothing that a guest did is lost, nothing of it runs meanwhile,
// and it comes back as who it was.
func TestPauseAndResume(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{Timeout: time.Hour, Metadata: map[string]string{"k": "v"}, Env: map[string]string{"A": "1"}, Secure: true, Name: "box"})
	w.write(s.ID, "/home/user/f", "the last instant")
	p := w.pause(s.ID)
	if p.State != nacre.StatePaused || p.PausedAt.IsZero() || p.Machine != "" || p.Snapshot == "" || !p.Deadline.Equal(s.Deadline) {
		t.Fatalf("paused: %+v", p)
	}
	if l := w.host.Leaks(); len(l) > 0 {
		t.Fatalf("a paused sandbox has %v", l)
	}
	_, err := w.svc.Pause(t.Context(), team, s.ID, nacre.PauseRequest{})
	wantCode(t, err, nacre.CodeConflict)
	_, err = w.svc.SetDeadline(t.Context(), team, s.ID, time.Minute, false)
	wantCode(t, err, nacre.CodeConflict)
	list, err := w.svc.List(t.Context(), team, nacre.SandboxFilter{States: []nacre.State{nacre.StatePaused}, Name: "box"})
	if err != nil || len(list.Sandboxes) != 1 {
		t.Fatalf("the list of the paused: %+v, %v", list, err)
	}
	w.restart()
	w.settles("paused, after a restart")
	r, resumed, err := w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{Timeout: time.Minute})
	if err != nil || !resumed {
		t.Fatal(resumed, err)
	}
	if r.State != nacre.StateRunning || r.ID != s.ID || r.Machine == s.Machine || r.Machine == "" || r.Snapshot != "" || r.Origin != p.Snapshot ||
		!r.PausedAt.IsZero() || r.Metadata["k"] != "v" || r.Env["A"] != "1" || !r.Secure || r.BootPath != nacre.BootWarm || r.TokenEpoch != s.TokenEpoch {
		t.Fatalf("resumed: %+v", r)
	}
	if r.Deadline.Before(s.Deadline) {
		t.Fatalf("the resume moved the deadline from %s to %s", s.Deadline, r.Deadline)
	}
	if got := w.read(s.ID, "/home/user/f"); got != "the last instant" {
		t.Fatalf("the file holds %q", got)
	}
	if in, _ := w.host.Machine(r.Machine).Guest.Init(); in.Env["A"] != "1" || in.AccessToken == "" {
		t.Fatalf("the guest was told %+v", in)
	}
	again, resumed, err := w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{Timeout: 2 * time.Hour})
	if err != nil || resumed || !again.Deadline.After(r.Deadline) {
		t.Fatalf("a resume of one that runs: %+v, %v, %v", again, resumed, err)
	}
	w.settles("resumed")
	want := []nacre.EventKind{nacre.EventCreated, nacre.EventRunning, nacre.EventSnapshotCreated, nacre.EventPaused,
		nacre.EventResumed, nacre.EventSnapshotDeleted, nacre.EventDeadline}
	if got := w.kinds(s.ID); !slices.Equal(got, want) {
		t.Fatalf("events: %v", got)
	}
	if n := w.snapshots(); len(n) > 0 {
		t.Fatalf("snapshots are left: %+v", n)
	}
	for _, id := range []nacre.SandboxID{nacre.NewSandboxID(), "x"} {
		_, err := w.svc.Pause(t.Context(), team, id, nacre.PauseRequest{})
		wantCode(t, err, nacre.CodeNotFound)
		_, _, err = w.svc.Resume(t.Context(), team, id, nacre.ResumeRequest{})
		wantCode(t, err, nacre.CodeNotFound)
	}
}

// TestFault36_SnapshotsOfAnotherTeam: to another team neither the sandbox nor the
// snapshot is there, whatever is asked.
func TestFault36_SnapshotsOfAnotherTeam(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	n := w.snapshot(s.ID, nacre.SnapshotRequest{Name: "n"})
	mine, err := w.svc.Create(t.Context(), other, nacre.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]func() error{
		"pause":             func() error { _, err := w.svc.Pause(t.Context(), other, s.ID, nacre.PauseRequest{}); return err },
		"resume":            func() error { _, _, err := w.svc.Resume(t.Context(), other, s.ID, nacre.ResumeRequest{}); return err },
		"snapshot":          func() error { _, err := w.svc.Snapshot(t.Context(), other, s.ID, nacre.SnapshotRequest{}); return err },
		"restore":           func() error { _, err := w.svc.Restore(t.Context(), other, mine.ID, n.ID); return err },
		"restore of theirs": func() error { _, err := w.svc.Restore(t.Context(), other, s.ID, n.ID); return err },
		"fork":              func() error { _, err := w.svc.Fork(t.Context(), other, nacre.ForkRequest{Sandbox: s.ID}); return err },
		"fork snapshot":     func() error { _, err := w.svc.Fork(t.Context(), other, nacre.ForkRequest{Snapshot: n.ID}); return err },
		"create": func() error {
			_, err := w.svc.Create(t.Context(), other, nacre.CreateRequest{Template: "n"})
			return err
		},
		"create by id": func() error {
			_, err := w.svc.Create(t.Context(), other, nacre.CreateRequest{Template: string(n.ID)})
			return err
		},
		"get":    func() error { _, err := w.svc.GetSnapshot(t.Context(), other, n.ID); return err },
		"delete": func() error { return w.svc.DeleteSnapshot(t.Context(), other, n.ID) },
		"edit":   func() error { _, err := w.svc.Edit(t.Context(), other, s.ID, nacre.EditRequest{}); return err },
	} {
		if err := try(); !nacre.IsCode(err, nacre.CodeNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if page, err := w.svc.ListSnapshots(t.Context(), other, nacre.SnapshotFilter{AllTeams: true}); err != nil || len(page.Snapshots) > 0 {
		t.Fatalf("%+v, %v", page, err)
	}
	if got := w.get(s.ID); got.State != nacre.StateRunning || got.Version != s.Version {
		t.Fatalf("%+v", got)
	}
}

// TestFault22_AutoPause: at its deadline a sandbox is paused with what it wrote a
// moment before, and again after each resume.
func TestFault22_AutoPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		s := w.create(nacre.CreateRequest{Timeout: 10 * time.Second, OnTimeout: nacre.TimeoutPause})
		for i := range 3 {
			time.Sleep(9999 * time.Millisecond)
			w.write(s.ID, fmt.Sprintf("/f%d", i), "x")
			time.Sleep(time.Second)
			got := w.get(s.ID)
			if got.State != nacre.StatePaused || got.OnTimeout != nacre.TimeoutPause {
				t.Fatalf("after its time: %+v", got)
			}
			time.Sleep(24 * time.Hour) // a paused sandbox has no time that runs out
			got = w.resume(s.ID)
			if left := time.Until(got.Deadline); left < 9*time.Second || left > 10*time.Second {
				t.Fatalf("a resume leaves it %s", left)
			}
			for j := range i + 1 {
				if w.read(s.ID, fmt.Sprintf("/f%d", j)) != "x" {
					t.Fatalf("round %d: file %d is lost", i, j)
				}
			}
		}
	})
}

// TestFault11_AutoPauseOnAFullDisk: a sandbox that cannot be paused at its deadline
// runs on, says why, is tried again, and is paused when there is room.
func TestFault11_AutoPauseOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		s := w.create(nacre.CreateRequest{Timeout: 10 * time.Second, OnTimeout: nacre.TimeoutPause})
		w.write(s.ID, "/f", "kept")
		full := atomic.Bool{}
		full.Store(true)
		w.host.SetHook(func(op string, _ nacre.MachineID) error {
			if op == "machine.snapshot" && full.Load() {
				return nacre.Errorf(nacre.CodeNoSpace, "the disk is full")
			}
			return nil
		})
		time.Sleep(11 * time.Second)
		got := w.get(s.ID)
		if got.State != nacre.StateRunning || !strings.Contains(got.Detail, "disk is full") || !got.Deadline.After(time.Now()) || got.Snapshot != "" {
			t.Fatalf("after its time: %+v", got)
		}
		if ev := w.events(s.ID); ev[len(ev)-1].Kind != nacre.EventDeadline || !strings.Contains(ev[len(ev)-1].Data["detail"], "disk is full") {
			t.Fatalf("events: %+v", ev)
		}
		if n := w.snapshots(); len(n) > 0 {
			t.Fatalf("snapshots are left: %+v", n)
		}
		_, err := w.svc.Pause(t.Context(), team, s.ID, nacre.PauseRequest{})
		wantCode(t, err, nacre.CodeNoSpace)
		before := w.get(s.ID)
		if before.State != nacre.StateRunning {
			t.Fatalf("%+v", before)
		}
		time.Sleep(10 * time.Minute)
		if w.read(s.ID, "/f") != "kept" {
			t.Fatal("the file is lost")
		}
		full.Store(false)
		time.Sleep(lastRetryAtMost)
		if got := w.get(s.ID); got.State != nacre.StatePaused || got.Detail != "" {
			t.Fatalf("with room again: %+v", got)
		}
		w.resume(s.ID)
		if w.read(s.ID, "/f") != "kept" {
			t.Fatal("the file is lost")
		}
	})
}

const lastRetryAtMost = 5*time.Minute + time.Second

// TestWakeOnce: however many requests come for a paused sandbox, it is resumed once.
func TestWakeOnce(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{AutoResume: true})
	plain := w.create(nacre.CreateRequest{})
	if _, ok := w.svc.Asleep(s.ID); ok {
		t.Fatal("a running sandbox is asleep")
	}
	w.pause(s.ID)
	w.pause(plain.ID)
	w.restart()
	if err := w.svc.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, ok := w.svc.Asleep(s.ID); !ok || r.Sandbox != s.ID || r.Team != team {
		t.Fatalf("%+v, %v", r, ok)
	}
	if _, ok := w.svc.Asleep(plain.ID); ok {
		t.Fatal("traffic would wake one that it shall not wake")
	}
	n := 0
	w.svc.Sleepers(func(nacre.Route) bool { n++; return true })
	if n != 1 {
		t.Fatalf("%d sleepers", n)
	}
	var boots atomic.Int32
	w.host.SetHook(func(op string, _ nacre.MachineID) error {
		if op == "runtime.restore" {
			boots.Add(1)
		}
		return nil
	})
	var wg sync.WaitGroup
	var did atomic.Int32
	for i := range 50 {
		wg.Go(func() {
			if i%2 == 0 {
				if err := w.svc.Wake(t.Context(), s.ID); err != nil {
					t.Error(err)
				}
				return
			}
			got, resumed, err := w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{})
			if err != nil || got.State != nacre.StateRunning {
				t.Errorf("%+v, %v", got, err)
			}
			if resumed {
				did.Add(1)
			}
		})
	}
	wg.Wait()
	if boots.Load() != 1 || did.Load() > 1 {
		t.Fatalf("%d restores, %d say that they resumed it", boots.Load(), did.Load())
	}
	if _, ok := w.svc.Asleep(s.ID); ok {
		t.Fatal("asleep still")
	}
	wantCode(t, w.svc.Wake(t.Context(), nacre.NewSandboxID()), nacre.CodeNotFound)
}

// TestResumeFails: the sandbox is paused as before, says why, and can be resumed when
// the fault is gone.
func TestResumeFails(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	w.write(s.ID, "/f", "kept")
	p := w.pause(s.ID)
	broken := atomic.Bool{}
	broken.Store(true)
	w.host.SetHook(func(op string, _ nacre.MachineID) error {
		if op == "runtime.restore" && broken.Load() {
			return nacre.Errorf(nacre.CodeExhausted, "the host is full")
		}
		return nil
	})
	_, _, err := w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	got := w.get(s.ID)
	if got.State != nacre.StatePaused || got.Snapshot != p.Snapshot || !got.PausedAt.Equal(p.PausedAt) || !strings.Contains(got.Detail, "the host is full") {
		t.Fatalf("%+v", got)
	}
	broken.Store(false)
	w.resume(s.ID)
	if w.read(s.ID, "/f") != "kept" {
		t.Fatal("the file is lost")
	}
	_, _, err = w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{Timeout: 25 * time.Hour})
	wantCode(t, err, nacre.CodeInvalid)
}

// TestFilesOnly: what is paused without its memory boots with its files; what has
// its memory is not booted over it.
func TestFilesOnly(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	w.write(s.ID, "/f", "kept")
	p := w.pause(s.ID)
	_, _, err := w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{Boot: true})
	wantCode(t, err, nacre.CodeUnsupported)
	if got := w.get(s.ID); got.State != nacre.StatePaused || got.Version != p.Version {
		t.Fatalf("%+v", got)
	}
	_, err = w.svc.Snapshot(t.Context(), team, s.ID, nacre.SnapshotRequest{FilesOnly: true})
	wantCode(t, err, nacre.CodeConflict)
	w.resume(s.ID)
	if _, err := w.svc.Pause(t.Context(), team, s.ID, nacre.PauseRequest{FilesOnly: true}); err != nil {
		t.Fatal(err)
	}
	n := w.snapshot(s.ID, nacre.SnapshotRequest{FilesOnly: true})
	if !n.FilesOnly {
		t.Fatalf("%+v", n)
	}
	got, resumed, err := w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{Boot: true})
	if err != nil || !resumed || got.BootPath != nacre.BootCold || w.read(s.ID, "/f") != "kept" {
		t.Fatalf("%+v, %v", got, err)
	}
	w.settles("booted")
}

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
	wantCode(t, err, nacre.CodeUnsupported)
	_, err = w.svc.Fork(t.Context(), team, nacre.ForkRequest{Snapshot: n.ID})
	wantCode(t, err, nacre.CodeUnsupported)
	_, err = w.svc.Create(t.Context(), team, nacre.CreateRequest{Template: string(n.ID)})
	wantCode(t, err, nacre.CodeUnsupported)
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

// TestThePausedIsGone: a paused sandbox whose snapshot is not on its host has ended,
// and says so.
func TestThePausedIsGone(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	p := w.pause(s.ID)
	if err := w.node.DeleteSnapshot(t.Context(), p.Snapshot); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.settles("without the files")
	if got := w.get(s.ID); got.EndReason != nacre.EndNodeLost {
		t.Fatalf("%+v", got)
	}
}

// TestKillOfAPausedOne frees what it had on disk.
func TestKillOfAPausedOne(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	w.pause(s.ID)
	if err := w.svc.Kill(t.Context(), team, s.ID); err != nil {
		t.Fatal(err)
	}
	wantCode(t, w.svc.Kill(t.Context(), team, s.ID), nacre.CodeNotFound)
	_, _, err := w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{})
	wantCode(t, err, nacre.CodeNotFound)
	if list, err := w.node.Snapshots(t.Context()); err != nil || len(list) > 0 || len(w.snapshots()) > 0 {
		t.Fatalf("left: %+v, %v", list, err)
	}
}

// TestQuotas: paused sandboxes are no running ones, and what is kept is counted.
func TestQuotas(t *testing.T) {
	w := newWorld(t)
	w.limits.MaxPerTeam, w.limits.MaxPaused = 1, 2
	w.start()
	a := w.create(nacre.CreateRequest{})
	_, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	w.pause(a.ID)
	b := w.create(nacre.CreateRequest{})
	_, _, err = w.svc.Resume(t.Context(), team, a.ID, nacre.ResumeRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	w.restart()
	_, _, err = w.svc.Resume(t.Context(), team, a.ID, nacre.ResumeRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	if got := w.get(a.ID); got.State != nacre.StatePaused {
		t.Fatalf("%+v", got)
	}
	w.pause(b.ID)
	c := w.create(nacre.CreateRequest{})
	_, err = w.svc.Pause(t.Context(), team, c.ID, nacre.PauseRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	if !strings.Contains(nacre.ErrorMessage(err), "2 paused") {
		t.Fatal(err)
	}
	if err := w.svc.Kill(t.Context(), team, b.ID); err != nil {
		t.Fatal(err)
	}
	w.pause(c.ID)
	w.stop()
	w.limits = control.Limits{MaxSnapshotBytes: 1}
	w.start()
	w.resume(c.ID)
	_, err = w.svc.Snapshot(t.Context(), team, c.ID, nacre.SnapshotRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	if !strings.Contains(nacre.ErrorMessage(err), " bytes of the 1 bytes") {
		t.Fatal(err)
	}
	_, err = w.svc.Create(t.Context(), team, nacre.CreateRequest{OnTimeout: nacre.TimeoutPause})
	wantCode(t, err, nacre.CodeExhausted)
}

// TestSnapshotsExpire: at their time, but not while a paused sandbox needs them.
func TestSnapshotsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		s := w.create(nacre.CreateRequest{Timeout: time.Hour})
		short := w.snapshot(s.ID, nacre.SnapshotRequest{Keep: 10 * time.Second})
		long := w.snapshot(s.ID, nacre.SnapshotRequest{})
		w.pause(s.ID)
		held := w.snapshot(s.ID, nacre.SnapshotRequest{Keep: 10 * time.Second})
		time.Sleep(9 * time.Second)
		if _, err := w.svc.GetSnapshot(t.Context(), team, short.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		_, err := w.svc.GetSnapshot(t.Context(), team, short.ID)
		wantCode(t, err, nacre.CodeNotFound)
		for _, n := range []nacre.SnapshotID{long.ID, held.ID} {
			if _, err := w.svc.GetSnapshot(t.Context(), team, n); err != nil {
				t.Fatal(err)
			}
		}
		w.resume(s.ID)
		time.Sleep(10 * time.Second)
		_, err = w.svc.GetSnapshot(t.Context(), team, held.ID)
		wantCode(t, err, nacre.CodeNotFound)
	})
}

// TestIdle: what is not used for its idle time ends; use puts it off, and the wall
// clock's deadline stays what it is. One that is always on has none.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		unused := w.create(nacre.CreateRequest{Timeout: time.Hour, IdleTimeout: 10 * time.Second})
		used := w.create(nacre.CreateRequest{Timeout: time.Hour, IdleTimeout: 10 * time.Second})
		on := w.create(nacre.CreateRequest{Timeout: 10 * time.Second, AlwaysOn: true})
		edited := w.create(nacre.CreateRequest{Timeout: 10 * time.Second, AlwaysOn: true})
		if !on.Deadline.IsZero() {
			t.Fatalf("%+v", on)
		}
		for range 30 {
			time.Sleep(5 * time.Second)
			w.svc.Touch(used.ID)
		}
		if got := w.get(unused.ID); got.EndReason != nacre.EndIdle || got.EndedAt.Sub(got.StartedAt) > 11*time.Second {
			t.Fatalf("unused: %+v", got)
		}
		for _, s := range []nacre.Sandbox{used, on, edited} {
			if got := w.get(s.ID); got.State != nacre.StateRunning {
				t.Fatalf("%+v", got)
			}
		}
		w.restart()
		time.Sleep(5 * time.Second)
		if got := w.get(used.ID); got.State != nacre.StateRunning {
			t.Fatalf("a restart counts as use: %+v", got)
		}
		time.Sleep(6 * time.Second)
		if got := w.get(used.ID); got.EndReason != nacre.EndIdle {
			t.Fatalf("%+v", got)
		}
		off, name := false, "named"
		got, err := w.svc.Edit(t.Context(), team, edited.ID, nacre.EditRequest{AlwaysOn: &off, Name: &name, Metadata: map[string]string{"a": "b"}})
		if err != nil || got.Deadline.IsZero() || got.Name != name || got.Metadata["a"] != "b" {
			t.Fatalf("%+v, %v", got, err)
		}
		time.Sleep(11 * time.Second)
		if got := w.get(edited.ID); got.EndReason != nacre.EndTimeout {
			t.Fatalf("%+v", got)
		}
		if got := w.get(on.ID); got.State != nacre.StateRunning {
			t.Fatalf("%+v", got)
		}
		_, err = w.svc.Edit(t.Context(), team, edited.ID, nacre.EditRequest{Name: &name})
		wantCode(t, err, nacre.CodeNotFound)
	})
}
