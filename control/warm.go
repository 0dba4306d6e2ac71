package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"time"

	"github.com/nacrehq/nacre"
)

const (
	warmTime  = 15 * time.Minute // for all of it
	readyTime = 5 * time.Minute  // for the ready command to succeed
	readyEach = 30 * time.Second // for one try
	readyWait = 200 * time.Millisecond
	warmSpare = 4 // sandboxes that the host must have room for
	// settleTime is given to a start command when no ready command says that it is.
	settleTime = 2 * time.Second
)

// warmRecipe is the metadata of a warm snapshot that tells what was run before it, and
// by what agent.
const warmRecipe = "recipe"

// PrepareWarm makes the template's warm snapshot: a sandbox of nobody's is booted,
// the start command run in it, and when the ready command succeeds its state is kept;
// creates go on from there. One that fits the template and this host already is left.
// It returns the template as it is then. A template without a start command is left
// as it is; a ready command that does not succeed in time is CodeDeadline, a start
// command that fails CodeConflict, a host without room to spare CodeExhausted.
func (s *Service) PrepareWarm(ctx context.Context, t nacre.Template) (nacre.Template, error) {
	if t.Start == "" {
		return t, nil
	}
	if err := s.keeps(); err != nil {
		return t, err
	}
	if s.cfg.Traffic == nil || t.Build == "" {
		return t, nacre.Errorf(nacre.CodeUnsupported, "template %s cannot be made warm: it has no build, or its guests cannot be reached from here", t.ID)
	}
	out, err, _ := s.warming.Do(string(t.ID), func() (any, error) {
		ctx, cancel := context.WithTimeout(ctx, warmTime)
		defer cancel()
		return s.prepareWarm(ctx, t)
	})
	if err != nil {
		return t, err
	}
	return out.(nacre.Template), nil
}

func (s *Service) prepareWarm(ctx context.Context, t nacre.Template) (nacre.Template, error) {
	if err := s.load(ctx); err != nil {
		return t, err
	}
	res, err := s.cfg.Limits.resources(nacre.Resources{}, t.Resources)
	if err != nil {
		return t, err
	}
	can, err := s.offer(ctx)
	if err != nil {
		return t, err
	}
	on, err := can.Offers(t.Runtime)
	if err != nil {
		return t, err
	}
	if !on.Snapshots {
		return t, nacre.Errorf(nacre.CodeUnsupported, "template %s cannot be made warm: the runtime %s keeps no snapshots here", t.ID, on.Runtime)
	}
	fits, err := s.warmFits(ctx, t, res, on)
	if err != nil || fits {
		return t, err
	}
	if err := s.spare(ctx, res); err != nil {
		return t, err
	}
	n, err := s.takeWarm(ctx, t, res)
	if err != nil {
		return t, err
	}
	defer s.hand.add(n.ID)()
	old := t.Warm
	t.Warm, t.UpdatedAt = n.ID, s.now()
	if err := s.cfg.Templates.PutTemplate(ctx, t); err != nil {
		s.discard(ctx, n)
		t.Warm = old
		return t, err
	}
	s.log.Info("a template is warm", "template", t.ID, "snapshot", n.ID, "bytes", n.DiskBytes)
	s.dropWarm(ctx, t)
	return t, nil
}

// spare tells whether the host has room for more than one more sandbox: none of a
// user's is to be turned away for ours.
func (s *Service) spare(ctx context.Context, res nacre.Resources) error {
	c, err := s.place().Capacity(ctx)
	if err != nil {
		return err
	}
	memory := int64(res.MemoryMiB) << 20
	if c.MaxSandboxes > 0 && c.Sandboxes+warmSpare > c.MaxSandboxes ||
		c.MemoryPromises > 0 && c.MemoryPromised+warmSpare*memory > c.MemoryPromises {
		return nacre.Errorf(nacre.CodeExhausted, "the host has no room to spare for making a template warm")
	}
	return nil
}

// abandoned tells whether the sandbox was booted to make a template warm by a process
// that is no more.
func (s *Service) abandoned(rec nacre.Sandbox) bool {
	if rec.TeamID != nacre.SystemTeam || !rec.Alive() {
		return false
	}
	_, ours := s.warmBoxes.Load(rec.ID)
	return !ours
}

// recipeOf names what makes one warm snapshot another than the next.
func (s *Service) recipeOf(t nacre.Template) string {
	sum := sha256.Sum256([]byte(t.Start + "\x00" + t.Ready + "\x00" + s.cfg.Agent))
	return hex.EncodeToString(sum[:])
}

// warmFits tells whether the template's warm snapshot is what would be made anew.
func (s *Service) warmFits(ctx context.Context, t nacre.Template, res nacre.Resources, on nacre.Capabilities) (bool, error) {
	if t.Warm == "" {
		return false, nil
	}
	n, err := s.cfg.Snapshots.GetSnapshot(ctx, nacre.SystemTeam, t.Warm)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if n.BuildID != t.Build || n.Resources != res || nacre.RuntimeOf(n.RestoreKey) != on.Runtime || n.Metadata[warmRecipe] != s.recipeOf(t) {
		return false, nil
	}
	switch err := s.mayStart(ctx, n); nacre.ErrorCode(err) {
	case nacre.CodeConflict, nacre.CodeMismatch, nacre.CodeUnavailable, nacre.CodeNotFound:
		return false, nil
	default:
		return err == nil, err
	}
}

// takeWarm boots a sandbox that no team has, runs the start command in it, and keeps
// it. The sandbox has ended when it returns.
func (s *Service) takeWarm(ctx context.Context, t nacre.Template, res nacre.Resources) (nacre.Snapshot, error) {
	born := s.newborn(nacre.Sandbox{
		TeamID: nacre.SystemTeam, Template: string(t.ID), TemplateID: t.ID, BuildID: t.Build, Resources: res,
		Node: s.place().ID(), Runtime: t.Runtime, Timeout: warmTime, OnTimeout: nacre.TimeoutKill,
	})
	s.warmBoxes.Store(born.ID, true)
	defer s.warmBoxes.Delete(born.ID)
	rec, err := s.launch(ctx, born)
	if err != nil {
		return nacre.Snapshot{}, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		err := s.stop(ctx, nacre.SystemTeam, rec.ID, nacre.EndKilled, "the template is warm")
		if err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
			s.log.Error("the sandbox that a template was made warm in could not be ended; its time ends it", "sandbox", rec.ID, "err", err)
		}
	}()
	if err := s.runStart(ctx, rec.ID, t); err != nil {
		return nacre.Snapshot{}, err
	}
	_, release, err := s.take(ctx, nacre.SystemTeam, rec.ID)
	if err != nil {
		return nacre.Snapshot{}, err
	}
	defer release()
	n := s.snapshotOf(rec, nacre.SnapshotWarm)
	n.Name, n.Metadata = string(t.ID), map[string]string{warmRecipe: s.recipeOf(t)}
	defer s.hand.add(n.ID)()
	return s.keep(ctx, n)
}

// runStart runs the start command and waits until the ready command succeeds.
func (s *Service) runStart(ctx context.Context, id nacre.SandboxID, t nacre.Template) error {
	agent, err := s.cfg.Traffic.Agent(ctx, id)
	if err != nil {
		return err
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	start, err := agent.Processes().Start(reading, shell(t.Start, 0))
	if err != nil {
		return err
	}
	ended, gone := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(gone)
		ended <- exitOf(start)
	}()
	err = s.awaitReady(ctx, agent, t, ended)
	stop() // the process goes on without a listener
	<-gone
	_ = start.Close()
	return err
}

// awaitReady returns when the template is ready. What the start command printed is
// read until then, and no longer.
func (s *Service) awaitReady(ctx context.Context, agent nacre.Agent, t nacre.Template, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	pause := readyWait
	if t.Ready == "" {
		pause = settleTime
	}
	for {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the template's ready command did not succeed in time")
		case err := <-ended:
			timer.Stop()
			if err != nil {
				return err
			}
			ended = nil // it did its work; a nil channel is never ready
		case <-timer.C:
		}
		if t.Ready == "" {
			return nil
		}
		p, err := agent.Processes().Start(ctx, shell(t.Ready, readyEach))
		if err != nil {
			return err
		}
		err = exitOf(p)
		_ = p.Close()
		if err == nil {
			return nil
		}
	}
}

func shell(command string, timeout time.Duration) nacre.ProcessSpec {
	return nacre.ProcessSpec{Cmd: "/bin/sh", Args: []string{"-lc", command}, Timeout: timeout, Unlogged: true}
}

// exitOf reads a process to its end; nil for one that succeeded.
func exitOf(p nacre.ProcessStream) error {
	var exit *nacre.ProcessExit
	for {
		ev, err := p.Next()
		switch {
		case errors.Is(err, io.EOF) && exit != nil && exit.Code == 0:
			return nil
		case errors.Is(err, io.EOF) && exit != nil:
			return nacre.Errorf(nacre.CodeConflict, "the template's command failed: %s", exit.Status)
		case err != nil:
			return err
		}
		if ev.Exit != nil {
			exit = ev.Exit
		}
	}
}

// dropWarm deletes the template's earlier warm snapshots. One that a create is under
// way from stays until the next time.
func (s *Service) dropWarm(ctx context.Context, t nacre.Template) {
	page, err := s.cfg.Snapshots.ListSnapshots(ctx, nacre.SnapshotFilter{TeamID: nacre.SystemTeam, Name: string(t.ID),
		Kinds: []nacre.SnapshotKind{nacre.SnapshotWarm}})
	if err != nil {
		s.log.Warn("earlier warm snapshots of a template could not be looked up", "template", t.ID, "err", err)
	}
	for _, n := range page.Snapshots {
		if n.ID != t.Warm {
			s.discard(ctx, n)
		}
	}
}
