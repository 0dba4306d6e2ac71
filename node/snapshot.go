package node

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/nacrehq/nacre"
)

// snapping is a snapshot of a sandbox under way.
type snapping struct {
	pause  bool   // traffic has ended; guarded by Node.mu
	dir    string // it is written to; "" before. Guarded by Node.mu
	total  int64  // what may come to be written, in bytes. Guarded by Node.mu
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it is over, well or not
}

var errNoSnapshots = nacre.Errorf(nacre.CodeUnsupported, "this node keeps no snapshots")

// Snapshot keeps a running sandbox; see nacre.Node.
//
// The order makes a pause lossless: traffic ends, the guest stands still, its files
// are made durable, the manifest is written, and only then the machine is killed.
// Until the manifest is there whoever comes lets the guest go on; from then on whoever
// comes takes the machine down.
func (n *Node) Snapshot(ctx context.Context, id nacre.SandboxID, spec nacre.SnapshotSpec) (nacre.SnapshotManifest, error) {
	if n.cfg.Artifacts == nil {
		return nacre.SnapshotManifest{}, errNoSnapshots
	}
	if !spec.ID.Valid() {
		return nacre.SnapshotManifest{}, nacre.Invalidf("ID", "the snapshot's id is not valid")
	}
	if spec.Pause && spec.Transient {
		return nacre.SnapshotManifest{}, nacre.Invalidf("Transient", "a paused sandbox needs a snapshot that stays")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e, s, err := n.beginSnapshot(id, cancel)
	if err != nil {
		return nacre.SnapshotManifest{}, err
	}
	defer n.wg.Done()
	defer context.AfterFunc(n.life, func() { cancel(errClosed()) })()
	m, err := n.keepInTurn(ctx, e, s, spec)
	n.mu.Lock()
	e.snap = nil
	close(s.done)
	n.mu.Unlock()
	if err != nil && context.Cause(ctx) == errStopped {
		err = nacre.Errorf(nacre.CodeConflict, "sandbox %s was stopped while its snapshot was taken", id)
	}
	return m, err
}

// snapshotsAtOnce, for each processor: more would only stand still for longer.
const snapshotsAtOnce = 2

// keepInTurn takes the snapshot, and with Pause ends the machine, when few others
// are taken. The route is closed then, and not while it waits.
func (n *Node) keepInTurn(ctx context.Context, e *entry, s *snapping, spec nacre.SnapshotSpec) (nacre.SnapshotManifest, error) {
	select {
	case n.keeping <- struct{}{}:
		defer func() { <-n.keeping }()
	case <-ctx.Done():
		return nacre.SnapshotManifest{}, nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the snapshot was called off while it waited for its turn")
	}
	n.mu.Lock()
	s.pause = spec.Pause
	n.mu.Unlock()
	m, err := n.keep(ctx, e.unit, spec, s)
	if err == nil && spec.Pause {
		n.leave(e)
	}
	return m, err
}

// beginSnapshot marks the sandbox. The caller calls n.wg.Done.
func (n *Node) beginSnapshot(id nacre.SandboxID, cancel context.CancelCauseFunc) (*entry, *snapping, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.sandboxes[id]
	switch {
	case n.closed:
		return nil, nil, errClosed()
	case e != nil && e.snap != nil:
		return nil, nil, nacre.Errorf(nacre.CodeConflict, "a snapshot of sandbox %s is being taken; try again when it is done", id)
	case e == nil || !e.runs():
		return nil, nil, errNoMachine(id)
	case !n.keeps(e.unit):
		return nil, nil, nacre.Errorf(nacre.CodeConflict, "sandbox %s runs on %s, which can neither pause sandboxes nor keep snapshots of them here", id, e.unit.runtime)
	}
	s := &snapping{cancel: cancel, done: make(chan struct{})}
	e.snap = s
	n.wg.Add(1)
	return e, s, nil
}

// keep takes the snapshot. When it fails, nothing of it is left and the guest goes on.
func (n *Node) keep(ctx context.Context, u *unit, spec nacre.SnapshotSpec, s *snapping) (m nacre.SnapshotManifest, err error) {
	total, err := n.roomForSnapshot(ctx, u, spec)
	if err != nil {
		return m, err
	}
	if err := n.askFirst(ctx, u, spec); err != nil {
		return m, err
	}
	logged, err := u.tail.position()
	if err != nil {
		return m, hostError(err, "the sandbox's log could not be read")
	}
	m = nacre.SnapshotManifest{
		ID: spec.ID, Sandbox: u.spec.Sandbox, Team: u.spec.Team, Machine: u.id, Pause: spec.Pause, Transient: spec.Transient,
		Build: u.spec.Build, Resources: u.spec.Resources, Hostname: u.host, LogSeq: logged, CreatedAt: n.cfg.Clock(),
	}
	dir, err := n.cfg.Artifacts.Create(ctx, spec.ID)
	if err != nil {
		return m, err
	}
	n.mu.Lock()
	s.dir, s.total = dir, total
	n.mu.Unlock()
	held := false
	m.SnapshotInfo, err = u.machine.Snapshot(ctx, dir, nacre.SnapshotOptions{KeepRunning: !spec.Pause, FilesOnly: spec.FilesOnly, Transient: spec.Transient})
	if err == nil {
		held = spec.Pause
		m, err = n.cfg.Artifacts.Commit(ctx, m)
	}
	if err == nil {
		return m, nil
	}
	ctx = context.WithoutCancel(ctx)
	// First what is written: a guest that goes on must not find a pause that exists.
	if derr := n.cfg.Artifacts.Discard(ctx, spec.ID); derr != nil {
		n.log.Error("a snapshot that failed left files behind; the next restart sweeps them", "snapshot", spec.ID, "err", derr)
	}
	if held {
		n.letGoOn(ctx, u)
	}
	return nacre.SnapshotManifest{}, err
}

// askFirst asks the guest what is to be known before it stands still. All that it may
// take is one time of asking, whatever it answers: others wait for their turn.
func (n *Node) askFirst(ctx context.Context, u *unit, spec nacre.SnapshotSpec) error {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	if spec.Healthy {
		u.mu.Lock()
		agent := u.agent
		u.mu.Unlock()
		if err := agent.Healthy(ctx); err != nil {
			return nacre.Wrap(nacre.CodeUnavailable, err, "the sandbox's agent does not answer; try again later, or pause it as it is")
		}
	}
	if spec.Pause {
		n.drainLog(ctx, u)
	}
	return nil
}

// roomForSnapshot refuses early what the disk would not hold: all that the machine
// has in memory may have to be written. It returns that much.
func (n *Node) roomForSnapshot(ctx context.Context, u *unit, spec nacre.SnapshotSpec) (need int64, err error) {
	if !spec.FilesOnly {
		usage, err := u.machine.Usage(ctx)
		if err != nil {
			return 0, err
		}
		need = usage.MemoryBytes
	}
	g := n.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.read(); err != nil {
		return 0, nacre.Wrap(nacre.CodeUnavailable, err, "the host's disk could not be read; try again")
	}
	if left, reserve := g.stats.DiskFree-need, g.diskReserve(); left < reserve {
		return 0, nacre.Errorf(nacre.CodeNoSpace, "the host's disk has no room for the snapshot: %d MiB are free, it may take %d, and %d are kept in reserve; delete snapshots or try again later",
			g.stats.DiskFree>>20, need>>20, reserve>>20)
	}
	return need, nil
}

// Progress tells how much is written of the snapshot of a sandbox that is being taken,
// and how much it may come to be, in bytes: 0 of what nobody knows. It reads a
// directory.
func (n *Node) Progress(id nacre.SandboxID) (done, total int64) {
	n.mu.RLock()
	dir := ""
	if e := n.sandboxes[id]; e != nil && e.snap != nil {
		dir, total = e.snap.dir, e.snap.total
	}
	n.mu.RUnlock()
	if dir == "" || total == 0 {
		return 0, 0
	}
	entries, _ := os.ReadDir(dir) // one that is gone has nothing in it
	for _, e := range entries {
		if st, err := e.Info(); err == nil {
			done += st.Size()
		}
	}
	return min(done, total), total
}

// letGoOn resumes a guest that stands still. Where that does not work at once it is
// tried again in the background: nobody else would.
func (n *Node) letGoOn(ctx context.Context, u *unit) {
	resume := func() bool {
		err := u.machine.Resume(ctx)
		if err == nil || nacre.IsCode(err, nacre.CodeNotFound) || nacre.IsCode(err, nacre.CodeUnsupported) {
			return true
		}
		n.log.Error("a guest that stands still could not go on; it is tried again", "machine", u.id, "err", err)
		return false
	}
	if resume() {
		return
	}
	n.spawn(func() {
		for sleep(u.life, time.Second) == nil && !resume() {
		}
	})
}

// clearLeft takes down what an earlier pause of the sandbox has left.
func (n *Node) clearLeft(ctx context.Context, id nacre.SandboxID) error {
	n.mu.RLock()
	e := n.sandboxes[id]
	left := e != nil && e.left
	n.mu.RUnlock()
	if !left {
		return nil
	}
	return n.Stop(ctx, id)
}

// Snapshots lists what exists here; see nacre.Node.
func (n *Node) Snapshots(ctx context.Context) ([]nacre.SnapshotManifest, error) {
	if n.cfg.Artifacts == nil {
		return nil, nil
	}
	return n.cfg.Artifacts.Manifests(ctx)
}

// DeleteSnapshot removes a snapshot; see nacre.Node.
func (n *Node) DeleteSnapshot(ctx context.Context, id nacre.SnapshotID) error {
	if n.cfg.Artifacts == nil {
		return nil
	}
	return n.cfg.Artifacts.Delete(ctx, id)
}

// recoverSnapshots clears what a crash left of snapshots, and returns the machines
// that were to end with one that exists.
func (n *Node) recoverSnapshots(ctx context.Context) (map[nacre.MachineID]bool, error) {
	if n.cfg.Artifacts == nil {
		return nil, nil
	}
	if err := n.cfg.Artifacts.Sweep(ctx); err != nil {
		n.log.Error("leftovers of snapshots could not all be cleared", "err", err)
	}
	list, err := n.cfg.Artifacts.Manifests(ctx)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	paused := map[nacre.MachineID]bool{}
	for _, m := range list {
		if m.Pause {
			paused[m.Machine] = true
		}
	}
	return paused, nil
}
