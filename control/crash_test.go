package control_test

import (
	"context"
	"flag"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
	"github.com/nacrehq/nacre/node"
	"pgregory.net/rapid"
)

// settled tells what keeps records, machines, snapshots and the host from being one:
// nothing, when every record is running with a machine, paused at a snapshot or ended
// without either, and nothing is left.
func (w *world) settled() string {
	ctx := context.Background()
	p, err := w.svc.List(ctx, team, nacre.SandboxFilter{Limit: 1000})
	if err != nil {
		return err.Error()
	}
	list, err := w.node.Machines(ctx)
	if err != nil {
		return err.Error()
	}
	machines := map[nacre.SandboxID]nacre.MachineStatus{}
	for _, m := range list {
		machines[m.Sandbox] = m
	}
	kept, why := w.settledSnapshots(ctx)
	if why != "" {
		return why
	}
	var keep []nacre.MachineID
	held := map[nacre.SnapshotID]bool{}
	for _, s := range p.Sandboxes {
		m, has := machines[s.ID]
		delete(machines, s.ID)
		switch {
		case s.State == nacre.StateRunning && has && m.Exit == nil && m.Machine == s.Machine:
			if _, ok := w.node.Route(s.ID); !ok {
				return fmt.Sprintf("%s has no route", s.ID)
			}
			keep = append(keep, m.Machine)
		case s.State == nacre.StatePaused && !has && s.Machine == "" && !s.PausedAt.IsZero():
			if _, ok := kept[s.Snapshot]; !ok {
				return fmt.Sprintf("%s is paused at %s, which is not there", s.ID, s.Snapshot)
			}
			held[s.Snapshot] = true
		case s.State == nacre.StateEnded && !has:
			if s.EndReason == "" || s.Detail == "" || s.EndedAt.IsZero() {
				return fmt.Sprintf("%s ended without saying why: %+v", s.ID, s)
			}
		default:
			return fmt.Sprintf("%s is %s, its machine %+v", s.ID, s.State, m)
		}
	}
	if len(machines) > 0 {
		return fmt.Sprintf("machines without a record: %+v", machines)
	}
	for id, n := range kept {
		if (n.Kind == nacre.SnapshotPause || n.Kind == nacre.SnapshotFork) && !held[id] {
			return fmt.Sprintf("nobody needs snapshot %+v", n)
		}
	}
	if l := w.host.Leaks(keep...); len(l) > 0 {
		return fmt.Sprintf("left behind: %v", l)
	}
	return ""
}

// settledSnapshots returns the snapshots when each record is ready and has its files,
// and each file its record.
func (w *world) settledSnapshots(ctx context.Context) (map[nacre.SnapshotID]nacre.Snapshot, string) {
	rows, err := w.db.ListSnapshots(ctx, nacre.SnapshotFilter{AllTeams: true, Limit: 1000,
		Kinds: []nacre.SnapshotKind{nacre.SnapshotUser, nacre.SnapshotPause, nacre.SnapshotFork, nacre.SnapshotWarm}})
	if err != nil {
		return nil, err.Error()
	}
	files, err := w.node.Snapshots(ctx)
	if err != nil {
		return nil, err.Error()
	}
	out := map[nacre.SnapshotID]nacre.Snapshot{}
	for _, n := range rows.Snapshots {
		if out[n.ID] = n; n.State != nacre.SnapshotReady {
			return nil, fmt.Sprintf("snapshot %s is %s", n.ID, n.State)
		}
	}
	for _, m := range files {
		if _, ok := out[m.ID]; !ok {
			return nil, fmt.Sprintf("snapshot %s has no record", m.ID)
		}
	}
	if len(files) != len(out) {
		return nil, fmt.Sprintf("%d records of snapshots, %d snapshots", len(out), len(files))
	}
	return out, ""
}

func (w *world) settles(what string) {
	w.tb.Helper()
	why := ""
	for end := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		if why = w.settled(); why == "" {
			return
		}
		if time.Now().After(end) {
			w.tb.Fatalf("%s: not settled within a minute: %s", what, why)
		}
	}
}

// TestFault03_KilledAtEachBoundary: the daemon is killed before and after every
// step of a create and of a kill, with and without a standby; the next one comes
// to a legal state, nothing is left, and what was promised is kept.
func TestFault03_KilledAtEachBoundary(t *testing.T) {
	for _, c := range []struct {
		name    string
		standby int
		early   bool // the record is written before the machine is there
		kill    bool
	}{{name: "create"}, {name: "create with an early record", early: true}, {name: "create from a standby", standby: 1},
		{name: "create from a standby with an early record", standby: 1, early: true}, {name: "kill", kill: true}} {
		t.Run(c.name, func(t *testing.T) {
			for at := 1; ; at++ {
				if w := crashOnce(t, at, c.standby, c.early, c.kill); !w {
					if at < 7 {
						t.Fatalf("only %d boundaries were met", at)
					}
					t.Logf("%d boundaries", at-1)
					return
				}
			}
		})
	}
}

// crashOnce kills the daemon at the n-th boundary and tells whether it came that far.
func crashOnce(t *testing.T, at, standby int, early, kill bool) bool {
	w := newWorld(t)
	if early {
		w.rules = func(c *control.Config) { c.RecordAfter = -1 }
	}
	w.tweak = func(c *node.Config) {
		c.Standby = node.Standby{Count: standby, Quiet: 50 * time.Millisecond, Patience: time.Hour}
	}
	w.start()
	bystander := w.create(nacre.CreateRequest{})
	var victim nacre.Sandbox
	if kill {
		victim = w.create(nacre.CreateRequest{})
	}
	if standby > 0 {
		w.node.KeepReady(node.Shape{Build: build, Resources: bystander.Resources})
		w.eventually("a standby", func() bool { c, _ := w.node.Capacity(t.Context()); return c.Standbys == 1 })
	}
	w.crashAt(at)
	var created nacre.Sandbox
	var err error
	if kill {
		err = w.svc.Kill(t.Context(), team, victim.ID)
	} else {
		created, err = w.svc.Create(t.Context(), team, nacre.CreateRequest{Env: map[string]string{"A": "b"}})
	}
	crashed := w.fake.Killed()
	w.tweak = nil
	w.afterCrash()
	w.settles(fmt.Sprintf("killed at %d", at))
	if got := w.get(bystander.ID); got.State != nacre.StateRunning || got.Machine != bystander.Machine {
		t.Fatalf("killed at %d: a bystander is %+v", at, got)
	}
	switch {
	case err == nil && kill:
		if got := w.get(victim.ID); got.State != nacre.StateEnded {
			t.Fatalf("killed at %d: the kill was answered, the sandbox is %s", at, got.State)
		}
	case err == nil:
		if standby > 0 && created.BootPath != nacre.BootStandby {
			t.Fatalf("killed at %d: it was made %s", at, created.BootPath)
		}
		if got := w.get(created.ID); got.State != nacre.StateRunning || got.Machine != created.Machine {
			t.Fatalf("killed at %d: the create was answered, the sandbox is %+v", at, got)
		}
	case kill:
		if got := w.get(victim.ID); got.State == nacre.StateEnded && got.EndReason != nacre.EndKilled {
			t.Fatalf("killed at %d: %+v", at, got)
		}
	}
	if s := w.create(nacre.CreateRequest{}); s.State != nacre.StateRunning {
		t.Fatalf("killed at %d: no create works after it", at)
	}
	w.stop()
	return crashed
}

// TestFault01_KilledWithManyRunning: every sandbox is taken back with its machine,
// its deadline and its log, and the first request is answered within 2 s.
func TestFault01_KilledWithManyRunning(t *testing.T) {
	w := newWorld(t)
	w.start()
	var all []nacre.Sandbox
	for range 50 {
		all = append(all, w.create(nacre.CreateRequest{Timeout: time.Hour, Secure: true}))
	}
	gone := all[49]
	w.crashAt(1)
	w.fake.Kill()
	w.stop()
	w.host.Machine(gone.Machine).Crash(nacre.EndOOM, "memory") // while nobody watches
	begin := time.Now()
	w.afterCrash()
	for _, s := range all[:49] {
		agent, err := w.node.Agent(t.Context(), s.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := agent.Processes().List(t.Context()); err != nil {
			t.Fatalf("the agent of %s: %v", s.ID, err)
		}
		if got := w.get(s.ID); got.State != nacre.StateRunning || got.Machine != s.Machine || !got.Deadline.Equal(s.Deadline) {
			t.Fatalf("%+v, was %+v", got, s)
		}
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("the first round of requests took %s", d)
	}
	w.settles("after the restart")
	if got := w.get(gone.ID); got.EndReason != nacre.EndOOM || got.Detail != "memory" {
		t.Fatalf("%+v", got)
	}
}

// TestFault02_UpgradeUnderLoad: daemons come and go while sandboxes are created and
// killed; what was answered holds, and no sandbox ends that nobody ended.
func TestFault02_UpgradeUnderLoad(t *testing.T) {
	w := newWorld(t)
	w.start()
	kept := map[nacre.SandboxID]nacre.MachineID{}
	for round := range 4 {
		svc := w.svc
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var wg sync.WaitGroup
		var made atomic.Int32
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					s, err := svc.Create(ctx, team, nacre.CreateRequest{Timeout: time.Hour})
					if err != nil {
						continue // the daemon is going
					}
					if made.Add(1)%2 == 0 {
						_ = svc.Kill(ctx, team, s.ID)
						continue
					}
					mu.Lock()
					kept[s.ID] = s.Machine
					mu.Unlock()
				}
			})
		}
		w.eventually("some are made", func() bool { return made.Load() > 10 })
		if round%2 == 0 {
			w.crashAt(7)
			w.eventually("it is killed", w.fake.Killed)
		}
		cancel()
		wg.Wait()
		w.afterCrash()
		w.settles("after an upgrade")
		for id, m := range kept {
			if got := w.get(id); got.State != nacre.StateRunning || got.Machine != m {
				t.Fatalf("round %d: %+v", round, got)
			}
		}
	}
}

// TestFault07_TheMachineIsGone: the node is believed over the store.
func TestFault07_TheMachineIsGone(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.create(nacre.CreateRequest{})
	w.fake.Kill()
	w.stop()
	w.host.Vanish()
	w.start()
	w.settles("after the restart")
	if got := w.get(s.ID); got.State != nacre.StateEnded || got.EndReason != nacre.EndCrash {
		t.Fatalf("%+v", got)
	}

	s = w.create(nacre.CreateRequest{})
	if err := w.node.Stop(t.Context(), s.ID); err != nil { // behind control's back
		t.Fatal(err)
	}
	w.restart()
	w.settles("after the restart")
	if got := w.get(s.ID); got.EndReason != nacre.EndNodeLost {
		t.Fatalf("%+v", got)
	}

	spec := nacre.StartSpec{Sandbox: nacre.NewSandboxID(), Team: team, Build: build, Resources: s.Resources}
	if _, err := w.node.Start(t.Context(), spec); err != nil { // nobody's
		t.Fatal(err)
	}
	w.restart()
	w.settles("after the restart")
}

// TestAnyHistory: whatever mix of creates, kills, deadlines, crashes of machines and
// restarts and kills of the daemon happens, records and machines agree with a simple
// model of it.
func TestAnyHistory(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f != nil && f.Value.String() == f.DefValue {
		if err := f.Value.Set("15"); err != nil { // each starts many daemons
			t.Fatal(err)
		}
		defer func() { _ = f.Value.Set(f.DefValue) }()
	}
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.start()
		defer func() { w.stop() }()
		alive := map[nacre.SandboxID]nacre.Sandbox{}
		ended := map[nacre.SandboxID]nacre.EndReason{}
		pick := func(rt *rapid.T) (nacre.Sandbox, bool) {
			ids := []nacre.SandboxID{}
			for id := range alive {
				ids = append(ids, id)
			}
			if len(ids) == 0 {
				rt.Skip("none is alive")
			}
			s, ok := alive[rapid.SampledFrom(ids).Draw(rt, "sandbox")]
			return s, ok
		}
		gone := func(s nacre.Sandbox, reason nacre.EndReason) {
			delete(alive, s.ID)
			ended[s.ID] = reason
		}
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(rt *rapid.T) {
				s := w.create(nacre.CreateRequest{Timeout: time.Hour})
				alive[s.ID] = s
			},
			"kill": func(rt *rapid.T) {
				s, _ := pick(rt)
				if err := w.svc.Kill(t.Context(), team, s.ID); err != nil {
					rt.Fatal(err)
				}
				gone(s, nacre.EndKilled)
			},
			"kill an ended one": func(rt *rapid.T) {
				for id := range ended {
					if err := w.svc.Kill(t.Context(), team, id); !nacre.IsCode(err, nacre.CodeNotFound) {
						rt.Fatal(err)
					}
					return
				}
			},
			"timeout": func(rt *rapid.T) {
				s, _ := pick(rt)
				if _, err := w.svc.SetDeadline(t.Context(), team, s.ID, time.Millisecond, false); err != nil {
					rt.Fatal(err)
				}
				gone(s, nacre.EndTimeout)
			},
			"crash": func(rt *rapid.T) {
				s, _ := pick(rt)
				w.host.Machine(s.Machine).Crash(nacre.EndOOM, "memory")
				gone(s, nacre.EndOOM)
			},
			"restart": func(rt *rapid.T) { w.restart() },
			"kill -9": func(rt *rapid.T) { w.afterCrash() },
			"kill -9 during a create": func(rt *rapid.T) {
				w.crashAt(rapid.IntRange(1, 14).Draw(rt, "boundary"))
				s, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{Timeout: time.Hour})
				w.afterCrash()
				if err == nil {
					alive[s.ID] = s
				}
			},
			"kill -9 during a kill": func(rt *rapid.T) {
				s, _ := pick(rt)
				w.crashAt(rapid.IntRange(1, 12).Draw(rt, "boundary"))
				err := w.svc.Kill(t.Context(), team, s.ID)
				w.afterCrash()
				w.settles("after the kill")
				if got := w.get(s.ID); err == nil || got.State == nacre.StateEnded {
					gone(s, nacre.EndKilled)
				}
			},
			"": func(rt *rapid.T) {
				for id, s := range alive {
					if got := w.get(id); got.State != nacre.StateRunning || got.Machine != s.Machine {
						rt.Fatalf("alive: %+v, was %+v", got, s)
					}
				}
				for id, reason := range ended {
					w.eventually(fmt.Sprintf("%s has ended (%s)", id, reason), func() bool { return w.get(id).State == nacre.StateEnded })
					if got := w.get(id); got.State != nacre.StateEnded || got.EndReason != reason {
						rt.Fatalf("ended for %q: %+v", reason, got)
					}
				}
				w.settles("history")
			},
		})
	})
}
