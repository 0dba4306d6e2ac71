package control

import (
	"cmp"
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
	between, give, err := s.keepBetween(ctx, rec)
	if err != nil {
		return rec, n, done, err
	}
	return rec, between, give, nil
}

// keepBetween takes the snapshot between a running sandbox and its copies, who wait for
// no write of its record: that is written beside the files, never told of them, and
// deleted behind the answer. In hand the snapshot is nobody else's. What a crash leaves
// are files without a manifest and a record of a snapshot that nobody makes any more.
func (s *Service) keepBetween(ctx context.Context, rec nacre.Sandbox) (n nacre.Snapshot, done func(), err error) {
	node := s.nodeOf(rec.Node)
	if node == nil {
		return n, nil, errNoHost(rec.ID)
	}
	bg := context.WithoutCancel(ctx)
	ctx, cancel := context.WithTimeout(bg, keepTime)
	defer cancel()
	n = s.snapshotOf(rec, nacre.SnapshotFork)
	remove := s.hand.add(n.ID)
	inserted := make(chan error, 1)
	go func() { // waited for below
		err := s.cfg.Snapshots.InsertSnapshot(ctx, n)
		if err != nil {
			cancel()
		}
		inserted <- err
	}()
	// The copies that it is for are started by this process, or not at all.
	man, err := node.Snapshot(ctx, rec.ID, nacre.SnapshotSpec{ID: n.ID, Transient: true})
	ierr := <-inserted
	n.RestoreKey = man.RestoreKey
	giveUp := func() {
		defer remove()
		ctx, cancel := context.WithTimeout(bg, stopTime)
		defer cancel()
		s.discard(ctx, n)
	}
	if ierr != nil && err == nil { // without a record, so whoever discards it finds none
		err = node.DeleteSnapshot(bg, n.ID)
	}
	if ierr != nil || err != nil {
		giveUp()
		return n, nil, cmp.Or(ierr, err)
	}
	return n, func() { s.behind.do(giveUp) }, nil
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
