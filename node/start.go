package node

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
	"golang.org/x/sys/unix"
)

// entry is a sandbox's place on this node, from the moment its start is admitted
// until nothing of it is left. Its fields are guarded by Node.mu.
type entry struct {
	id     nacre.SandboxID
	memory int64 // promised

	cancel  context.CancelCauseFunc // ends the start under way
	started chan struct{}           // closed when the start has ended, well or not
	unit    *unit                   // set when the start went well
	stop    *stopping               // set while it is stopped
	snap    *snapping               // set while a snapshot of it is taken
	left    bool                    // paused for good: what there is of the machine is to be stopped
}

// runs tells whether the sandbox has a machine that runs and is to run on.
func (e *entry) runs() bool { return e.unit != nil && e.stop == nil && !e.left && !e.unit.hasEnded() }

type stopping struct {
	done chan struct{}
	err  error // valid when done is closed
}

var errStopped = errors.New("stopped")

// Start gives the sandbox a machine; see nacre.Node.
func (n *Node) Start(ctx context.Context, spec nacre.StartSpec) (nacre.Started, error) {
	if !spec.Sandbox.Valid() {
		return nacre.Started{}, nacre.Invalidf("Sandbox", "the sandbox id is not valid")
	}
	policy, err := spec.Network.Egress()
	if err != nil {
		return nacre.Started{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := n.clearLeft(ctx, spec.Sandbox); err != nil {
		return nacre.Started{}, err
	}
	e, err := n.admit(ctx, spec, cancel)
	if err != nil {
		return nacre.Started{}, err
	}
	begin := time.Now()
	spec.Chosen = onceSince(begin, spec.Chosen)
	u, path, err := n.machineFor(ctx, spec, policy)
	if err == nil {
		err = n.publish(e, u)
	}
	if err != nil {
		if u != nil {
			if uerr := n.takeDown(ctx, u); uerr != nil {
				n.log.Error("a failed start left something behind; the next restart sweeps it", "machine", u.id, "err", uerr)
			}
		}
		n.drop(e)
		if context.Cause(ctx) == errStopped {
			err = nacre.Errorf(nacre.CodeConflict, "sandbox %s was stopped while it started", spec.Sandbox)
		}
		return nacre.Started{}, outOfFiles(err)
	}
	return nacre.Started{Machine: u.id, Runtime: u.runtime, BootPath: path, BootTime: time.Since(begin)}, nil
}

// onceSince tells of the first machine, and how long after begin it was there.
func onceSince(begin time.Time, tell func(nacre.Started)) func(nacre.Started) {
	if tell == nil {
		return func(nacre.Started) {}
	}
	var once sync.Once
	return func(st nacre.Started) {
		st.BootTime = time.Since(begin)
		once.Do(func() { tell(st) })
	}
}

// outOfFiles gives its code to a start that failed, wherever it did, for want of
// file descriptors. Of some of gVisor's errors only the text is left.
func outOfFiles(err error) error {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || strings.Contains(err.Error(), unix.EMFILE.Error()) {
		return nacre.Wrap(nacre.CodeUnavailable, err, "the server has too many files open; try again later, and raise its limit of open files if this lasts")
	}
	return err
}

// machineFor hands over a standby, or boots. The unit comes back with an error
// too, when there is something to take down.
func (n *Node) machineFor(ctx context.Context, spec nacre.StartSpec, policy nacre.EgressPolicy) (*unit, nacre.BootPath, error) {
	shape := n.complete(Shape{Build: spec.Build, Runtime: spec.Runtime, Resources: spec.Resources, Snapshot: spec.Snapshot})
	if shape.Runtime != "" {
		if _, err := n.cfg.Runtime.Capabilities().Offers(shape.Runtime); err != nil {
			return nil, "", err
		}
	}
	ready := n.hasStandby(shape, spec.Runtime)
	if spec.Team != nacre.SystemTeam && (ready || spec.Snapshot == "") {
		n.asked(shape)
	}
	if ready {
		if u, err := n.handStandby(ctx, shape, spec, policy); u != nil || err != nil {
			return u, nacre.BootStandby, err
		}
	}
	snap, err := n.open(ctx, shape, spec)
	if err != nil {
		return nil, "", err
	}
	defer snap.close()
	if snap != nil && snap.m.Team == nacre.SystemTeam { // a template's
		n.asked(shape)
	}
	done, err := n.gate.bootTurn(ctx)
	if err != nil {
		return nil, "", err
	}
	defer done()
	if spec.Boot && snap != nil && !snap.m.FilesOnly {
		if snap, err = n.filesOf(ctx, shape, snap); err != nil {
			return nil, "", err
		}
		defer snap.close()
	}
	u, err := n.boot(ctx, shape, policy, snap)
	if err != nil {
		return nil, "", err
	}
	path := nacre.BootCold
	if u.from != nil {
		path = nacre.BootWarm
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.BootTimeout)
	defer cancel()
	if u.from == nil {
		spec.Chosen = nil // of guests that lived before alone
	}
	return u, path, n.bind(ctx, u, path, spec, policy)
}

// publish makes the machine the sandbox's for everybody.
func (n *Node) publish(e *entry, u *unit) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case u.hasEnded():
		return nacre.Errorf(nacre.CodeInternal, "the machine ended while it started: %s", u.exitDetail())
	case n.closed:
		return errClosed()
	}
	e.unit = u
	n.lastStart = time.Now()
	close(e.started)
	u.dialed.Do(func() { n.wg.Go(func() { n.dialAhead(u) }) })
	n.observe(u)
	return nil
}

// observe starts to record the sandbox's log and metrics; n.mu is held.
func (n *Node) observe(u *unit) {
	u.tail = n.logs.tail(u.spec.Sandbox, u.id, u.from)
	n.metrics.begin(u.spec.Sandbox)
	n.wg.Go(func() { n.collect(u) })
	n.wg.Go(func() { n.sample(u) })
}

// drop forgets an entry whose start failed.
func (n *Node) drop(e *entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.sandboxes, e.id)
	n.lastStart = time.Now()
	close(e.started)
	n.gate.giveBack(e.memory)
}

// Stop ends the sandbox's machine; see nacre.Node. A start under way is called off.
func (n *Node) Stop(ctx context.Context, id nacre.SandboxID) error {
	for {
		n.mu.Lock()
		e := n.sandboxes[id]
		if e == nil {
			n.mu.Unlock()
			return n.buryOf(ctx, id)
		}
		if over := e.callOff(); over != nil {
			n.mu.Unlock()
			select {
			case <-over:
				continue
			case <-ctx.Done():
				return nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the sandbox is still being stopped")
			}
		}
		s := e.stop
		if s == nil {
			if n.closed {
				n.mu.Unlock()
				return errClosed()
			}
			s = &stopping{done: make(chan struct{})}
			e.stop = s
			n.wg.Go(func() { n.finish(e, s) })
		}
		n.mu.Unlock()
		select {
		case <-s.done:
			if s.err != nil {
				return s.err
			}
			return n.buryOf(ctx, id) // of a pause just before
		case <-ctx.Done():
			return nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the sandbox is still being stopped")
		}
	}
}

// callOff ends a start or a snapshot of the sandbox under way; nil when there is
// none. Node.mu is held.
func (e *entry) callOff() (over <-chan struct{}) {
	switch {
	case e.unit == nil:
		e.cancel(errStopped)
		return e.started
	case e.snap != nil:
		e.snap.cancel(errStopped)
		return e.snap.done
	}
	return nil
}

// finish takes a sandbox's machine down, whoever still waits for it.
func (n *Node) finish(e *entry, s *stopping) {
	ctx := context.Background()
	u := e.unit
	if !e.left {
		ctx, cancel := context.WithTimeout(ctx, n.cfg.LogDrain)
		n.drainLog(ctx, u)
		cancel()
	}
	err := n.takeDown(ctx, u)
	if err != nil {
		err = nacre.Wrap(nacre.CodeUnavailable, err, "the sandbox's machine could not be taken down entirely; try again")
	} else {
		n.metrics.end(u.spec.Sandbox)
	}
	n.mu.Lock()
	s.err = err
	if err == nil {
		delete(n.sandboxes, e.id)
		n.gate.giveBack(e.memory)
	} else {
		e.stop = nil // the next Stop tries again
	}
	close(s.done)
	n.mu.Unlock()
	n.wake()
}

// SetEgress replaces the outbound policy; see nacre.Node.
func (n *Node) SetEgress(ctx context.Context, id nacre.SandboxID, p nacre.EgressPolicy) error {
	u, err := n.running(id)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.forgot || u.exit != nil {
		return errNoMachine(id)
	}
	if err := n.cfg.Network.SetEgress(ctx, u.id, p); err != nil {
		return err
	}
	u.policy = p
	return n.handles.save(u.file())
}

func (n *Node) wake() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

func errNoMachine(id nacre.SandboxID) error {
	return nacre.Errorf(nacre.CodeNotFound, "sandbox %s has no machine on this node", id)
}
