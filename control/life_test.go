package control_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
)

// TestDeadlines: a sandbox ends within a second of its deadline, whether it was set
// at the create, moved, or found by a restarted daemon.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		state := func(s nacre.Sandbox) nacre.State { return w.get(s.ID).State }
		short := w.create(nacre.CreateRequest{Timeout: 10 * time.Second})
		shortened := w.create(nacre.CreateRequest{Timeout: time.Hour})
		extended := w.create(nacre.CreateRequest{Timeout: 5 * time.Second})
		if _, err := w.svc.SetDeadline(t.Context(), team, shortened.ID, 10*time.Second, false); err != nil {
			t.Fatal(err)
		}
		if _, err := w.svc.SetDeadline(t.Context(), team, extended.ID, time.Minute, true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9500 * time.Millisecond)
		for _, s := range []nacre.Sandbox{short, shortened, extended} {
			if st := state(s); st != nacre.StateRunning {
				t.Fatalf("%s too early", st)
			}
		}
		time.Sleep(time.Second)
		for _, s := range []nacre.Sandbox{short, shortened} {
			got := w.get(s.ID)
			if got.State != nacre.StateEnded || got.EndReason != nacre.EndTimeout || got.Detail == "" {
				t.Fatalf("after its time: %+v", got)
			}
			if late := got.EndedAt.Sub(got.Deadline); late < 0 || late > time.Second {
				t.Fatalf("it ended %s after its deadline", late)
			}
		}
		w.restart()
		time.Sleep(40 * time.Second)
		if st := state(extended); st != nacre.StateRunning {
			t.Fatalf("%s too early after a restart", st)
		}
		w.stop()
		time.Sleep(time.Minute) // its time ends while nobody is there
		w.start()
		time.Sleep(time.Second)
		if got := w.get(extended.ID); got.EndReason != nacre.EndTimeout {
			t.Fatalf("after the restart: %+v", got)
		}
		if l := w.host.Leaks(); len(l) > 0 {
			t.Fatalf("left behind: %v", l)
		}
	})
}

// lateStore commits, and is a while before it says so.
type lateStore struct {
	nacre.SandboxStore
	late *atomic.Int64
}

func (s lateStore) Update(ctx context.Context, tm nacre.TeamID, id nacre.SandboxID, fn func(*nacre.Sandbox) ([]nacre.Event, error)) (nacre.Sandbox, error) {
	rec, err := s.SandboxStore.Update(ctx, tm, id, fn)
	time.Sleep(time.Duration(s.late.Load()))
	return rec, err
}

// TestDeadlinesOfASlowStore: a deadline is when the record says, whatever time its
// commit took.
func TestDeadlinesOfASlowStore(t *testing.T) {
	for _, move := range []string{"set", "edited", "resumed"} {
		t.Run(move, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var late atomic.Int64
				w := newWorld(t)
				w.rules = func(c *control.Config) { c.Store = lateStore{c.Store, &late} }
				w.start()
				ten, first := 10*time.Second, time.Hour
				if move == "resumed" {
					first = time.Second // a resume makes no deadline earlier
				}
				s := w.create(nacre.CreateRequest{Timeout: first})
				if move == "resumed" {
					w.pause(s.ID)
				}
				late.Store(int64(3 * time.Second))
				var err error
				switch move {
				case "set":
					_, err = w.svc.SetDeadline(t.Context(), team, s.ID, ten, false)
				case "edited":
					_, err = w.svc.Edit(t.Context(), team, s.ID, nacre.EditRequest{Timeout: &ten})
				case "resumed":
					_, _, err = w.svc.Resume(t.Context(), team, s.ID, nacre.ResumeRequest{Timeout: ten})
				}
				if err != nil {
					t.Fatal(err)
				}
				late.Store(0)
				at := w.get(s.ID).Deadline
				time.Sleep(time.Until(at) - time.Millisecond)
				if st := w.get(s.ID).State; st != nacre.StateRunning {
					t.Fatalf("%s too early", st)
				}
				time.Sleep(time.Second)
				if got := w.get(s.ID); got.State != nacre.StateEnded || got.EndReason != nacre.EndTimeout {
					t.Fatalf("a second after its time it is %s", got.State)
				}
			})
		})
	}
}

// TestADeadlineMovedBeforeTheRosterIsLoaded: the first request after a restart may
// be this one.
func TestADeadlineMovedBeforeTheRosterIsLoaded(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{Timeout: time.Hour})
	svc, err := control.New(control.Config{Store: w.db, Templates: w.db, Node: w.node, Telemetry: w.node})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := svc.SetDeadline(t.Context(), team, s.ID, time.Millisecond, false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = svc.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	w.eventually("it has ended", func() bool { return w.get(s.ID).State == nacre.StateEnded })
}

// TestFault24_ClockStep: a wall clock that is set an hour forward or back ends no
// sandbox early and keeps none alive, and the deadlines that clients see move along.
func TestFault24_ClockStep(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		t.Run(step.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var offset atomic.Int64
				w := newWorld(t)
				w.clock = func() time.Time { return time.Now().Add(time.Duration(offset.Load())).Round(0) }
				w.start()
				s := w.create(nacre.CreateRequest{Timeout: 5 * time.Minute})
				time.Sleep(time.Minute)
				offset.Store(int64(step))
				time.Sleep(10 * time.Second)
				got := w.get(s.ID)
				if got.State != nacre.StateRunning {
					t.Fatalf("the step ended it: %+v", got)
				}
				left := got.Deadline.Sub(w.clock())
				if want := 5*time.Minute - 70*time.Second; (left - want).Abs() > time.Second {
					t.Fatalf("the record leaves it %s, want %s", left, want)
				}
				w.restart() // the next process reads the moved deadline
				time.Sleep(3*time.Minute + 40*time.Second)
				if st := w.get(s.ID).State; st != nacre.StateRunning {
					t.Fatalf("%s too early", st)
				}
				time.Sleep(12 * time.Second)
				if st := w.get(s.ID).State; st != nacre.StateEnded {
					t.Fatalf("%s after its time", st)
				}
			})
		})
	}
}

// TestExits: a machine that ends by itself takes its sandbox along and says why.
func TestExits(t *testing.T) {
	w := newWorld(t)
	w.start()
	for _, reason := range []nacre.EndReason{nacre.EndOOM, nacre.EndCrash} {
		s := w.create(nacre.CreateRequest{})
		w.host.Machine(s.Machine).Crash(reason, "for people: "+string(reason))
		w.eventually("the sandbox has ended", func() bool { return w.get(s.ID).State == nacre.StateEnded })
		got := w.get(s.ID)
		if got.EndReason != reason || got.Detail != "for people: "+string(reason) {
			t.Fatalf("record: %+v", got)
		}
		ev := w.events(s.ID)
		if last := ev[len(ev)-1]; last.Kind != nacre.EventEnded || last.Data["reason"] != string(reason) || last.Data["detail"] != got.Detail {
			t.Fatalf("event: %+v", last)
		}
		wantCode(t, w.svc.Kill(t.Context(), team, s.ID), nacre.CodeNotFound)
	}
	w.eventually("nothing is left", func() bool { return len(w.host.Leaks()) == 0 })
}

func (w *world) events(id nacre.SandboxID) []nacre.Event {
	w.tb.Helper()
	ev, err := w.db.Events(context.Background(), nacre.EventFilter{TeamID: team, SandboxID: id})
	if err != nil {
		w.tb.Fatal(err)
	}
	return ev
}

// TestFault27_KillRaces: double kills, kills of what is being created, and creates
// that are killed at once; one wins each time, and nothing is left.
func TestFault27_KillRaces(t *testing.T) {
	w := newWorld(t)
	w.start()
	t.Run("double kill", func(t *testing.T) {
		for range 20 {
			s := w.create(nacre.CreateRequest{})
			var wins atomic.Int32
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					err := w.svc.Kill(t.Context(), team, s.ID)
					if err == nil {
						wins.Add(1)
					} else if !nacre.IsCode(err, nacre.CodeNotFound) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if wins.Load() != 1 {
				t.Fatalf("%d kills won", wins.Load())
			}
			kinds := []nacre.EventKind{}
			for _, e := range w.events(s.ID) {
				kinds = append(kinds, e.Kind)
			}
			if want := []nacre.EventKind{nacre.EventCreated, nacre.EventRunning, nacre.EventEnded}; !slices.Equal(kinds, want) {
				t.Fatalf("events: %v", kinds)
			}
		}
	})
	t.Run("kill while it is created", func(t *testing.T) {
		for _, at := range []string{"images.prepare", "runtime.start", "agent.init"} {
			hold, reached := make(chan struct{}), make(chan struct{})
			var once sync.Once
			w.host.SetHook(func(op string, _ nacre.MachineID) error {
				if op == at {
					once.Do(func() { close(reached) })
					<-hold
				}
				return nil
			})
			errs := make(chan error, 1)
			go func() { _, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{}); errs <- err }()
			<-reached
			var id nacre.SandboxID
			w.eventually("the record is written", func() bool {
				p, err := w.svc.List(t.Context(), team, nacre.SandboxFilter{States: []nacre.State{nacre.StateCreating}})
				if err == nil && len(p.Sandboxes) == 1 {
					id = p.Sandboxes[0].ID
				}
				return id != ""
			})
			killed := make(chan error, 1)
			go func() { killed <- w.svc.Kill(t.Context(), team, id) }()
			w.eventually("the kill is decided", func() bool { s := w.getAny(id); return !s.Alive() })
			close(hold)
			wantCode(t, <-errs, nacre.CodeConflict)
			if err := <-killed; err != nil {
				t.Fatal(err)
			}
			if got := w.get(id); got.State != nacre.StateEnded || got.EndReason != nacre.EndKilled {
				t.Fatalf("record: %+v", got)
			}
			w.host.SetHook(nil)
		}
	})
	t.Run("timeout against kill", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				s, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{Timeout: 20 * time.Millisecond})
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Until(s.Deadline))
				if err := w.svc.Kill(t.Context(), team, s.ID); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
	w.eventually("all have ended", func() bool {
		p, err := w.svc.List(t.Context(), team, nacre.SandboxFilter{States: []nacre.State{nacre.StateCreating, nacre.StateRunning, nacre.StateStopping}})
		return err == nil && len(p.Sandboxes) == 0
	})
	w.eventually("nothing is left", func() bool { return len(w.host.Leaks()) == 0 })
}

func (w *world) getAny(id nacre.SandboxID) nacre.Sandbox {
	s, err := w.db.Get(context.Background(), team, id)
	if err != nil {
		w.tb.Error(err)
	}
	return s
}

// TestTheClientGoesAway: a create whose caller is gone is finished or taken back.
func TestTheClientGoesAway(t *testing.T) {
	w := newWorld(t)
	w.start()
	for _, at := range []string{"images.prepare", "network.acquire", "runtime.start", "agent.healthy", "agent.init"} {
		ctx, cancel := context.WithCancel(t.Context())
		w.host.SetHook(func(op string, _ nacre.MachineID) error {
			if op == at {
				cancel()
			}
			return nil
		})
		s, err := w.svc.Create(ctx, team, nacre.CreateRequest{})
		w.host.SetHook(nil)
		if err == nil {
			if err := w.svc.Kill(t.Context(), team, s.ID); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
	}
	p, err := w.svc.List(t.Context(), team, nacre.SandboxFilter{})
	if err != nil || len(p.Sandboxes) != 5 {
		t.Fatalf("%d records, %v", len(p.Sandboxes), err)
	}
	for _, s := range p.Sandboxes {
		if s.State != nacre.StateEnded || s.Detail == "" {
			t.Fatalf("record: %+v", s)
		}
	}
	if l := w.host.Leaks(); len(l) > 0 {
		t.Fatalf("left behind: %v", l)
	}
}

// TestFault21_QuotaUnderARush: exactly as many as may, however many come at once.
func TestFault21_QuotaUnderARush(t *testing.T) {
	w := newWorld(t)
	w.limits.MaxPerTeam = 10
	w.start()
	var ok, full atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			switch _, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{}); nacre.ErrorCode(err) {
			case "":
				ok.Add(1)
			case nacre.CodeExhausted:
				full.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if ok.Load() != 10 || full.Load() != 40 {
		t.Fatalf("%d created, %d refused", ok.Load(), full.Load())
	}
}

// TestFault43_AllowListChangesWhileItRuns: the change is in force, in the record,
// and after a restart.
func TestFault43_AllowListChangesWhileItRuns(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{Network: nacre.NetworkPolicy{PrivateTraffic: true, MaskRequestHost: "localhost"}})
	p := nacre.NetworkPolicy{DenyOut: []string{"0.0.0.0/0"}, AllowOut: []string{"1.1.1.1"}}
	if err := w.svc.SetNetwork(t.Context(), team, s.ID, p); err != nil {
		t.Fatal(err)
	}
	wantCode(t, w.svc.SetNetwork(t.Context(), team, s.ID, nacre.NetworkPolicy{AllowOut: []string{"nope"}}), nacre.CodeInvalid)
	for range 2 {
		got := w.get(s.ID).Network
		if !slices.Equal(got.AllowOut, p.AllowOut) || !slices.Equal(got.DenyOut, p.DenyOut) || !got.PrivateTraffic || got.MaskRequestHost != "localhost" {
			t.Fatalf("record: %+v", got)
		}
		if e, _ := w.host.Policy(s.Machine); fmt.Sprint(e.Allow, e.Deny) != "[1.1.1.1/32] [0.0.0.0/0]" {
			t.Fatalf("in force: %+v", e)
		}
		w.restart()
	}
	if err := w.svc.Kill(t.Context(), team, s.ID); err != nil {
		t.Fatal(err)
	}
	wantCode(t, w.svc.SetNetwork(t.Context(), team, s.ID, p), nacre.CodeNotFound)
}

// TestLogsAndMetricsOutliveTheSandbox: and end with its record.
func TestLogsAndMetricsOutliveTheSandbox(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	w.host.Machine(s.Machine).Guest.Log(nacre.LogStdout, "hello", nil)
	w.eventually("the line is there", func() bool {
		l, err := w.svc.Logs(t.Context(), team, s.ID, nacre.LogQuery{})
		return err == nil && len(l) == 1
	})
	if err := w.svc.Kill(t.Context(), team, s.ID); err != nil {
		t.Fatal(err)
	}
	if l, err := w.svc.Logs(t.Context(), team, s.ID, nacre.LogQuery{}); err != nil || len(l) != 1 || l[0].Message != "hello" {
		t.Fatalf("logs: %+v, %v", l, err)
	}
	if _, err := w.svc.Metrics(t.Context(), team, s.ID, time.Time{}, time.Time{}); err != nil {
		t.Fatal(err)
	}
}

func TestTemplates(t *testing.T) {
	w := newWorld(t)
	w.start()
	mine := nacre.Template{ID: "t0000000000000000002", TeamID: team, Names: []string{"mine"}, Public: true, Build: build}
	if err := w.db.PutTemplate(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"base", "t0000000000000000001", "base"} {
		w.create(nacre.CreateRequest{Template: name})
	}
	last, err := w.db.LastEvent(t.Context())
	if err == nil {
		err = w.db.FoldUsage(t.Context(), nacre.UsageMark{}, nacre.UsageMark{Seq: last}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	list, err := w.svc.Templates(t.Context(), team)
	if err != nil || len(list) != 2 || list[0].ID != mine.ID {
		t.Fatalf("templates: %+v, %v", list, err)
	}
	// By whichever of its names, and nobody else's.
	if n := list[1].Use; list[0].Use != (nacre.TemplateUse{}) || n.Count != 3 || n.Last.IsZero() {
		t.Errorf("used: %+v", list)
	}
	if list, err = w.svc.Templates(t.Context(), "another"); err != nil || len(list) != 2 || list[1].Use != (nacre.TemplateUse{}) {
		t.Errorf("another team: %+v, %v", list, err)
	}
}

// TestPurge: records that ended long ago are deleted.
func TestPurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		s := w.create(nacre.CreateRequest{})
		if err := w.svc.Kill(t.Context(), team, s.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * 24 * time.Hour)
		w.get(s.ID)
		time.Sleep(25*time.Hour + time.Minute) // purges are hourly, and what they write puts them off a little
		_, err := w.svc.Get(t.Context(), team, s.ID)
		wantCode(t, err, nacre.CodeNotFound)
	})
}
