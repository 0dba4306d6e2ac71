package node

import (
	"context"
	"runtime"
	"time"

	"github.com/nacrehq/nacre"
)

// Standby says how many machines run ahead of the next create.
type Standby struct {
	// Count for each shape; 0 none, -1 by the size of the host.
	Count int
	// Quiet is how long no start may have begun or ended before a standby is
	// made: creates go first. Default 50 ms.
	Quiet time.Duration
	// Patience is how long the wait for quiet may last while no start queues for
	// its turn: steady creates must not starve the pool. Default 250 ms.
	Patience time.Duration
	// Check is how often standbys are asked whether they answer. Default 5 s.
	Check time.Duration
}

func (s *Standby) setDefaults() {
	if s.Count < 0 {
		s.Count = min(4, max(2, runtime.NumCPU()))
	}
	setDefault(&s.Quiet, 50*time.Millisecond)
	setDefault(&s.Patience, 250*time.Millisecond)
	setDefault(&s.Check, 5*time.Second)
}

// KeepReady says of which shapes standbys are kept, Config.Standby.Count of each.
// Those of other shapes are given up.
func (n *Node) KeepReady(shapes ...Shape) {
	n.mu.Lock()
	n.want = map[Shape]int{}
	for _, s := range shapes {
		n.want[s] = n.cfg.Standby.Count
	}
	n.mu.Unlock()
	n.wake()
}

// takeStandby takes the oldest standby of the shape that runs, nil when there is none.
func (n *Node) takeStandby(shape Shape) *unit {
	n.mu.Lock()
	defer n.mu.Unlock()
	for us := n.ready[shape]; len(us) > 0; us = n.ready[shape] {
		u := us[0]
		n.ready[shape] = us[1:]
		if !u.hasEnded() {
			n.wake()
			return u
		}
		n.discardLocked(u)
	}
	return nil
}

func (n *Node) discard(u *unit) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.discardLocked(u)
}

// discardLocked takes a standby down in the background; n.mu is held.
func (n *Node) discardLocked(u *unit) {
	if n.closed {
		return
	}
	n.wg.Go(func() {
		if err := n.takeDown(context.Background(), u); err != nil {
			n.log.Error("a standby left something behind; the next restart sweeps it", "machine", u.id, "err", err)
		}
	})
}

// dropStandby forgets a standby whose machine ended.
func (n *Node) dropStandby(u *unit) {
	n.mu.Lock()
	defer n.mu.Unlock()
	us := n.ready[u.shape]
	for i := range us {
		if us[i] == u {
			n.ready[u.shape] = append(us[:i:i], us[i+1:]...)
			n.discardLocked(u)
			n.wake()
			return
		}
	}
}

// spareStandbys gives up every standby because memory is short, and tells whether
// there was one. It returns when they are gone.
func (n *Node) spareStandbys(ctx context.Context) bool {
	n.mu.Lock()
	var all []*unit
	for shape, us := range n.ready {
		all = append(all, us...)
		delete(n.ready, shape)
	}
	n.mu.Unlock()
	for _, u := range all {
		if err := n.takeDown(ctx, u); err != nil {
			n.log.Error("a standby left something behind; the next restart sweeps it", "machine", u.id, "err", err)
		}
	}
	return len(all) > 0
}

// keepStandbys makes standbys one at a time while nothing is being created, and
// gives up those that do not answer or that nobody wants.
func (n *Node) keepStandbys(ctx context.Context) {
	tick := time.NewTicker(n.cfg.Standby.Check)
	defer tick.Stop()
	for {
		n.trimStandbys()
		for ctx.Err() == nil && n.refill(ctx) {
		}
		select {
		case <-ctx.Done():
			return
		case <-n.kick:
		case <-tick.C:
			n.checkStandbys(ctx)
		}
	}
}

// refill makes one standby and tells whether it is worth calling again at once.
func (n *Node) refill(ctx context.Context) bool {
	shape, ok := n.missing()
	if !ok || !n.quiet(ctx) || !n.roomForStandby() {
		return false
	}
	done, ok := n.gate.tryTurn()
	if !ok {
		return false // the next tick tries again
	}
	defer done()
	// The slot is closed until a sandbox brings its policy.
	u, err := n.boot(ctx, shape, nacre.EgressPolicy{DenyAll: true})
	if err == nil {
		if err = n.warm(ctx, u); err != nil {
			n.discard(u)
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			n.log.Warn("a standby could not be made", "build", shape.Build, "err", err)
		}
		return false // the next tick tries again
	}
	u.mu.Lock()
	u.started = n.cfg.Clock()
	err = n.handles.save(u.file())
	u.mu.Unlock()

	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil || n.closed || u.hasEnded() || n.want[shape] <= len(n.ready[shape]) {
		n.discardLocked(u)
		return false
	}
	n.ready[shape] = append(n.ready[shape], u)
	return true
}

// missing returns a shape that has fewer standbys than it should.
func (n *Node) missing() (Shape, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for shape, count := range n.want {
		if len(n.ready[shape]) < count {
			return shape, true
		}
	}
	return Shape{}, false
}

// quiet waits until no start is under way and none was a moment ago, or until it
// has waited long and none queues.
func (n *Node) quiet(ctx context.Context) bool {
	for begin := time.Now(); ; {
		n.mu.RLock()
		wait := n.cfg.Standby.Quiet - time.Since(n.lastStart)
		for _, e := range n.sandboxes {
			if e.unit == nil {
				wait = max(wait, n.cfg.Standby.Quiet)
				break
			}
		}
		n.mu.RUnlock()
		if wait <= 0 || (time.Since(begin) >= n.cfg.Standby.Patience && !n.gate.queued()) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(min(wait, n.cfg.Standby.Patience)):
		}
	}
}

// roomForStandby keeps well away from the reserve: a standby is a convenience.
func (n *Node) roomForStandby() bool {
	g := n.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.read() == nil && g.available() >= 2*g.memoryReserve() && g.stats.DiskFree >= g.diskReserve()
}

func (n *Node) trimStandbys() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for shape, us := range n.ready {
		keep := min(n.want[shape], len(us))
		for _, u := range us[keep:] {
			n.discardLocked(u)
		}
		if keep == 0 {
			delete(n.ready, shape)
		} else {
			n.ready[shape] = us[:keep]
		}
	}
}

func (n *Node) checkStandbys(ctx context.Context) {
	n.mu.RLock()
	var all []*unit
	for _, us := range n.ready {
		all = append(all, us...)
	}
	n.mu.RUnlock()
	for _, u := range all {
		u.mu.Lock()
		agent := u.agent
		u.mu.Unlock()
		if err := n.healthy(ctx, agent); err != nil && ctx.Err() == nil {
			n.log.Warn("a standby does not answer", "machine", u.id, "err", err)
			n.dropStandby(u)
		}
	}
}
