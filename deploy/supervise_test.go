package deploy

import (
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// until waits for a deployment to be as told.
func (w *world) until(what string, id nacre.DeploymentID, is func(nacre.Deployment) bool) nacre.Deployment {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		d, err := w.db.GetDeployment(w.t.Context(), w.team, string(id))
		if err != nil {
			w.t.Fatal(err)
		}
		if is(d) {
			return d
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s: %+v", what, d)
		}
	}
}

// lose ends a sandbox for a reason.
func (w *world) lose(id nacre.SandboxID, why nacre.EndReason) {
	w.t.Helper()
	_, err := w.db.Update(w.t.Context(), w.team, id, func(s *nacre.Sandbox) ([]nacre.Event, error) {
		s.EndReason = why
		return nil, s.Move(nacre.StateEnded)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.end(id)
}

func healthyAfter(restarts int) func(nacre.Deployment) bool {
	return func(d nacre.Deployment) bool { return d.State == nacre.DeploymentLive && d.Restarts == restarts }
}

// TestCommandIsStartedAgain: when it ends, and when it runs but is not healthy.
func TestCommandIsStartedAgain(t *testing.T) {
	w := newWorld(t)
	live := w.deploy(nacre.Deployment{Name: "shop", Source: w.box().ID, Start: "serve", Health: "/up"})
	w.end(live.Sandbox)
	got := w.until("its command ended", live.ID, healthyAfter(1))
	if got.Sandbox != live.Sandbox || got.Preview != live.Preview || got.Detail != "" {
		t.Errorf("%+v", got)
	}
	w.mu.Lock()
	w.serving[live.Sandbox] = "serve sick"
	w.mu.Unlock()
	w.until("its command is sick", live.ID, healthyAfter(2))
	if w.starts != 3 {
		t.Errorf("it was started %d times", w.starts)
	}
}

// TestCommandThatKeepsEnding: it is told why, tried at longer and longer intervals, and
// may be deployed anew meanwhile.
func TestCommandThatKeepsEnding(t *testing.T) {
	w := newWorld(t)
	source := w.box()
	live := w.deploy(nacre.Deployment{Name: "shop", Source: source.ID, Start: "serve"})
	_, err := w.db.UpdateDeployment(t.Context(), w.team, live.ID, func(d *nacre.Deployment) error { d.Start = "exit 7"; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := w.d.Close(); err != nil {
		t.Fatal(err)
	}
	w.end(live.Sandbox)
	w.start()
	if err := w.d.recover(t.Context()); err != nil { // a restart of the server takes it up
		t.Fatal(err)
	}
	bad := w.until("it keeps ending", live.ID, func(d nacre.Deployment) bool { return d.State == nacre.DeploymentUnhealthy && d.Restarts >= 3 })
	if !strings.Contains(bad.Detail, "status 7") {
		t.Errorf("%+v", bad)
	}
	w.d.mu.Lock()
	s := w.d.kept[live.ID]
	w.d.mu.Unlock()
	again := w.deploy(nacre.Deployment{ID: live.ID, Source: source.ID, Start: "serve 2"})
	if again.State != nacre.DeploymentLive || again.Restarts != 0 || again.Preview != live.Preview {
		t.Errorf("%+v", again)
	}
	<-s.done
	if s.pause < 8*time.Millisecond { // a millisecond, doubled by each
		t.Errorf("the pause is %v", s.pause)
	}
}

// TestMachineIsLost: the sandbox is made again of the files that were kept, under the
// same name, which nobody takes meanwhile; without files it is said.
func TestMachineIsLost(t *testing.T) {
	w := newWorld(t)
	live := w.deploy(nacre.Deployment{Name: "shop", Source: w.box().ID, Start: "serve", Env: map[string]string{"A": "b"}})
	w.hold = make(chan struct{})
	w.lose(live.Sandbox, nacre.EndOOM)
	w.until("its machine is lost", live.ID, func(d nacre.Deployment) bool { return d.State == nacre.DeploymentUnhealthy })
	thief := w.box()
	err := w.db.InsertPreview(t.Context(), nacre.Preview{ID: nacre.NewPreviewID(), TeamID: w.team, Sandbox: thief.ID, Port: 1, Slug: "shop"})
	if !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("somebody takes the name meanwhile: %v", err)
	}
	close(w.hold)
	got := w.until("it is made again", live.ID, healthyAfter(1))
	p, err := w.db.GetPreview(t.Context(), w.team, live.Preview)
	if got.Sandbox == live.Sandbox || err != nil || p.Sandbox != got.Sandbox || w.last.Env["A"] != "b" || !w.last.AlwaysOn || w.copies(live.ID) != 1 {
		t.Errorf("%+v %+v %v %+v", got, p, err, w.last)
	}
	if err := w.DeleteSnapshot(t.Context(), w.team, live.Snapshot); err != nil {
		t.Fatal(err)
	}
	w.lose(got.Sandbox, nacre.EndCrash)
	gone := w.until("its files are gone", live.ID, func(d nacre.Deployment) bool { return d.State == nacre.DeploymentFailed })
	if !strings.Contains(gone.Detail, "deploy it again") {
		t.Errorf("%+v", gone)
	}
}

// TestOwnerDecides: what its owner paused or ended is left alone.
func TestOwnerDecides(t *testing.T) {
	w := newWorld(t)
	live := w.deploy(nacre.Deployment{Name: "shop", Source: w.box().ID, Start: "serve"})
	w.d.mu.Lock()
	s := w.d.kept[live.ID]
	w.d.mu.Unlock()
	move := func(states ...nacre.State) {
		for _, to := range states {
			_, err := w.db.Update(t.Context(), w.team, live.Sandbox, func(s *nacre.Sandbox) ([]nacre.Event, error) { return nil, s.Move(to) })
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	move(nacre.StatePausing, nacre.StatePaused)
	w.end(live.Sandbox)
	seen := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.dials
	}
	five := seen() + 5
	w.until("it was looked at", live.ID, func(nacre.Deployment) bool { return seen() >= five })
	if w.starts != 1 {
		t.Error("a paused one was started")
	}
	w.lose(live.Sandbox, nacre.EndKilled)
	<-s.done
	if got := w.until("it is killed", live.ID, func(nacre.Deployment) bool { return true }); got.Restarts != 0 || w.copies(live.ID) != 0 {
		t.Errorf("%+v", got)
	}
	if err := w.d.Delete(t.Context(), w.team, "shop"); err != nil || w.kept() != 0 {
		t.Errorf("%v, %d snapshots", err, w.kept())
	}
}
