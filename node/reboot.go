package node

import (
	"context"

	"github.com/nacrehq/nacre"
)

// filesOf returns a snapshot of the files alone of one that has memory too. No driver
// can take the two apart, so it is restored where nobody reaches it and it reaches
// nobody, kept again without its memory, and ended; its processes run for that moment.
// What it makes exists for nobody else, and goes with close or with the next start.
func (n *Node) filesOf(ctx context.Context, shape Shape, snap *opened) (*opened, error) {
	whole := *snap
	whole.deaf = true
	u, err := n.boot(ctx, shape, nacre.EgressPolicy{DenyAll: true}, &whole)
	if err != nil {
		return nil, err
	}
	files, err := n.keepFiles(ctx, u, snap)
	if derr := n.takeDown(ctx, u); derr != nil {
		n.log.Error("a machine that was restored for its files left something behind; the next restart sweeps it", "machine", u.id, "err", derr)
	}
	if nacre.IsCode(err, nacre.CodeNotFound) {
		err = nacre.Wrap(nacre.CodeInternal, err, "the machine ended while its files were kept")
	}
	return files, err
}

func (n *Node) keepFiles(ctx context.Context, u *unit, snap *opened) (*opened, error) {
	id := nacre.NewSnapshotID()
	dir, err := n.cfg.Artifacts.Create(ctx, id)
	if err != nil {
		return nil, err
	}
	files := &opened{dir: dir, m: snap.m, same: snap.same, release: func() {
		if err := n.cfg.Artifacts.Discard(context.WithoutCancel(ctx), id); err != nil {
			n.log.Error("a snapshot that served for its files is left; the next restart sweeps it", "snapshot", id, "err", err)
		}
	}}
	if files.m.SnapshotInfo, err = u.machine.Snapshot(ctx, dir, nacre.SnapshotOptions{FilesOnly: true}); err != nil {
		files.close()
		return nil, err
	}
	return files, nil
}
