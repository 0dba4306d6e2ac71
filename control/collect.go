package control

import (
	"context"

	"github.com/nacrehq/nacre"
	"golang.org/x/sync/errgroup"
)

// fate is the one legal answer to a difference between a snapshot's record and its
// files.
type fate int

const (
	keepIt fate = iota
	retire      // nobody needs it, or it is not there: unless somebody holds it
	finish      // it was decided: delete the files, then the record
)

// decideSnapshot compares a snapshot's record with its files. held tells that a
// sandbox that is alive names it.
func decideSnapshot(n nacre.Snapshot, files, held bool) fate {
	switch n.State {
	case nacre.SnapshotDeleting:
		return finish
	case nacre.SnapshotCreating: // by nobody who lives
		if held {
			return keepIt // the sandbox is settled first
		}
		return retire
	}
	if !files || transient(n.Kind) && !held {
		return retire
	}
	return keepIt
}

// artifact is what a node has of a snapshot.
type artifact struct {
	node  nacre.Node
	bytes int64 // what it occupies, 0 for what nobody knows yet
}

// artifacts lists what the nodes have.
func (s *Service) artifacts(ctx context.Context) (map[nacre.SnapshotID]artifact, error) {
	out := map[nacre.SnapshotID]artifact{}
	if s.cfg.Snapshots == nil {
		return out, nil
	}
	for _, node := range s.nodes {
		list, err := node.Snapshots(ctx)
		if err != nil {
			return nil, err
		}
		for _, m := range list {
			out[m.ID] = artifact{node, m.DiskBytes}
		}
	}
	return out, nil
}

// snapshotRecords reads all records of a team's snapshots, or with AllTeams of all.
func (s *Service) snapshotRecords(ctx context.Context, f nacre.SnapshotFilter) (map[nacre.SnapshotID]nacre.Snapshot, error) {
	out := map[nacre.SnapshotID]nacre.Snapshot{}
	if s.cfg.Snapshots == nil {
		return out, nil
	}
	f.Limit, f.Kinds = 1000, []nacre.SnapshotKind{nacre.SnapshotUser, nacre.SnapshotPause, nacre.SnapshotFork, nacre.SnapshotWarm}
	for {
		page, err := s.cfg.Snapshots.ListSnapshots(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, n := range page.Snapshots {
			out[n.ID] = n
		}
		if page.Next == "" {
			return out, nil
		}
		f.Cursor = page.Next
	}
}

// reconcileSnapshots deletes files without a record, which were listed before the
// records were read, and puts records right whose files are not there, or that
// nobody needs. What a snapshot occupies changes behind its record, which follows here.
func (s *Service) reconcileSnapshots(ctx context.Context, before map[nacre.SnapshotID]artifact, rows map[nacre.SnapshotID]nacre.Snapshot, records map[nacre.SandboxID]nacre.Sandbox) error {
	if s.cfg.Snapshots == nil {
		return nil
	}
	after, err := s.artifacts(ctx)
	if err != nil {
		return err
	}
	held := map[nacre.SnapshotID]bool{}
	for _, rec := range records {
		if rec.Alive() && rec.Snapshot != "" {
			held[rec.Snapshot] = true
		}
	}
	var g errgroup.Group
	g.SetLimit(atOnce)
	for id, a := range before {
		if _, ok := rows[id]; !ok && !s.hand.has(id) {
			s.log.Warn("a snapshot without a record is deleted", "snapshot", id)
			g.Go(func() error { return a.node.DeleteSnapshot(ctx, id) })
		}
	}
	for id, n := range rows {
		if s.nodeOf(n.Node) == nil {
			continue
		}
		a, files := after[id]
		switch f := decideSnapshot(n, files, held[id]); {
		case f == keepIt:
			g.Go(func() error { return s.measure(ctx, n, a.bytes) })
		case !s.hand.has(id):
			g.Go(func() error { return s.settleSnapshot(ctx, n, f) })
		}
	}
	return g.Wait()
}

// measure writes down what a snapshot occupies, unless that is what its record says.
func (s *Service) measure(ctx context.Context, n nacre.Snapshot, bytes int64) error {
	if bytes == 0 || bytes == n.DiskBytes || n.State != nacre.SnapshotReady {
		return nil
	}
	_, err := s.cfg.Snapshots.UpdateSnapshot(ctx, n.TeamID, n.ID, func(r *nacre.Snapshot) ([]nacre.Event, error) {
		r.DiskBytes = bytes
		return nil, nil
	})
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return nil
	}
	return err
}

// measureAll does so for all of a team.
func (s *Service) measureAll(ctx context.Context, team nacre.TeamID) error {
	there, err := s.artifacts(ctx)
	if err != nil {
		return err
	}
	rows, err := s.snapshotRecords(ctx, nacre.SnapshotFilter{TeamID: team})
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(atOnce)
	for id, n := range rows {
		g.Go(func() error { return s.measure(ctx, n, there[id].bytes) })
	}
	return g.Wait()
}

// settleSnapshot carries a fate out. Whoever was making the snapshot when its record
// was read had it in hand until the record said what became of it: one that is not in
// hand, and still as it was, nobody makes any more.
func (s *Service) settleSnapshot(ctx context.Context, n nacre.Snapshot, f fate) error {
	if f == finish {
		return s.drop(ctx, n)
	}
	cur, err := s.cfg.Snapshots.GetSnapshot(ctx, n.TeamID, n.ID)
	if nacre.IsCode(err, nacre.CodeNotFound) || err == nil && (cur.State != n.State || cur.Kind != n.Kind) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.tryDiscard(ctx, cur); !nacre.IsCode(err, nacre.CodeConflict) {
		if err == nil && !transient(n.Kind) {
			s.log.Warn("a snapshot that is not whole is given up", "snapshot", n.ID, "team", n.TeamID, "state", n.State)
		}
		return err
	}
	return nil // somebody goes on from it meanwhile
}
