package deploy

import (
	"context"
	"errors"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/undo"
)

const (
	tolerated = 3                // looks in a row that may fail of a command that runs
	pauseMost = 5 * time.Minute  // between two restarts
	calm      = 10 * time.Minute // after so long without one the first pause counts again
	killGrace = 5 * time.Second  // from SIGTERM to SIGKILL
)

// supervisor keeps one deployment live: it looks whether the deployment is healthy,
// starts the command again when it is not, and makes the sandbox again when its machine
// was lost. What its owner paused or ended it leaves alone.
type supervisor struct {
	*Deployer
	dep    nacre.Deployment
	cancel context.CancelFunc
	done   chan struct{}

	fails  int           // looks in a row
	pause  time.Duration // after the next restart
	last   time.Time     // restart
	before time.Time     // nothing is restarted
}

// supervise keeps a deployment live until leave, instead of whoever did.
func (d *Deployer) supervise(dep nacre.Deployment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(d.ctx)
	was := d.kept[dep.ID]
	s := &supervisor{Deployer: d, dep: dep, cancel: cancel, done: make(chan struct{}), pause: d.Pause}
	d.kept[dep.ID] = s
	d.wg.Go(func() {
		defer close(s.done)
		defer cancel()
		if was != nil {
			was.cancel()
			<-was.done
		}
		for sleep(ctx, d.Every) && s.look(ctx) {
		}
	})
}

// leave ends the supervision of a deployment and waits for that.
func (d *Deployer) leave(id nacre.DeploymentID) {
	d.mu.Lock()
	s := d.kept[id]
	delete(d.kept, id)
	d.mu.Unlock()
	if s != nil {
		s.cancel()
		<-s.done
	}
}

// sleep tells whether ctx lasted as long.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// look returns false when there is nothing to keep live any more.
func (s *supervisor) look(ctx context.Context) (goOn bool) {
	err := s.ask(ctx, s.dep, s.dep.Sandbox)
	now := s.Clock()
	if err == nil {
		if s.fails = 0; now.Sub(s.last) > calm {
			s.pause = s.Pause
		}
		if s.dep.State == nacre.DeploymentUnhealthy {
			s.note(ctx, nacre.DeploymentLive, "", 0)
		}
		return true
	}
	if ctx.Err() != nil {
		return false
	}
	box, gerr := s.Service.Get(ctx, s.dep.TeamID, s.dep.Sandbox)
	switch {
	case nacre.IsCode(gerr, nacre.CodeNotFound), gerr == nil && !box.Alive() && !lost(box.EndReason):
		return false
	case gerr != nil, box.Alive() && box.State != nacre.StateRunning:
		return true
	}
	if s.fails++; box.Alive() && s.fails < tolerated && !(nacre.IsCode(err, nacre.CodeUnavailable) && s.ended(ctx)) {
		return true
	}
	s.note(ctx, nacre.DeploymentUnhealthy, nacre.ErrorMessage(err), 0)
	if now.Before(s.before) {
		return true
	}
	return s.mend(ctx, box)
}

// lost tells an end of a machine that nobody asked for.
func lost(r nacre.EndReason) bool {
	return r == nacre.EndOOM || r == nacre.EndCrash || r == nacre.EndNodeLost
}

// mend starts the command, or makes the sandbox, again.
func (s *supervisor) mend(ctx context.Context, box nacre.Sandbox) (goOn bool) {
	s.Logger.Info("a deployment is started again", "deployment", s.dep.ID, "sandbox", box.ID, "ended", box.EndReason)
	var err error
	if box.Alive() {
		if err = s.stopCommand(ctx, box.ID); err == nil {
			err = s.start(ctx, s.dep, box.ID)
		}
	} else {
		err = s.again(ctx, box)
	}
	if ctx.Err() != nil {
		return false
	}
	s.last = s.Clock()
	s.before, s.pause = s.last.Add(s.pause), min(2*s.pause, pauseMost)
	switch {
	case err == nil:
		s.fails = 0
		s.note(ctx, nacre.DeploymentLive, "", 1)
	case !box.Alive() && nacre.IsCode(err, nacre.CodeNotFound):
		s.note(ctx, nacre.DeploymentFailed, "its machine was lost ("+string(box.EndReason)+") and its files were not kept; deploy it again", 0)
		return false
	default:
		s.note(ctx, nacre.DeploymentUnhealthy, nacre.ErrorMessage(err), 1)
	}
	return true
}

// again makes the sandbox of its files and leads the name to it.
func (s *supervisor) again(ctx context.Context, was nacre.Sandbox) (err error) {
	if s.dep.Snapshot == "" {
		return nacre.Errorf(nacre.CodeNotFound, "the files of %s were not kept", s.dep.Name)
	}
	var stack undo.Stack
	defer func() {
		if err != nil {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTime)
			defer cancel()
			s.takeBack(last, &stack, s.dep)
		}
	}()
	box, err := s.create(ctx, &stack, s.dep, s.dep.Snapshot, was)
	if err != nil {
		return err
	}
	if err := s.start(ctx, s.dep, box); err != nil {
		return err
	}
	preview, err := s.show(ctx, s.dep.Preview, s.dep, box)
	if err != nil {
		return err
	}
	next, err := s.Store.UpdateDeployment(ctx, s.dep.TeamID, s.dep.ID, func(r *nacre.Deployment) error {
		r.Sandbox, r.Preview, r.UpdatedAt = box, preview, s.Clock().UTC()
		return nil
	})
	if err == nil {
		s.dep = next
	}
	return err
}

// errSame ends an update that has nothing to write.
var errSame = errors.New("nothing to change")

// note writes how the deployment is and counts restarts. What a deploy that is under
// way, or failed, has said stays.
func (s *supervisor) note(ctx context.Context, state nacre.DeploymentState, detail string, restarts int) {
	next, err := s.Store.UpdateDeployment(ctx, s.dep.TeamID, s.dep.ID, func(r *nacre.Deployment) error {
		was := *r
		r.Restarts += restarts
		if r.State == nacre.DeploymentLive || r.State == nacre.DeploymentUnhealthy {
			r.State, r.Detail = state, detail
		}
		if r.State == was.State && r.Detail == was.Detail && restarts == 0 {
			return errSame
		}
		r.UpdatedAt = s.Clock().UTC()
		return nil
	})
	switch {
	case err == nil:
		s.dep.State = next.State
	case !errors.Is(err, errSame) && ctx.Err() == nil:
		s.Logger.Warn("how a deployment is could not be recorded", "deployment", s.dep.ID, "err", err)
	}
}

// commands are the deployment's processes that run.
func (s *supervisor) commands(ctx context.Context, box nacre.SandboxID) (agent nacre.Agent, pids []int, err error) {
	if agent, err = s.Traffic.Agent(ctx, box); err != nil {
		return nil, nil, err
	}
	all, err := agent.Processes().List(ctx)
	for _, p := range all {
		if p.Tag == processTag {
			pids = append(pids, p.PID)
		}
	}
	return agent, pids, err
}

// ended tells whether the command is known not to run.
func (s *supervisor) ended(ctx context.Context) bool {
	_, pids, err := s.commands(ctx, s.dep.Sandbox)
	return err == nil && len(pids) == 0
}

// stopCommand ends what is left of the command.
func (s *supervisor) stopCommand(ctx context.Context, box nacre.SandboxID) error {
	for sig, until := 15, time.Now().Add(killGrace); ; {
		agent, pids, err := s.commands(ctx, box)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := agent.Processes().Signal(ctx, pid, sig); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
				return err
			}
		}
		if !sleep(ctx, healthEvery) {
			return ctx.Err()
		}
		if time.Now().After(until) {
			sig = 9
		}
	}
}
