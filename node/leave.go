package node

import (
	"context"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// dying is what is left of a machine whose sandbox is kept: it was killed and belongs
// to nobody, but the host may take half a second for each GiB until its memory is
// free. Until then what it was promised stays promised.
type dying struct {
	unit   *unit
	memory int64
	tried  chan struct{} // closed after the first attempt to take it down

	mu   sync.Mutex // one attempt at a time
	gone bool       // nothing is left; guarded by mu
}

// leave ends the machine of a sandbox that is kept, and has the rest of it cleared
// away by a goroutine of the node's own: nobody waits for that but Close, a Stop, and
// a start that finds no room. A later process finds no handle of it, only leftovers
// by their names, however soon the sandbox goes on in another machine.
//
// A machine that cannot be killed stays the sandbox's, unreachable, until the next
// Stop or Start.
func (n *Node) leave(e *entry) {
	u := e.unit
	n.mu.Lock()
	e.left = true
	n.mu.Unlock()
	u.cancel()
	err := u.machine.Kill(context.Background())
	if err == nil {
		err = n.disown(u)
	}
	if err != nil {
		n.log.Error("the machine of a paused sandbox could not be ended; its next start or stop tries again", "sandbox", e.id, "machine", u.id, "err", err)
		return
	}
	n.metrics.end(e.id)
	d := &dying{unit: u, memory: e.memory, tried: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.sandboxes, e.id)
	n.dying[u.id] = d
	n.wg.Go(func() { n.buryInTime(d) })
}

const (
	firstBurial = time.Second // between attempts; the wait doubles
	lastBurial  = time.Minute
)

// buryInTime tries until nothing is left or the node is closed. Then the next start of
// the server sweeps it.
func (n *Node) buryInTime(d *dying) {
	for wait := firstBurial; ; wait = min(2*wait, lastBurial) {
		err := n.bury(d)
		if err == nil {
			return
		}
		n.log.Error("the machine of a paused sandbox could not be cleared away; it is tried again", "machine", d.unit.id, "in", wait, "err", err)
		if sleep(n.life, wait) != nil {
			return
		}
	}
}

// bury takes down what is left of it. A repeat is no error.
func (n *Node) bury(d *dying) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		return nil
	}
	err := n.takeDown(context.Background(), d.unit)
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-d.tried:
	default:
		close(d.tried)
	}
	if err != nil {
		return nacre.Wrap(nacre.CodeUnavailable, err, "the sandbox's machine could not be taken down entirely; try again")
	}
	d.gone = true
	delete(n.dying, d.unit.id)
	n.gate.freed(d.memory)
	return nil
}

// buryOf returns when nothing is left of the machines that the sandbox had before it
// was paused.
func (n *Node) buryOf(ctx context.Context, id nacre.SandboxID) error {
	for {
		n.mu.RLock()
		var d *dying
		for _, x := range n.dying {
			if x.unit.spec.Sandbox == id {
				d = x
			}
		}
		n.mu.RUnlock()
		if d == nil {
			return nil
		}
		done := make(chan error, 1)
		if !n.spawn(func() { done <- n.bury(d) }) {
			return errClosed()
		}
		select {
		case err := <-done:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the sandbox is still being stopped")
		}
	}
}

// awaitBurial waits for one of the machines that are being cleared away, and tells
// whether there was one.
func (n *Node) awaitBurial(ctx context.Context) bool {
	n.mu.RLock()
	var tried chan struct{}
	for _, d := range n.dying {
		select {
		case <-d.tried: // it may take long
		default:
			tried = d.tried
		}
	}
	n.mu.RUnlock()
	if tried == nil {
		return false
	}
	select {
	case <-tried:
		return true
	case <-ctx.Done():
		return false
	}
}

// reserve is the gate's. Before it refuses anybody it waits for the room that killed
// machines are about to leave: who pauses a sandbox and resumes it at once finds the
// room that it had.
func (n *Node) reserve(ctx context.Context, memory int64) error {
	for {
		err := n.gate.tryReserve(memory)
		if err == nil {
			return nil
		}
		if !nacre.IsCode(err, nacre.CodeExhausted) || !n.awaitBurial(ctx) {
			break
		}
	}
	return n.gate.reserve(memory, func() bool { return n.spareStandbys(ctx) })
}
