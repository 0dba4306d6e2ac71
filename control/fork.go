package control

import (
	"context"
	"errors"

	"github.com/nacrehq/nacre"
	"golang.org/x/sync/errgroup"
)

const (
	maxForks   = 100
	forkAtOnce = 16
)

// Fork makes sandboxes that go on where another one is; see nacre.SnapshotService.
// Of a running one a snapshot is taken that lives until the last copy runs.
func (s *Service) Fork(ctx context.Context, team nacre.TeamID, r nacre.ForkRequest) ([]nacre.Forked, error) {
	if err := s.keeps(); err != nil {
		return nil, err
	}
	if err := s.checkFork(&r); err != nil {
		return nil, err
	}
	if team == "" {
		return nil, errUnknown()
	}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	seed, n, done, err := s.forkSource(ctx, team, r)
	if err != nil {
		return nil, err
	}
	defer done()
	seed = forkOf(seed, n, r)
	out := make([]nacre.Forked, r.Count)
	var g errgroup.Group
	g.SetLimit(forkAtOnce)
	for i := range out {
		g.Go(func() error {
			out[i].Sandbox, out[i].Err = s.launch(ctx, s.newborn(seed))
			return nil
		})
	}
	_ = g.Wait() // each tells for itself
	return out, nil
}

func (s *Service) checkFork(r *nacre.ForkRequest) error {
	if (r.Sandbox == "") == (r.Snapshot == "") {
		return nacre.Invalidf("Sandbox", "a fork needs a sandbox or a snapshot, one of the two")
	}
	setDefault(&r.Count, 1)
	if r.Count < 1 || r.Count > maxForks {
		return nacre.Invalidf("Count", "Count is %d; it must be between 1 and %d", r.Count, maxForks)
	}
	if r.Timeout != 0 {
		if err := s.cfg.Limits.checkTimeout(r.Timeout); err != nil {
			return err
		}
	}
	switch r.OnTimeout {
	case "", nacre.TimeoutKill, nacre.TimeoutPause:
	default:
		return nacre.Invalidf("OnTimeout", "OnTimeout must be %q or %q", nacre.TimeoutKill, nacre.TimeoutPause)
	}
	return errors.Join(checkName(r.Name), checkMetadata(r.Metadata), checkEnv(r.Env))
}

// forkSource returns what the copies are made of, and the snapshot that they go on
// from, which is there until done is called.
func (s *Service) forkSource(ctx context.Context, team nacre.TeamID, r nacre.ForkRequest) (seed nacre.Sandbox, n nacre.Snapshot, done func(), err error) {
	done = func() {}
	if r.Snapshot != "" {
		if n, err = s.GetSnapshot(ctx, team, r.Snapshot); err == nil {
			err = s.mayStart(ctx, n)
		}
		if err == nil {
			s.used(ctx, n)
		}
		return s.grown(n), n, done, err
	}
	rec, release, err := s.take(ctx, team, r.Sandbox)
	if err != nil {
		return rec, n, done, err
	}
	if rec.State == nacre.StatePaused {
		// It stays in hand, so that it is not resumed and its snapshot let go.
		if n, err = s.cfg.Snapshots.GetSnapshot(ctx, team, rec.Snapshot); err == nil {
			err = s.mayStart(ctx, n)
		}
		if err != nil {
			release()
			return rec, n, done, err
		}
		return rec, n, release, nil
	}
	defer release()
	if err := mustRun(&rec); err != nil {
		return rec, n, done, err
	}
	if err := s.mayKeep(ctx, team, false); err != nil {
		return rec, n, done, err
	}
	kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTime)
	defer cancel()
	n = s.snapshotOf(rec, nacre.SnapshotFork)
	remove := s.hand.add(n.ID)
	n, err = s.keep(kctx, n)
	if err != nil {
		remove()
		return rec, n, done, err
	}
	return rec, n, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		s.discard(ctx, n)
		remove()
	}, nil
}

// forkOf is what all copies have in common.
func forkOf(of nacre.Sandbox, n nacre.Snapshot, r nacre.ForkRequest) nacre.Sandbox {
	rec := nacre.Sandbox{
		TeamID: of.TeamID, Parent: of.ID, Snapshot: n.ID, Node: n.Node, Name: r.Name,
		Template: of.Template, TemplateID: of.TemplateID, BuildID: n.BuildID, Runtime: nacre.RuntimeOf(n.RestoreKey), Resources: n.Resources,
		Metadata: nacre.CopiedMetadata(of.Metadata), Env: merged(of.Env, r.Env), Network: of.Network, Secure: of.Secure,
		Timeout: of.Timeout, OnTimeout: of.OnTimeout, AutoResume: of.AutoResume, FilesOnly: of.FilesOnly,
		IdleTimeout: of.IdleTimeout, AlwaysOn: of.AlwaysOn,
	}
	if r.Metadata != nil {
		rec.Metadata = r.Metadata
	}
	if r.OwnEnv {
		rec.Env = r.Env
	}
	if r.Timeout != 0 {
		rec.Timeout, rec.AlwaysOn = r.Timeout, false
	}
	if r.OnTimeout != "" {
		rec.OnTimeout = r.OnTimeout
	}
	return rec
}
