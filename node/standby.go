package node

import (
	"context"
	"net"
	"runtime"
	"time"

	"github.com/nacrehq/nacre"
	"golang.org/x/sync/errgroup"
)

// Standby says how many machines run ahead of the next create.
//
// The first few of a shape serve single creates and are made as soon as it is
// quiet. The others are there for bursts: they are made slowly, and wait four
// times as long for quiet.
type Standby struct {
	// Count for each shape; 0 none, -1 by the size of the host.
	Count int
	// Quiet is how long no start may have begun or ended before a standby is
	// made or asked: creates go first, and their first commands. Default 150 ms.
	Quiet time.Duration
	// Patience is how long the wait for quiet may last while no start queues for
	// its turn: steady creates must not starve the pool. Default 250 ms.
	Patience time.Duration
	// Check is how often some of the standbys are asked whether they answer.
	// Default 5 s.
	Check time.Duration
}

const (
	// By the size of the host standbys take a sixteenth of its memory, for one takes
	// 15 MiB. What an idle guest does is a fifth of a thousandth of a processor:
	// as many as are allowed for each take a hundredth of it.
	standbyMemory  = 15 << 20
	standbyPart    = 16
	standbysPerCPU = 50

	burstQuiet = 4           // times as quiet must it be for those that are there for bursts
	burstPause = 3           // times as long as one took to make is the pause before the next
	checked    = 8           // standbys in one round of checks: a check costs some milliseconds
	asking     = time.Second // for an answer
)

// first is how many standbys of a shape are made without a pause.
func first() int { return min(4, max(2, runtime.NumCPU())) }

// byHost is how many standbys a host of so much memory keeps.
func byHost(memory int64) int {
	return max(first(), min(int(memory/standbyPart/standbyMemory), standbysPerCPU*runtime.NumCPU()))
}

func (s *Standby) setDefaults(host func() (HostStats, error)) {
	if s.Count < 0 {
		stats, _ := host() // of a host that tells nothing: none but the first
		s.Count = byHost(stats.MemoryTotal)
	}
	setDefault(&s.Quiet, 150*time.Millisecond)
	setDefault(&s.Patience, 250*time.Millisecond)
	setDefault(&s.Check, 5*time.Second)
}

// KeepReady says of which shapes standbys are kept, Config.Standby.Count of each.
// Those of other shapes are given up, but for the shapes in demand.
func (n *Node) KeepReady(shapes ...Shape) {
	n.mu.Lock()
	n.want = map[Shape]int{}
	for _, s := range shapes {
		n.want[n.complete(s)] = n.cfg.Standby.Count
	}
	n.mu.Unlock()
	n.wake()
}

func (n *Node) hasStandby(shape Shape, asked nacre.RuntimeName) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	us := n.ready[shape]
	return len(us) > 0 && (asked == "" || asked == us[0].runtime) // they are all of one
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
	var g errgroup.Group
	g.SetLimit(8)
	for _, u := range all {
		g.Go(func() error {
			if err := n.takeDown(ctx, u); err != nil {
				n.log.Error("a standby left something behind; the next restart sweeps it", "machine", u.id, "err", err)
			}
			return nil
		})
	}
	_ = g.Wait()
	return len(all) > 0
}

// keepStandbys makes standbys one at a time while nothing is being created, and
// gives up those that do not answer or that nobody wants.
func (n *Node) keepStandbys(ctx context.Context) {
	tick := time.NewTicker(n.cfg.Standby.Check)
	defer tick.Stop()
	var paused time.Time // until then only the first few are made
	for round := 0; ; {
		n.trimStandbys()
		for ctx.Err() == nil && n.refill(ctx, &paused) {
		}
		var resume <-chan time.Time
		if d := time.Until(paused); d > 0 {
			resume = time.After(d)
		}
		select {
		case <-ctx.Done():
			return
		case <-n.kick:
		case <-resume:
		case <-tick.C:
			n.checkStandbys(ctx, round)
			round++
		}
	}
}

// refill makes one standby and tells whether it is worth calling again at once.
func (n *Node) refill(ctx context.Context, paused *time.Time) bool {
	shape, urgent := n.missing()
	if shape == nil || !urgent && time.Now().Before(*paused) || !n.quiet(ctx) || !n.roomForStandby() {
		return false
	}
	done, ok := n.gate.tryTurn()
	if !ok {
		return false // the next tick tries again
	}
	defer done()
	begin := time.Now()
	u, err := n.bootStandby(ctx, *shape)
	*paused = time.Now().Add(burstPause * time.Since(begin))
	if err != nil {
		if ctx.Err() == nil {
			n.log.Warn("a standby could not be made", "build", shape.Build, "err", err)
			n.unwanted(*shape)
		}
		return false // the next tick tries again
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || u.hasEnded() || n.wanted()[*shape] <= len(n.ready[*shape]) {
		n.discardLocked(u)
		return false
	}
	n.ready[*shape] = append(n.ready[*shape], u)
	return true
}

// bootStandby makes a standby. Its slot is closed until a sandbox brings its policy.
func (n *Node) bootStandby(ctx context.Context, shape Shape) (*unit, error) {
	snap, err := n.open(ctx, shape, nacre.StartSpec{})
	if err != nil {
		return nil, err
	}
	defer snap.close()
	u, err := n.boot(ctx, shape, nacre.EgressPolicy{DenyAll: true}, snap)
	if err != nil {
		return nil, err
	}
	if err = n.warm(ctx, u); err == nil {
		u.mu.Lock()
		u.started = n.cfg.Clock()
		err = n.handles.save(u.file())
		u.mu.Unlock()
	}
	if err != nil {
		n.discard(u)
		return nil, err
	}
	return u, nil
}

// missing returns a shape that has fewer standbys than it should, nil when there
// is none, and whether it lacks one of the first few.
func (n *Node) missing() (shape *Shape, urgent bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for s, count := range n.wanted() {
		have := len(n.ready[s])
		if have < min(count, first()) {
			return &s, true
		}
		if have < count {
			shape = &s
		}
	}
	return shape, false
}

// quiet waits until no start is under way and none was a moment ago, or until it
// has waited long and none queues.
func (n *Node) quiet(ctx context.Context) bool {
	for begin := time.Now(); ; {
		quiet, patience := n.cfg.Standby.Quiet, n.cfg.Standby.Patience
		if _, urgent := n.missing(); !urgent {
			quiet, patience = burstQuiet*quiet, burstQuiet*patience
		}
		wait := n.untilQuiet(quiet)
		if wait <= 0 || (time.Since(begin) >= patience && !n.gate.queued()) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(min(wait, n.cfg.Standby.Patience)):
		}
	}
}

// untilQuiet returns how long it is, at least, until no start has been under way for
// as long as quiet.
func (n *Node) untilQuiet(quiet time.Duration) time.Duration {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, e := range n.sandboxes {
		if e.unit == nil {
			return quiet
		}
	}
	return quiet - time.Since(n.lastStart)
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
	want := n.wanted()
	for shape, us := range n.ready {
		keep := min(want[shape], len(us))
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

// checkStandbys asks some of the standbys whether they answer: all of a small
// pool, a part of a large one, another each round. A start ends the round: while
// there are many, they find out themselves.
func (n *Node) checkStandbys(ctx context.Context, round int) {
	n.mu.RLock()
	var all []*unit
	for _, us := range n.ready {
		all = append(all, us...)
	}
	n.mu.RUnlock()
	if parts := (len(all) + checked - 1) / checked; parts > 1 {
		at := round % parts * checked
		all = all[at:min(at+checked, len(all))]
	}
	for _, u := range all {
		if n.untilQuiet(n.cfg.Standby.Quiet) > 0 {
			return
		}
		if err := n.ask(ctx, u); err != nil && ctx.Err() == nil {
			n.log.Warn("a standby does not answer", "machine", u.id, "err", err)
			n.dropStandby(u)
		}
	}
}

// ask returns nil when the standby answers: over the connection that its sandbox's
// client will have, which the guest would end if nobody used it for minutes. One that
// is of no use any more is replaced.
func (n *Node) ask(ctx context.Context, u *unit) error {
	agent := u.client()
	if conn := u.takeSpare(); conn != nil {
		if greets(ctx, agent, conn) {
			u.putSpare(conn)
			return nil
		}
		_ = conn.Close()
	}
	if err := n.healthy(ctx, agent); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	u.keepSpare(ctx)
	return nil
}

func greets(ctx context.Context, agent nacre.Agent, conn net.Conn) bool {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	g, ok := agent.(greeter)
	return ok && g.Greet(ctx, conn) == nil
}
