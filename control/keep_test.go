package control_test

import (
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
	w.eventually("a paused sandbox has nothing on the host", func() bool { return len(w.host.Leaks()) == 0 })
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
	if r.Timeout != time.Hour {
		t.Fatalf("a time-out that is shorter than what is left became that of the sandbox, and of its forks: %s", r.Timeout)
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

// TestFilesOnly: what is paused without its memory boots with its files, and what was
// paused with it does when that is asked for.
func TestFilesOnly(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	w.write(s.ID, "/f", "kept")
	w.pause(s.ID)
	_, err := w.svc.Snapshot(t.Context(), team, s.ID, nacre.SnapshotRequest{FilesOnly: true})
	wantCode(t, err, nacre.CodeConflict)
	got, resumed, err := w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{Boot: true})
	if err != nil || !resumed || got.BootPath != nacre.BootCold || w.read(s.ID, "/f") != "kept" {
		t.Fatalf("%+v, %v", got, err)
	}
	w.settles("booted with the files of a snapshot with memory")
	if _, err := w.svc.Pause(t.Context(), team, s.ID, nacre.PauseRequest{FilesOnly: true}); err != nil {
		t.Fatal(err)
	}
	n := w.snapshot(s.ID, nacre.SnapshotRequest{FilesOnly: true})
	if !n.FilesOnly {
		t.Fatalf("%+v", n)
	}
	got, resumed, err = w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{Boot: true})
	if err != nil || !resumed || got.BootPath != nacre.BootCold || w.read(s.ID, "/f") != "kept" {
		t.Fatalf("%+v, %v", got, err)
	}
	w.settles("booted")
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
