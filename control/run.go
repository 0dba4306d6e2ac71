package control

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
	"golang.org/x/sync/errgroup"
)

const (
	atOnce     = 128             // sandboxes that one loop ends side by side: one that hangs delays none
	retryAfter = time.Second     // what failed is tried again
	clockCheck = 5 * time.Second // between looks at the wall clock
	clockStep  = 2 * time.Second // from which on a difference is a step
	purgeEvery = time.Hour
	purgeBatch = 500

	expireEvery = 5 * time.Second // between looks at snapshots' ends
)

// Run holds the loops: deadlines, exits, reconciliation, the watch on the clock and
// the deletion of old records. It returns when ctx has ended, all of them have, and
// what is done behind answers.
func (s *Service) Run(ctx context.Context) error {
	defer s.behind.end()
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context){s.holdDeadlines, s.watchExits, s.keepReconciled, s.watchClock, s.purge, s.expireSnapshots} {
		wg.Go(func() { loop(ctx) })
	}
	wg.Wait()
	return nil
}

// wait returns false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// holdDeadlines ends what has run its time.
func (s *Service) holdDeadlines(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(atOnce)
	defer func() { _ = g.Wait() }() // expire reports for itself
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		over, next := s.roster.due()
		for _, m := range over {
			g.Go(func() error { s.expire(ctx, m); return nil })
		}
		pause := time.Hour
		if !next.IsZero() {
			pause = time.Until(next)
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.roster.wake:
		}
	}
}

// errPause leaves an update because the sandbox is to be paused instead.
var errPause = errors.New("to be paused")

// expire ends or pauses a sandbox whose time is over, unless it was given more
// meanwhile.
func (s *Service) expire(ctx context.Context, m member) {
	life := ctx
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	rec, err := func() (nacre.Sandbox, error) {
		unlock := s.lock(m.id)
		defer unlock()
		cur, ok := s.roster.get(m.id)
		now := time.Now()
		if at := cur.due(); !ok || !cur.running || at.IsZero() || at.After(now) {
			return nacre.Sandbox{}, errNothing
		}
		idle := cur.until.IsZero() || cur.until.After(now)
		return s.cfg.Store.Update(ctx, m.team, m.id, func(r *nacre.Sandbox) ([]nacre.Event, error) {
			if !r.Alive() {
				return nil, r.Gone()
			}
			if r.OnTimeout == nacre.TimeoutPause && s.cfg.Snapshots != nil {
				return nil, errPause
			}
			r.EndReason, r.Detail = nacre.EndTimeout, "its time of "+r.Timeout.String()+" was over"
			if idle {
				r.EndReason, r.Detail = nacre.EndIdle, "it was not used for "+r.IdleTimeout.String()
			}
			return nil, r.Move(nacre.StateStopping)
		})
	}()
	switch {
	case err == errNothing:
		s.roster.back(m.id)
		return
	case err == errPause:
		s.pauseDue(life, m)
		return
	case nacre.IsCode(err, nacre.CodeNotFound):
		s.roster.leave(m.id)
		return
	case err != nil:
		s.log.Error("a sandbox whose time is over could not be ended; it is tried again", "sandbox", m.id, "err", err)
		s.roster.retryLater(m.id, func(int) time.Duration { return retryAfter })
		return
	}
	s.roster.leave(m.id)
	if err := s.finish(ctx, rec); err != nil && ctx.Err() == nil {
		s.log.Error("a sandbox whose time is over could not be ended entirely; it is tried again", "sandbox", m.id, "err", err)
	}
}

// watchExits records machines that end by themselves.
func (s *Service) watchExits(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, node := range s.nodes {
		wg.Go(func() {
			var g errgroup.Group
			g.SetLimit(atOnce)
			defer func() { _ = g.Wait() }() // exited reports for itself
			for ctx.Err() == nil {
				err := node.WatchExits(ctx, func(id nacre.SandboxID, exit nacre.Exit) {
					if s.flight.note(id, exit) {
						return
					}
					// One that is not on the roster is met by the reconciler.
					if m, ok := s.roster.get(id); ok {
						g.Go(func() error { s.exited(ctx, m.team, id, exit); return nil })
					}
				})
				if ctx.Err() == nil {
					s.log.Warn("the watch on machines was interrupted", "node", node.ID(), "err", err)
					wait(ctx, retryAfter)
				}
			}
		})
	}
}

// watchClock moves the stored deadlines along when the wall clock is set, so that
// they say the truth to clients and to the next process.
func (s *Service) watchClock(ctx context.Context) {
	wall, mono := s.cfg.Clock().Round(0), time.Now()
	for wait(ctx, clockCheck) {
		nowWall, nowMono := s.cfg.Clock().Round(0), time.Now()
		step := nowWall.Sub(wall) - nowMono.Sub(mono)
		if step.Abs() < clockStep {
			continue
		}
		wall, mono = nowWall, nowMono
		s.log.Warn("the wall clock was set; deadlines move along with it", "by", step)
		for _, m := range s.roster.all() {
			if err := s.restamp(ctx, m.id); err != nil && ctx.Err() == nil {
				s.log.Error("a deadline could not be moved along with the clock", "sandbox", m.id, "err", err)
			}
		}
	}
}

func (s *Service) restamp(ctx context.Context, id nacre.SandboxID) error {
	unlock := s.lock(id)
	defer unlock()
	m, ok := s.roster.get(id)
	if !ok || !m.running || m.until.IsZero() {
		return nil
	}
	_, err := s.cfg.Store.Update(ctx, m.team, id, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if r.State != nacre.StateRunning {
			return nil, errNothing
		}
		r.Deadline = s.now().Add(time.Until(m.until).Truncate(time.Millisecond))
		return nil, nil
	})
	if err == errNothing || nacre.IsCode(err, nacre.CodeNotFound) {
		return nil
	}
	return err
}

// expireSnapshots deletes snapshots whose time is over. One that a paused sandbox
// would go on from stays until that has gone.
func (s *Service) expireSnapshots(ctx context.Context) {
	if s.cfg.Snapshots == nil {
		return
	}
	for ok := true; ok; ok = wait(ctx, expireEvery) {
		f := nacre.SnapshotFilter{AllTeams: true, States: []nacre.SnapshotState{nacre.SnapshotReady}, ExpiresBefore: s.now(), Limit: 1000}
		for {
			page, err := s.cfg.Snapshots.ListSnapshots(ctx, f)
			if err != nil && ctx.Err() == nil {
				s.log.Warn("expired snapshots could not be looked up", "err", err)
			}
			for _, n := range page.Snapshots {
				s.discard(ctx, n)
			}
			if err != nil || page.Next == "" || ctx.Err() != nil {
				break
			}
			f.Cursor = page.Next
		}
	}
}

// purge deletes records that ended long ago, a batch at a time.
func (s *Service) purge(ctx context.Context) {
	for ok := true; ok; ok = wait(ctx, purgeEvery) {
		for ctx.Err() == nil {
			n, err := s.cfg.Store.Purge(ctx, s.now().Add(-s.cfg.Retention), purgeBatch)
			if err != nil && ctx.Err() == nil {
				s.log.Warn("old records could not be deleted", "err", err)
			}
			if err != nil || n < purgeBatch || !wait(ctx, 100*time.Millisecond) {
				break
			}
		}
	}
}
