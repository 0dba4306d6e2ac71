package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/nacrehq/nacre"
)

// opened is a snapshot that a machine is about to be restored from.
type opened struct {
	dir     string
	m       nacre.SnapshotManifest
	same    bool // the sandbox that it is of goes on
	deaf    bool // whether its agent answers does not matter
	release func()
}

func (o *opened) close() {
	if o != nil {
		o.release()
	}
}

// open opens the shape's snapshot for the sandbox, the zero spec for a standby, and
// refuses what cannot be restored here. It returns nil for a shape that boots.
func (n *Node) open(ctx context.Context, shape Shape, spec nacre.StartSpec) (*opened, error) {
	if shape.Snapshot == "" {
		return nil, nil
	}
	if n.cfg.Artifacts == nil {
		return nil, errNoSnapshots
	}
	dir, m, release, err := n.cfg.Artifacts.Open(ctx, shape.Snapshot)
	if err != nil {
		return nil, err
	}
	o := &opened{dir: dir, m: m, same: spec.Sandbox != "" && m.Sandbox == spec.Sandbox, release: release}
	err = fits(m, shape, n.cfg.Runtime.Capabilities())
	if of := nacre.RuntimeOf(m.RestoreKey); err == nil && spec.Runtime != "" && spec.Runtime != of {
		err = nacre.Errorf(nacre.CodeMismatch, "snapshot %s was taken on %s; it cannot be restored on %.40s", m.ID, of, spec.Runtime)
	}
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// CheckSnapshot tells whether a snapshot can be gone on from; see nacre.Node.
func (n *Node) CheckSnapshot(ctx context.Context, id nacre.SnapshotID) error {
	if n.cfg.Artifacts == nil {
		return errNoSnapshots
	}
	dir, m, release, err := n.cfg.Artifacts.Open(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	if err := n.cfg.Runtime.Capabilities().CanRestore(m.ID, m.RestoreKey); err != nil {
		return err
	}
	return n.cfg.Runtime.VerifySnapshot(ctx, dir)
}

// fits tells whether the snapshot can be restored in that shape on this host. How
// many tasks a machine may have is the host's affair.
func fits(m nacre.SnapshotManifest, shape Shape, can nacre.Capabilities) error {
	was, is := m.Resources, shape.Resources
	was.MaxPIDs = is.MaxPIDs
	if m.FilesOnly { // a guest that boots takes what it is given
		was.CPUs, was.MemoryMiB, was.HugePages = is.CPUs, is.MemoryMiB, is.HugePages
	}
	if err := can.CanRestore(m.ID, m.RestoreKey); err != nil {
		return err
	}
	switch {
	case m.Build != shape.Build:
		return nacre.Errorf(nacre.CodeConflict, "snapshot %s was taken over build %s; it cannot be restored over %s", m.ID, m.Build, shape.Build)
	case was != is:
		return nacre.Errorf(nacre.CodeConflict, "snapshot %s was taken with %d processors, %d MiB of memory and %d MiB of disk; it cannot be restored with others",
			m.ID, was.CPUs, was.MemoryMiB, was.DiskMiB)
	}
	return nil
}

// launch boots the unit's machine, or restores it.
func (n *Node) launch(ctx context.Context, u *unit, spec nacre.MachineSpec, snap *opened) (err error) {
	if snap == nil {
		u.machine, err = n.cfg.Runtime.Start(ctx, spec)
		return err
	}
	u.machine, err = n.cfg.Runtime.Restore(ctx, spec, snap.dir)
	var own *nacre.Error
	if err != nil && ctx.Err() == nil && !errors.As(err, &own) {
		err = nacre.Wrap(nacre.CodeInternal, err, fmt.Sprintf("snapshot %s could not be restored", snap.m.ID))
	}
	return err
}

// descend says what the unit has from the machine that the snapshot was taken of.
func (u *unit) descend(snap *opened) {
	u.anew, u.runtime = !snap.same, nacre.RuntimeOf(snap.m.RestoreKey)
	if snap.same {
		u.host = snap.m.Hostname
	}
	if !snap.m.FilesOnly {
		u.from = &lineage{Machine: snap.m.Machine, LogSeq: snap.m.LogSeq, Unmet: true}
	}
}

// lineage is what a restored guest has from the machine before it. It is kept in
// the handle.
type lineage struct {
	Machine nacre.MachineID
	LogSeq  int64 // up to here the guest's log is known, or another sandbox's
	Unmet   bool  // the guest was not introduced, and demands that machine's host token
}
