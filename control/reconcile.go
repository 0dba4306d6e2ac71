package control

import (
	"context"
	"errors"

	"github.com/nacrehq/nacre"
	"golang.org/x/sync/errgroup"
)

// presence is what a node says of a sandbox's machine.
type presence int

const (
	absent  presence = iota // no machine
	present                 // it runs
	exited                  // it ended by itself and was not stopped yet
)

// verdict is the one legal answer to a difference between record and machine. The
// record changes first, then the machine is stopped; but a stopping sandbox has
// ended only when its machine is gone.
type verdict struct {
	to     nacre.State // "" leaves the record
	reason nacre.EndReason
	detail string
	stop   bool // what there is of a machine
	man    nacre.SnapshotManifest
}

// decide compares a record's state ("" for none) with its machine, and tells what to
// do when the snapshot that it names exists (kept) or does not: the node is believed
// over the store.
func decide(state nacre.State, p presence, kept bool, exit nacre.Exit) verdict {
	v := verdict{stop: p != absent}
	end := func(reason nacre.EndReason, detail string) {
		v.to, v.reason, v.detail = nacre.StateEnded, reason, detail
	}
	switch state {
	case nacre.StateCreating: // nobody waits for it any more
		end(nacre.EndFailed, "the server was restarted while the sandbox was created")
	case nacre.StateRunning:
		switch p {
		case present:
			v.stop = false
		case absent:
			end(nacre.EndNodeLost, "its machine is no longer on its host")
		case exited:
			end(exitReason(exit), exit.Detail)
		}
	case nacre.StatePausing:
		switch {
		case p == present: // the pause did not come to its end
			v.to, v.stop = nacre.StateRunning, false
		case kept:
			v.to = nacre.StatePaused
		case p == exited:
			end(exitReason(exit), exit.Detail)
		default:
			end(nacre.EndNodeLost, "its machine is no longer on its host, and no snapshot of it")
		}
	case nacre.StateResuming: // nobody was told that it runs
		if v.to = nacre.StatePaused; !kept {
			end(nacre.EndNodeLost, "the snapshot that it went on from is no longer on its host")
		}
	case nacre.StatePaused:
		if !kept {
			end(nacre.EndNodeLost, "the snapshot that it would go on from is no longer on its host")
		}
	case nacre.StateStopping:
		v.to = nacre.StateEnded // for the reason that was decided
	case nacre.StateEnded, "":
	}
	return v
}

func (s *Service) keepReconciled(ctx context.Context) {
	pause := s.cfg.Reconcile
	for ok := true; ok; ok = wait(ctx, pause) {
		pause = s.cfg.Reconcile
		if err := s.reconcile(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("records and machines could not be compared; it is tried again", "err", err)
			pause = retryAfter
		}
	}
}

// reconcile compares every record that is alive with the machines and the snapshots.
//
// The records are read before the machines: a sandbox that comes to life between
// the two shows as a machine without a record, and is looked up again; one that
// ends shows as a record that has changed since, and is left alone. Snapshots are
// listed before the records, to find those without one, and after, to find records
// without theirs.
func (s *Service) reconcile(ctx context.Context) error {
	count := s.beginCensus()
	defer s.roster.endCensus(count)
	before, err := s.artifacts(ctx)
	if err != nil {
		return err
	}
	records, err := s.aliveRecords(ctx)
	if err != nil {
		return err
	}
	rows, err := s.snapshotRecords(ctx, nacre.SnapshotFilter{AllTeams: true})
	if err != nil {
		return err
	}
	s.enroll(count, records)
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, node := range s.nodes {
		if err := s.compare(ctx, node, records, &g); err != nil {
			return errors.Join(err, g.Wait())
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return s.reconcileSnapshots(ctx, before, rows, records)
}

// compare finds what differs on one node, and has g put it right.
func (s *Service) compare(ctx context.Context, node nacre.Node, records map[nacre.SandboxID]nacre.Sandbox, g *errgroup.Group) error {
	seen, err := s.look(ctx, node)
	if err != nil {
		return err
	}
	for id, m := range seen.machines {
		if _, ok := records[id]; !ok {
			g.Go(func() error { return s.settleStray(ctx, node, m) })
		}
	}
	for _, rec := range records {
		if rec.Node != node.ID() {
			continue
		}
		if s.abandoned(rec) {
			g.Go(func() error {
				err := s.stop(ctx, rec.TeamID, rec.ID, nacre.EndFailed, "the server was restarted while a template was made warm")
				if nacre.IsCode(err, nacre.CodeNotFound) {
					return nil
				}
				return err
			})
			continue
		}
		if v := seen.verdict(rec); (v.to != "" || v.stop) && !s.flight.has(rec.ID) {
			g.Go(func() error { return s.settleSeen(ctx, node, rec, v) })
		}
	}
	return nil
}

// settleSeen carries out a verdict on what was seen a moment ago: nobody may have
// begun anything with the sandbox since, nor begin before it is done. Else a sandbox
// that was resumed in between would lose its machine.
func (s *Service) settleSeen(ctx context.Context, node nacre.Node, rec nacre.Sandbox, v verdict) error {
	if rec.State == nacre.StateStopping {
		return s.settle(ctx, node, rec, v)
	}
	if ok, _ := s.flight.begin(rec.ID); !ok {
		return nil
	}
	defer s.landed(ctx, rec.TeamID, rec.ID)
	now, err := s.cfg.Store.Get(ctx, rec.TeamID, rec.ID)
	if nacre.IsCode(err, nacre.CodeNotFound) || err == nil && now.Version != rec.Version {
		return nil
	}
	if err != nil {
		return err
	}
	return s.settle(ctx, node, rec, v)
}

// sight is what a node says that there is.
type sight struct {
	machines  map[nacre.SandboxID]nacre.MachineStatus
	snapshots map[nacre.SnapshotID]nacre.SnapshotManifest
}

func (s *Service) look(ctx context.Context, node nacre.Node) (sight, error) {
	machines, err := node.Machines(ctx)
	if err != nil {
		return sight{}, err
	}
	manifests, err := node.Snapshots(ctx)
	if err != nil {
		return sight{}, err
	}
	out := sight{map[nacre.SandboxID]nacre.MachineStatus{}, map[nacre.SnapshotID]nacre.SnapshotManifest{}}
	for _, m := range machines {
		out.machines[m.Sandbox] = m
	}
	for _, m := range manifests {
		out.snapshots[m.ID] = m
	}
	return out, nil
}

// verdict decides on a record.
func (w sight) verdict(rec nacre.Sandbox) verdict {
	p, exit := absent, nacre.Exit{}
	if m, ok := w.machines[rec.ID]; ok {
		if p = present; m.Exit != nil {
			p, exit = exited, *m.Exit
		}
	}
	man, kept := w.snapshots[rec.Snapshot]
	v := decide(rec.State, p, kept, exit)
	v.man = man
	return v
}

// settleOne brings what is half done of one sandbox to its end. The caller has it in
// hand.
func (s *Service) settleOne(ctx context.Context, rec nacre.Sandbox) error {
	node := s.nodeOf(rec.Node)
	if node == nil {
		return errNoHost(rec.ID)
	}
	seen, err := s.look(ctx, node)
	if err != nil {
		return err
	}
	return s.settle(ctx, node, rec, seen.verdict(rec))
}

// settle carries a verdict out, unless the record changed since it was read.
func (s *Service) settle(ctx context.Context, node nacre.Node, rec nacre.Sandbox, v verdict) error {
	if rec.State == nacre.StateStopping {
		return s.finish(ctx, rec)
	}
	if v.to != "" {
		if v.to == nacre.StatePaused && rec.State == nacre.StatePausing {
			if _, err := s.kept(ctx, rec.TeamID, v.man); err != nil {
				return err
			}
		}
		out, err := s.cfg.Store.Update(ctx, rec.TeamID, rec.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
			if r.Version != rec.Version {
				return nil, errNothing
			}
			switch v.to {
			case nacre.StateEnded:
				return s.end(r, v.reason, v.detail)
			case nacre.StatePaused:
				return s.toPaused(r, "")
			}
			r.Snapshot = ""
			return nil, r.Move(v.to)
		})
		if errors.Is(err, errNothing) || nacre.IsCode(err, nacre.CodeNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		s.log.Warn("record and machine differed", "sandbox", rec.ID, "team", rec.TeamID, "was", rec.State, "is", v.to, "reason", v.reason, "detail", v.detail)
		s.settledAs(ctx, rec, out)
	}
	if v.stop {
		return node.Stop(ctx, rec.ID)
	}
	return nil
}

// settledAs brings the roster and the snapshots in line with a record that was settled.
func (s *Service) settledAs(ctx context.Context, rec, out nacre.Sandbox) {
	switch out.State {
	case nacre.StateEnded:
		s.roster.leave(rec.ID)
	case nacre.StatePaused:
		s.roster.sleep(out)
		return
	case nacre.StateRunning:
		s.roster.run(out, out.Deadline.Sub(s.now()))
	}
	if rec.Snapshot != "" && s.cfg.Snapshots != nil {
		if n, err := s.cfg.Snapshots.GetSnapshot(ctx, rec.TeamID, rec.Snapshot); err == nil && transient(n.Kind) {
			s.discard(ctx, n)
		}
	}
}

// settleStray stops a machine that no living record claims.
func (s *Service) settleStray(ctx context.Context, node nacre.Node, m nacre.MachineStatus) error {
	if s.flight.has(m.Sandbox) {
		return nil
	}
	rec, err := s.cfg.Store.Get(ctx, m.Team, m.Sandbox)
	switch {
	case err != nil && !nacre.IsCode(err, nacre.CodeNotFound):
		return err
	case err == nil && rec.State != nacre.StateEnded:
		return nil // it came to life meanwhile; the next round compares it
	}
	s.log.Warn("a machine without a living record is stopped", "sandbox", m.Sandbox, "machine", m.Machine)
	return node.Stop(ctx, m.Sandbox)
}

// aliveRecords reads everything that has not ended.
func (s *Service) aliveRecords(ctx context.Context) (map[nacre.SandboxID]nacre.Sandbox, error) {
	f := nacre.SandboxFilter{AllTeams: true, Limit: 1000, States: []nacre.State{
		nacre.StateCreating, nacre.StateRunning, nacre.StatePausing, nacre.StatePaused, nacre.StateResuming, nacre.StateStopping,
	}}
	out := map[nacre.SandboxID]nacre.Sandbox{}
	for {
		page, err := s.cfg.Store.List(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, rec := range page.Sandboxes {
			out[rec.ID] = rec
		}
		if page.Next == "" {
			return out, nil
		}
		f.Cursor = page.Next
	}
}

// load brings the store's records onto the roster, once.
func (s *Service) load(ctx context.Context) error {
	if s.roster.isLoaded() {
		return nil
	}
	count := s.beginCensus()
	defer s.roster.endCensus(count)
	records, err := s.aliveRecords(ctx)
	if err == nil {
		s.enroll(count, records)
	}
	return err
}

// enroll makes the roster agree with the records that were read during a census.
func (s *Service) enroll(c *census, records map[nacre.SandboxID]nacre.Sandbox) {
	now := s.now()
	for _, rec := range records {
		if rec.Alive() {
			s.roster.enroll(c, rec, max(0, rec.Deadline.Sub(now)))
		}
	}
	for _, id := range c.before {
		if rec, ok := records[id]; !ok || !rec.Alive() {
			s.roster.leave(id)
		}
	}
	s.roster.setLoaded()
}

var _ nacre.Service = (*Service)(nil)
