package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nacrehq/nacre"
	"golang.org/x/sync/errgroup"
)

// Recover takes back the machines that an earlier process started. When it
// returns, traffic, exits and Machines tell the truth; what a crash left behind
// is swept in the background. A handle that cannot be read is set aside: it costs
// its sandbox, never the start of the node.
func (n *Node) Recover(ctx context.Context) error {
	files, bad, err := n.handles.load()
	if err != nil {
		return fmt.Errorf("read handles: %w", err)
	}
	for _, b := range bad {
		n.log.Error("a machine's handle cannot be read and was set aside; its machine is swept", "handle", b)
	}
	if err := n.mayRecover(files); err != nil {
		return err
	}
	paused, err := n.recoverSnapshots(ctx)
	if err != nil {
		return err
	}
	units := make([]*unit, len(files))
	var g errgroup.Group
	g.SetLimit(32)
	for i, f := range files {
		g.Go(func() error {
			units[i] = n.takeBack(ctx, f)
			n.goOn(ctx, units[i], paused)
			return nil
		})
	}
	_ = g.Wait() // takeBack has no error: what is gone is a finding
	if err := ctx.Err(); err != nil {
		return err
	}
	slots := map[nacre.MachineID]nacre.RecoveredSlot{}
	for _, u := range units {
		if u.machine != nil {
			slots[u.id] = nacre.RecoveredSlot{Slot: u.slot, Policy: u.policy}
		}
	}
	if err := n.cfg.Network.Recover(ctx, slots); err != nil {
		return fmt.Errorf("recover the network: %w", err)
	}
	for _, u := range units {
		g.Go(func() error {
			if !u.over || !n.clearOver(ctx, u) {
				n.adopt(u)
			}
			return nil
		})
	}
	_ = g.Wait()
	n.spawn(func() { n.sweep(n.life) })
	return nil
}

// takeBack finds the machine of one handle.
func (n *Node) takeBack(ctx context.Context, f handleFile) *unit {
	u := n.newUnit(f.Handle.Machine, f.Shape)
	u.slot, u.policy, u.started = f.Slot, f.Policy, f.Started
	u.anew, u.from, u.runtime, u.bootedWith = false, f.From, f.Handle.Runtime, f.Agent
	if u.shape.Snapshot == "" {
		u.shape.Runtime = u.runtime // which a handle of a server that had one runtime does not say
	}
	if f.Host != "" {
		u.host = f.Host
	}
	if f.Spec != nil {
		u.spec = *f.Spec
	}
	n.pushFiles(u)
	n.pushPrepared(u)
	m, err := n.cfg.Runtime.Recover(ctx, f.Handle)
	switch {
	case err == nil:
		u.machine = m
	case nacre.IsCode(err, nacre.CodeNotFound):
		err = nil
	default:
		n.log.Error("a machine could not be taken back", "sandbox", u.spec.Sandbox, "machine", u.id, "err", err)
	}
	n.pushMachine(u)
	switch {
	case f.Exit != nil:
		u.exit = f.Exit
	case f.Unmet && f.Spec != nil && u.machine != nil:
		// It would be reached by the tokens of nobody, without its environment.
		u.unmet = true
		u.exit = &nacre.Exit{Machine: u.id, Reason: nacre.EndFailed, At: n.cfg.Clock(), Detail: "the server was restarted while the sandbox was started"}
	case u.machine == nil:
		exit := n.lostExit(f, err)
		u.exit = &exit
	default:
		u.exit = endedAlready(ctx, u.machine)
	}
	if u.exit != nil {
		close(u.ended)
	}
	token := ""
	if u.spec.Secure {
		token = n.cfg.TokenKey.AccessToken(u.spec.Sandbox, u.spec.TokenEpoch)
	}
	u.agent = n.cfg.NewAgent(u.dial, n.cfg.TokenKey.HostToken(u.knows()), token)
	return u
}

// goOn lets a guest go on that stood still when the process before this one died,
// unless its machine is to end: a pause of it was finished, or its restore was not.
func (n *Node) goOn(ctx context.Context, u *unit, paused map[nacre.MachineID]bool) {
	if u.spec.Sandbox != "" && (paused[u.id] || u.from != nil && u.from.Unmet) {
		u.over = true
		return
	}
	if u.machine != nil && !u.hasEnded() && n.keeps(u) {
		n.letGoOn(ctx, u)
	}
}

// clearOver takes down what goOn found to be over, and tells whether that is done.
// Otherwise it stays, unreachable, until it is stopped.
func (n *Node) clearOver(ctx context.Context, u *unit) bool {
	if err := n.takeDown(ctx, u); err != nil {
		n.log.Error("a machine that was to end could not be taken down entirely", "sandbox", u.spec.Sandbox, "machine", u.id, "err", err)
		return false
	}
	return true
}

// endedAlready returns how a machine ended that was found dead, nil for one that
// runs. A machine that has ended answers at once.
func endedAlready(ctx context.Context, m nacre.Machine) *nacre.Exit {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	exit, err := m.Wait(ctx)
	if err != nil {
		return nil
	}
	return &exit
}

// lostExit says why a machine is gone that nobody saw end.
func (n *Node) lostExit(f handleFile, cause error) nacre.Exit {
	exit := nacre.Exit{Machine: f.Handle.Machine, Reason: nacre.EndCrash, At: n.cfg.Clock(),
		Detail: "the machine ended while the server was not running"}
	if f.BootID != n.handles.bootID {
		exit.Reason, exit.Detail = nacre.EndNodeLost, "the host was restarted"
	} else if cause != nil {
		exit.Detail = "the machine could not be taken back after a restart of the server"
	}
	return exit
}

// adopt makes a recovered unit part of the node.
func (n *Node) adopt(u *unit) {
	if u.spec.Sandbox == "" {
		n.adoptStandby(u)
		return
	}
	e := &entry{id: u.spec.Sandbox, memory: int64(u.spec.Resources.MemoryMiB) << 20, started: make(chan struct{}), unit: u, left: u.over}
	close(e.started)
	n.mu.Lock()
	if n.sandboxes[e.id] != nil {
		n.log.Error("two machines claim one sandbox; one is taken down", "sandbox", e.id, "machine", u.id)
		n.discardLocked(u)
		n.mu.Unlock()
		return
	}
	n.sandboxes[e.id] = e
	n.gate.adopt(e.memory)
	ended := u.hasEnded()
	if ended || e.left {
		u.tail = n.logs.tail(u.spec.Sandbox, u.id, u.from)
	} else {
		n.observe(u)
	}
	n.mu.Unlock()
	if ended {
		n.announce(u)
		return
	}
	n.spawn(func() { n.watch(u) })
}

// adoptStandby keeps a standby that runs, unless it booted with another agent: after an
// upgrade a new sandbox has what the upgrade brings. (Those of a snapshot are as old as
// it is, and go with it.)
func (n *Node) adoptStandby(u *unit) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if u.hasEnded() || u.shape.Snapshot == "" && u.bootedWith != n.agentName() {
		n.discardLocked(u)
		return
	}
	n.ready[u.shape] = append(n.ready[u.shape], u)
	if _, ok := n.want[u.shape]; !ok {
		n.want[u.shape] = n.cfg.Standby.Count // until KeepReady says otherwise
	}
	n.wg.Go(func() { n.watch(u) })
}

// sweep clears what a crash left without a handle, by name. Starts may go on:
// what they make is known before it exists.
func (n *Node) sweep(ctx context.Context) {
	keep := func(id nacre.MachineID) bool {
		n.mu.RLock()
		defer n.mu.RUnlock()
		_, ok := n.known[id]
		return ok
	}
	if err := n.cfg.Runtime.Sweep(ctx, keep); err != nil && ctx.Err() == nil {
		n.log.Error("leftovers of machines could not all be cleared", "err", err)
	}
	if err := n.cfg.Images.Sweep(ctx, keep); err != nil && ctx.Err() == nil {
		n.log.Error("leftovers of root file systems could not all be cleared", "err", err)
	}
	entries, err := os.ReadDir(filepath.Join(n.cfg.Dir, "machines"))
	if err != nil {
		n.log.Error("the machines' directories could not be listed", "err", err)
		return
	}
	for _, e := range entries {
		id := nacre.MachineID(e.Name())
		if ctx.Err() == nil && id.Valid() && !keep(id) {
			if err := os.RemoveAll(n.stateDir(id)); err != nil {
				n.log.Error("a machine's directory could not be deleted", "machine", id, "err", err)
			}
		}
	}
}
