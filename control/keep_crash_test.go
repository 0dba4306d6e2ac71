package control_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
)

// keepCase is an operation during which the daemon is killed.
type keepCase struct {
	name   string
	paused bool // the victim is, before
	do     func(w *world, s nacre.Sandbox, n nacre.Snapshot) error
	// done checks what was promised when the operation was answered.
	done func(w *world, s nacre.Sandbox, n nacre.Snapshot) string
	// holds are the contents that the victim's file may have afterwards; "" that it may
	// have ended.
	holds []string
}

func is(want nacre.State) func(*world, nacre.Sandbox, nacre.Snapshot) string {
	return func(w *world, s nacre.Sandbox, _ nacre.Snapshot) string {
		if got := w.get(s.ID).State; got != want {
			return fmt.Sprintf("it is %s, was promised to be %s", got, want)
		}
		return ""
	}
}

var keepCases = []keepCase{
	{name: "pause", holds: []string{"2"}, done: is(nacre.StatePaused), do: func(w *world, s nacre.Sandbox, _ nacre.Snapshot) error {
		_, err := w.svc.Pause(w.tb.Context(), team, s.ID, nacre.PauseRequest{})
		return err
	}},
	{name: "resume", paused: true, holds: []string{"2"}, done: is(nacre.StateRunning), do: func(w *world, s nacre.Sandbox, _ nacre.Snapshot) error {
		_, _, err := w.svc.Resume(w.tb.Context(), team, s.ID, nacre.ResumeRequest{})
		return err
	}},
	{name: "snapshot", holds: []string{"2"}, done: hasSnapshot, do: keepNamed},
	{name: "snapshot of a paused one", paused: true, holds: []string{"2"}, done: hasSnapshot, do: keepNamed},
	{name: "restore", holds: []string{"1", "2"}, done: wentBack, do: restore},
	{name: "restore of a paused one", paused: true, holds: []string{"1", "2"}, done: wentBack, do: restore},
	{name: "fork", holds: []string{"2"}, done: hasForks, do: forkTwo},
	{name: "fork of a paused one", paused: true, holds: []string{"2"}, done: hasForks, do: forkTwo},
	{name: "fork of a snapshot", holds: []string{"2"}, done: hasForks, do: func(w *world, _ nacre.Sandbox, n nacre.Snapshot) error {
		return forked(w.svc.Fork(w.tb.Context(), team, nacre.ForkRequest{Snapshot: n.ID, Count: 2, Name: "fork"}))
	}},
	{name: "kill of a paused one", paused: true, holds: []string{"2", ""}, done: is(nacre.StateEnded), do: func(w *world, s nacre.Sandbox, _ nacre.Snapshot) error {
		return w.svc.Kill(w.tb.Context(), team, s.ID)
	}},
}

func keepNamed(w *world, s nacre.Sandbox, _ nacre.Snapshot) error {
	_, err := w.svc.Snapshot(w.tb.Context(), team, s.ID, nacre.SnapshotRequest{Name: "new"})
	return err
}

func hasSnapshot(w *world, s nacre.Sandbox, _ nacre.Snapshot) string {
	c, err := w.svc.Create(w.tb.Context(), team, nacre.CreateRequest{Template: "new"})
	if err != nil {
		return err.Error()
	}
	if got := w.read(c.ID, "/f"); got != "2" {
		return fmt.Sprintf("the snapshot holds %q", got)
	}
	return ""
}

func restore(w *world, s nacre.Sandbox, n nacre.Snapshot) error {
	_, err := w.svc.Restore(w.tb.Context(), team, s.ID, n.ID)
	return err
}

func wentBack(w *world, s nacre.Sandbox, n nacre.Snapshot) string {
	why := is(nacre.StateRunning)(w, s, n)
	if why == "" {
		if got := w.read(s.ID, "/f"); got != "1" {
			why = fmt.Sprintf("it holds %q", got)
		}
	}
	return why
}

func forkTwo(w *world, s nacre.Sandbox, _ nacre.Snapshot) error {
	return forked(w.svc.Fork(w.tb.Context(), team, nacre.ForkRequest{Sandbox: s.ID, Count: 2, Name: "fork"}))
}

func forked(list []nacre.Forked, err error) error {
	for _, f := range list {
		if err == nil {
			err = f.Err
		}
	}
	return err
}

func hasForks(w *world, _ nacre.Sandbox, _ nacre.Snapshot) string {
	p, err := w.svc.List(w.tb.Context(), team, nacre.SandboxFilter{Name: "fork", States: []nacre.State{nacre.StateRunning}})
	if err != nil || len(p.Sandboxes) != 2 {
		return fmt.Sprintf("%d copies run, %v", len(p.Sandboxes), err)
	}
	return ""
}

// TestFault03_KilledWhileKept: the daemon is killed before and after every step of
// what keeps and copies sandboxes; the next one comes to a legal state, the earlier
// snapshot is whole, and nothing that the sandbox did before is lost.
func TestFault03_KilledWhileKept(t *testing.T) {
	for _, c := range keepCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for at := 1; ; at++ {
				if !crashKeep(t, c, at) {
					if at < 3 {
						t.Fatalf("only %d boundaries were met", at)
					}
					t.Logf("%d boundaries", at-1)
					return
				}
			}
		})
	}
}

// crashKeep kills the daemon at the n-th boundary and tells whether it came that far.
func crashKeep(t *testing.T, c keepCase, at int) bool {
	w := newWorld(t)
	w.start()
	bystander := w.create(nacre.CreateRequest{})
	s := w.create(nacre.CreateRequest{Timeout: time.Hour})
	w.write(s.ID, "/f", "1")
	n := w.snapshot(s.ID, nacre.SnapshotRequest{})
	w.write(s.ID, "/f", "2")
	if c.paused {
		s = w.pause(s.ID)
	}
	w.crashAt(at)
	err := c.do(w, s, n)
	if err == nil { // a fork's snapshot is deleted behind the answer
		w.eventually("all is done", func() bool { return w.fake.Killed() || len(w.snapshots()[nacre.SnapshotFork]) == 0 })
	}
	crashed := w.fake.Killed()
	if err != nil && !crashed {
		t.Fatalf("at %d: %v", at, err)
	}
	w.afterCrash()
	where := fmt.Sprintf("killed at %d (%v)", at, err)
	w.settles(where)
	if got := w.get(bystander.ID); got.State != nacre.StateRunning || got.Machine != bystander.Machine {
		t.Fatalf("%s: a bystander is %+v", where, got)
	}
	if err == nil {
		if why := c.done(w, s, n); why != "" {
			t.Fatalf("%s: %s", where, why)
		}
	}
	w.holds(s.ID, where, c.holds...)
	f, ferr := w.svc.Fork(t.Context(), team, nacre.ForkRequest{Snapshot: n.ID})
	if ferr != nil || f[0].Err != nil {
		t.Fatalf("%s: the earlier snapshot: %v, %+v", where, ferr, f)
	}
	if got := w.read(f[0].Sandbox.ID, "/f"); got != "1" {
		t.Fatalf("%s: the earlier snapshot holds %q", where, got)
	}
	w.settles(where)
	w.stop()
	return crashed
}

// holds checks what a sandbox's file is, resuming it if need be.
func (w *world) holds(id nacre.SandboxID, where string, may ...string) {
	w.tb.Helper()
	got := w.get(id)
	is := ""
	switch got.State {
	case nacre.StatePaused:
		w.resume(id)
		is = w.read(id, "/f")
	case nacre.StateRunning:
		is = w.read(id, "/f")
	}
	for _, m := range may {
		if is == m {
			return
		}
	}
	w.tb.Fatalf("%s: the sandbox is %s (%s, %s) and holds %q, not one of %q", where, got.State, got.EndReason, got.Detail, is, may)
}

// TestFault27_KeepRaces: pauses, resumes, snapshots, restores, forks and a kill at
// once end in one legal state, and each is answered with what became of it.
func TestFault27_KeepRaces(t *testing.T) {
	w := newWorld(t)
	w.start()
	var oks atomic.Int32
	for round := range 15 {
		s := w.create(nacre.CreateRequest{})
		w.write(s.ID, "/f", "1")
		n := w.snapshot(s.ID, nacre.SnapshotRequest{})
		var wg sync.WaitGroup
		killed := atomic.Bool{}
		for i, try := range []func() error{
			func() error { _, err := w.svc.Pause(t.Context(), team, s.ID, nacre.PauseRequest{}); return err },
			func() error { _, _, err := w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{}); return err },
			func() error { _, err := w.svc.Snapshot(t.Context(), team, s.ID, nacre.SnapshotRequest{}); return err },
			func() error { _, err := w.svc.Restore(t.Context(), team, s.ID, n.ID); return err },
			func() error { return forkTwo(w, s, n) },
			func() error { return w.svc.Wake(t.Context(), s.ID) },
			func() error {
				if round%2 == 0 {
					return nil
				}
				err := w.svc.Kill(t.Context(), team, s.ID)
				killed.Store(err == nil)
				return err
			},
		} {
			for range 2 {
				wg.Go(func() {
					switch err := try(); nacre.ErrorCode(err) {
					case "", nacre.CodeConflict, nacre.CodeNotFound:
						if err == nil {
							oks.Add(1)
						}
					default:
						t.Errorf("operation %d: %v", i, err)
					}
				})
			}
		}
		wg.Wait()
		got := w.get(s.ID)
		if round%2 == 1 && got.State != nacre.StateEnded {
			t.Fatalf("killed, and %s", got.State)
		}
		if round%2 == 0 {
			w.holds(s.ID, "after a race", "1")
		}
	}
	w.settles("after the races")
	if oks.Load() == 0 {
		t.Fatal("nothing ever worked")
	}
}

// TestFault27_KillDuringAPause: it ends, and nothing of the half-done pause is left.
func TestFault27_KillDuringAPause(t *testing.T) {
	for _, at := range []string{"machine.snapshot", "runtime.restore"} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t)
			w.start()
			s := w.create(nacre.CreateRequest{})
			if at == "runtime.restore" {
				w.pause(s.ID)
			}
			hold, reached := make(chan struct{}), make(chan struct{})
			var once sync.Once
			w.host.SetHook(func(op string, _ nacre.MachineID) error {
				if op == at {
					once.Do(func() { close(reached) })
					<-hold
				}
				return nil
			})
			errs := make(chan error, 2)
			go func() {
				if at == "runtime.restore" {
					_, _, err := w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{})
					errs <- err
					return
				}
				_, err := w.svc.Pause(t.Context(), team, s.ID, nacre.PauseRequest{})
				errs <- err
			}()
			<-reached
			killed := make(chan error, 1)
			go func() { killed <- w.svc.Kill(t.Context(), team, s.ID) }()
			w.eventually("it is stopping", func() bool { return !ptr(w.get(s.ID)).Alive() })
			close(hold)
			if err := <-killed; err != nil {
				t.Fatal(err)
			}
			if err := <-errs; err == nil {
				t.Fatal("the other one was told that it worked")
			}
			if got := w.get(s.ID); got.EndReason != nacre.EndKilled {
				t.Fatalf("%+v", got)
			}
			w.settles("killed")
		})
	}
}

func ptr[T any](v T) *T { return &v }

// TestAnEndDuringAPause: a machine that ends by itself while it is paused takes its
// sandbox along, and says why.
func TestAnEndDuringAPause(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	w.host.SetHook(func(op string, id nacre.MachineID) error {
		if op == "machine.snapshot" && id == s.Machine {
			w.host.Machine(id).Crash(nacre.EndOOM, "memory")
			return nacre.Errorf(nacre.CodeNotFound, "the machine has ended")
		}
		return nil
	})
	if _, err := w.svc.Pause(t.Context(), team, s.ID, nacre.PauseRequest{}); err == nil {
		t.Fatal("it was paused")
	}
	w.eventually("it has ended", func() bool { return w.get(s.ID).State == nacre.StateEnded })
	w.settles("ended")
	if got := w.get(s.ID); got.EndReason != nacre.EndOOM {
		t.Fatalf("%+v", got)
	}
}

// TestFault03_KilledBetweenTheMachineAndItsEnd: the daemon is killed when a restore
// has told the old machine to end; the next daemon finds it ended, and the sandbox
// paused at the snapshot.
func TestFault03_KilledBetweenTheMachineAndItsEnd(t *testing.T) {
	for range 20 { // whoever finds it first
		w := newWorld(t)
		w.start()
		s := w.create(nacre.CreateRequest{})
		w.write(s.ID, "/f", "1")
		n := w.snapshot(s.ID, nacre.SnapshotRequest{})
		w.write(s.ID, "/f", "2")
		w.host.SetHook(func(op string, id nacre.MachineID) error {
			if op == "machine.stop" && id == s.Machine {
				w.crashAt(1)
				w.host.Machine(id).Crash(nacre.EndCrash, "killed")
			}
			return nil
		})
		if _, err := w.svc.Restore(t.Context(), team, s.ID, n.ID); err == nil {
			t.Fatal("it was restored")
		}
		w.host.SetHook(nil)
		w.afterCrash()
		w.settles("killed")
		w.holds(s.ID, "killed", "1")
		w.stop()
	}
}

// TestFault03_KilledWhileATemplateIsMadeWarm: at every step; nothing hidden goes on
// running, and the template is made warm by the next.
func TestFault03_KilledWhileATemplateIsMadeWarm(t *testing.T) {
	for at := 1; ; at++ {
		w := newWorld(t)
		w.start()
		tpl, err := w.db.ResolveTemplate(t.Context(), team, "base")
		if err != nil {
			t.Fatal(err)
		}
		tpl.Start, tpl.Ready = "echo warm", "true"
		w.crashAt(at)
		_, err = w.svc.PrepareWarm(t.Context(), tpl)
		crashed := w.fake.Killed()
		if err != nil && !crashed {
			t.Fatal(err)
		}
		w.afterCrash()
		w.settles(fmt.Sprintf("killed at %d", at))
		w.eventually("nothing hidden runs", func() bool {
			list, err := w.node.Machines(t.Context())
			return err == nil && len(list) == 0
		})
		if cur, err := w.db.ResolveTemplate(t.Context(), team, "base"); err != nil {
			t.Fatal(err)
		} else if tpl.Warm = cur.Warm; cur.Start == "" {
			tpl.Warm = ""
		}
		if tpl, err = w.svc.PrepareWarm(t.Context(), tpl); err != nil {
			t.Fatalf("killed at %d: %v", at, err)
		}
		if s := w.create(nacre.CreateRequest{}); s.BootPath != nacre.BootWarm {
			t.Fatalf("killed at %d: %+v", at, s)
		}
		if n := w.snapshots()[nacre.SnapshotWarm]; len(n) != 1 {
			t.Fatalf("killed at %d: %+v", at, n)
		}
		w.stop()
		if !crashed {
			t.Logf("%d boundaries", at-1)
			return
		}
	}
}

// TestWarmTemplate: what the start command left is kept once, and creates go on from
// it; it is made anew when what it was made of changed.
func TestWarmTemplate(t *testing.T) {
	w := newWorld(t)
	w.start()
	tpl, err := w.db.ResolveTemplate(t.Context(), team, "base")
	if err != nil {
		t.Fatal(err)
	}
	cold := w.create(nacre.CreateRequest{})
	tpl.Start, tpl.Ready = "sleep 1000", "true"
	tpl, err = w.svc.PrepareWarm(t.Context(), tpl)
	if err != nil || tpl.Warm == "" {
		t.Fatalf("%+v, %v", tpl, err)
	}
	s := w.create(nacre.CreateRequest{Env: map[string]string{"A": "1"}})
	if s.BootPath != nacre.BootWarm || s.Origin != tpl.Warm || s.TemplateID != tpl.ID || s.Parent != "" || s.Env["A"] != "1" || cold.BootPath != nacre.BootCold {
		t.Fatalf("%+v", s)
	}
	in, _ := w.host.Machine(s.Machine).Guest.Init()
	if !in.NewIdentity || in.Env["A"] != "1" {
		t.Fatalf("the guest was told %+v", in)
	}
	if big := w.create(nacre.CreateRequest{Resources: nacre.Resources{MemoryMiB: 128}}); big.BootPath != nacre.BootCold {
		t.Fatalf("of another size: %+v", big)
	}
	p := w.pause(s.ID)
	if p.Snapshot == tpl.Warm {
		t.Fatal("it is paused at the template")
	}
	w.resume(s.ID)
	page, err := w.svc.List(t.Context(), team, nacre.SandboxFilter{})
	if err != nil || len(page.Sandboxes) != 3 {
		t.Fatalf("the team sees %d sandboxes", len(page.Sandboxes))
	}
	again, err := w.svc.PrepareWarm(t.Context(), tpl)
	if err != nil || again.Warm != tpl.Warm {
		t.Fatalf("made twice: %+v, %v", again, err)
	}
	w.rules = func(c *control.Config) { c.Agent = "upgraded" }
	w.restart()
	w.settles("warm")
	old := tpl.Warm
	if tpl, err = w.svc.PrepareWarm(t.Context(), tpl); err != nil || tpl.Warm == old {
		t.Fatalf("with another agent it was not made anew: %+v, %v", tpl, err)
	}
	old = tpl.Warm
	tpl.Resources.MemoryMiB = 256
	tpl.Start, tpl.Ready = "echo warm", "true"
	tpl.Warm = old
	if tpl, err = w.svc.PrepareWarm(t.Context(), tpl); err != nil || tpl.Warm == old {
		t.Fatalf("not made anew: %+v, %v", tpl, err)
	}
	if n := w.snapshots(); len(n[nacre.SnapshotWarm]) != 1 {
		t.Fatalf("%+v", n)
	}
	if err := w.node.DeleteSnapshot(t.Context(), tpl.Warm); err != nil { // behind control's back
		t.Fatal(err)
	}
	if s := w.create(nacre.CreateRequest{}); s.BootPath != nacre.BootCold {
		t.Fatalf("without the snapshot: %+v", s)
	}
	tpl.Start = "exit 3"
	tpl.Ready = ""
	_, err = w.svc.PrepareWarm(t.Context(), tpl)
	wantCode(t, err, nacre.CodeConflict)
	if _, err := control.New(control.Config{Store: w.db, Templates: w.db, Node: w.node, Telemetry: w.node}); err != nil {
		t.Fatal(err)
	}
}
