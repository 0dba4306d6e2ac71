package node

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/undo"
	"golang.org/x/sync/errgroup"
)

// Shape is what makes standbys interchangeable: the artifact and the limits.
type Shape struct {
	Build     nacre.BuildID
	Runtime   nacre.RuntimeName `json:",omitempty"` // of one that boots; "" is the node's default
	Resources nacre.Resources
	Snapshot  nacre.SnapshotID `json:",omitempty"` // which they are restored from; "" boots
}

// unit is one machine here with all that belongs to it.
type unit struct {
	id         nacre.MachineID
	shape      Shape
	runtime    nacre.RuntimeName
	machine    nacre.Machine // nil for one that was gone when this process came
	slot       nacre.Slot
	host       string     // the guest's name
	bootedWith string     // its agent; "" of one that was restored
	down       undo.Stack // takes all of it away

	life   context.Context // ends when the machine is taken down or the node closed
	cancel context.CancelFunc
	ahead  chan net.Conn // hands over the connection that dialAhead made
	dialed sync.Once     // dialAhead was begun
	ended  chan struct{} // closed when the machine has ended; exit is set then

	mu      sync.Mutex // guards what follows, and orders writes of the handle
	spec    nacre.StartSpec
	policy  nacre.EgressPolicy
	agent   nacre.Agent
	started time.Time
	exit    *nacre.Exit
	exitNo  int64 // place in the order of exits, 0 while it runs
	forgot  bool  // the handle is gone or going: write it no more
	tail    *logTail
	anew    bool     // the next Init gives the guest an identity of its own
	stirred bool     // the guest was given entropy since it began, or was restored
	from    *lineage // nil for one that booted
	spare   net.Conn // to the agent, idle and used before; nil for none
	unmet   bool     // the sandbox's, and its guest has not confirmed that it knows
	over    bool     // found to be taken down when it was taken back
}

func (n *Node) newUnit(id nacre.MachineID, shape Shape) *unit {
	u := &unit{id: id, shape: shape, host: string(id), anew: true, ahead: make(chan net.Conn), ended: make(chan struct{})}
	u.life, u.cancel = context.WithCancel(n.life)
	n.mu.Lock()
	n.known[id] = struct{}{}
	n.mu.Unlock()
	return u
}

// agentName says the content of the agent that machines boot with now.
func (n *Node) agentName() string { return filepath.Base(n.cfg.AgentPath) }

func (n *Node) stateDir(id nacre.MachineID) string {
	return filepath.Join(n.cfg.Dir, "machines", string(id))
}

// pushFiles puts on the stack what is deleted last.
func (n *Node) pushFiles(u *unit) {
	u.down.Push("name", func(context.Context) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.known, u.id)
		return nil
	})
	u.down.Push("handle", func(context.Context) error {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.forgot = true
		return n.handles.remove(u.id)
	})
	u.down.Push("state directory", func(context.Context) error { return os.RemoveAll(n.stateDir(u.id)) })
}

// pushPrepared puts on the stack what prepare makes, which goes side by side too.
func (n *Node) pushPrepared(u *unit) {
	u.down.Push("root file system and network slot", func(ctx context.Context) error {
		var root, slot error
		var wg sync.WaitGroup
		wg.Go(func() { root = n.cfg.Images.Release(ctx, u.id) })
		slot = n.cfg.Network.Release(ctx, u.id)
		wg.Wait()
		return errors.Join(root, slot)
	})
}

func (n *Node) pushMachine(u *unit) {
	u.down.Push("agent client", func(context.Context) error {
		u.mu.Lock()
		defer u.mu.Unlock()
		closeAgent(u.agent)
		if u.spare != nil {
			_ = u.spare.Close()
		}
		return nil
	})
	if u.machine != nil {
		u.down.Push("machine", u.machine.Stop)
	}
	u.down.Push("watchers", func(context.Context) error { u.cancel(); return nil })
}

// takeDown leaves nothing of the unit. What fails can be tried again.
func (n *Node) takeDown(ctx context.Context, u *unit) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return u.down.Run(ctx)
}

// boot makes a machine whose agent answers and which belongs to nobody yet, from a
// snapshot when one is given. When it fails nothing is left.
//
// The guest is named after the machine, and not after the sandbox: a standby has its
// name before it has its sandbox, and gVisor lets only who boots a guest name it. A
// sandbox that goes on keeps the name that it had.
func (n *Node) boot(ctx context.Context, shape Shape, policy nacre.EgressPolicy, snap *opened) (_ *unit, err error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.BootTimeout)
	defer cancel()
	u := n.newUnit(nacre.NewMachineID(), shape)
	u.policy, u.runtime = policy, n.complete(shape).Runtime
	if snap != nil {
		u.descend(snap)
	} else {
		u.bootedWith = n.agentName()
	}
	n.pushFiles(u)
	defer func() {
		if err != nil {
			u.cancel()
			if uerr := n.takeDown(ctx, u); uerr != nil {
				n.log.Error("a failed start left something behind; the next restart sweeps it", "machine", u.id, "err", uerr)
			}
		}
	}()
	if err := os.Mkdir(n.stateDir(u.id), 0o700); err != nil {
		return nil, hostError(err, "the machine's directory could not be made")
	}
	root, err := n.prepare(ctx, u)
	if err != nil {
		return nil, err
	}
	err = n.launch(ctx, u, nacre.MachineSpec{
		ID: u.id, Runtime: u.runtime, Hostname: u.host, Root: root, Slot: u.slot, Resources: shape.Resources,
		AgentPath: n.cfg.AgentPath, StateDir: n.stateDir(u.id),
	}, snap)
	if err != nil {
		return nil, err
	}
	n.pushMachine(u)
	if !n.spawn(func() { n.watch(u) }) {
		return nil, errClosed()
	}
	if snap != nil && snap.deaf {
		return u, nil
	}
	return u, n.awaitAgent(ctx, u)
}

// prepare makes the root file system and the slot side by side.
func (n *Node) prepare(ctx context.Context, u *unit) (root nacre.RootFS, err error) {
	n.pushPrepared(u)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		root, err = n.cfg.Images.Prepare(ctx, u.shape.Build, u.id, u.shape.Resources.DiskMiB)
		return err
	})
	g.Go(func() (err error) {
		u.slot, err = n.cfg.Network.Acquire(ctx, u.id, u.policy)
		return err
	})
	return root, g.Wait()
}

// awaitAgent returns when the guest's agent answers, which takes a few
// milliseconds: so it asks often at first. That of a guest which lived before needs
// no question: it accepts the connection that its Init goes over.
func (n *Node) awaitAgent(ctx context.Context, u *unit) error {
	agent := n.cfg.NewAgent(u.dial, n.cfg.TokenKey.HostToken(u.knows()), "")
	u.mu.Lock()
	u.agent = agent
	u.mu.Unlock()
	ask := func() error { return n.healthy(ctx, agent) }
	if _, ok := agent.(greeter); ok && u.from != nil {
		ask = func() error { return u.wake(ctx) }
	}
	pause := time.Millisecond
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-u.ended:
			return nacre.Errorf(nacre.CodeInternal, "the machine ended while it started: %s", u.exitDetail())
		case <-ctx.Done():
			return errSilent(err)
		case <-time.After(pause):
		}
		pause = min(pause*5/4, 20*time.Millisecond)
	}
}

// errSilent is what a start ends with whose guest has had its time.
func errSilent(cause error) error {
	return nacre.Wrap(nacre.CodeDeadline, cause, "the sandbox's agent did not answer in time")
}

func (n *Node) healthy(ctx context.Context, agent nacre.Agent) error {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	return agent.Healthy(ctx)
}

// watch waits for the machine's end and records it.
func (n *Node) watch(u *unit) {
	exit, err := u.machine.Wait(u.life)
	if err != nil {
		return // taken down, or the node closed
	}
	if exit.Machine == "" {
		exit.Machine = u.id
	}
	n.markExit(u, exit)
}

// markExit records that the machine ended by itself. The reason is on disk before
// anybody hears of it, so that a crash does not lose it.
func (n *Node) markExit(u *unit, exit nacre.Exit) {
	u.mu.Lock()
	if u.exit != nil {
		u.mu.Unlock()
		return
	}
	u.exit = &exit
	bound := u.spec.Sandbox
	if bound != "" && !u.forgot {
		if err := n.handles.save(u.file()); err != nil {
			n.log.Error("the reason of a machine's end could not be kept", "machine", u.id, "err", err)
		}
	}
	close(u.ended)
	u.mu.Unlock()
	if bound == "" {
		n.dropStandby(u)
		return
	}
	n.log.Info("machine ended by itself", "sandbox", bound, "machine", u.id, "reason", exit.Reason, "detail", exit.Detail)
	n.announce(u)
}

// closeAgent lets go of a client's idle connections, if it has any.
func closeAgent(a nacre.Agent) {
	if c, ok := a.(interface{ Close() }); ok {
		c.Close()
	}
}

// A sandbox has its guest to itself after its start, for what the host wants to know
// of it would take several milliseconds of its first command. The log is asked for as
// soon as that can be over: what a guest says that ends before is lost.
const (
	logAfter     = 60 * time.Millisecond
	metricsAfter = 250 * time.Millisecond
)

// alone waits until that is over, and tells whether the machine runs on.
func (u *unit) alone(d time.Duration) bool {
	select {
	case <-u.life.Done():
	case <-u.ended:
	case <-time.After(d):
		return true
	}
	return false
}

func (u *unit) dial(ctx context.Context, port int) (net.Conn, error) {
	if u.machine == nil {
		return nil, nacre.Errorf(nacre.CodeNotFound, "the machine has ended")
	}
	return u.machine.Dial(ctx, port)
}

func (u *unit) exitDetail() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.exit == nil {
		return ""
	}
	return u.exit.Detail
}

func (u *unit) hasEnded() bool {
	select {
	case <-u.ended:
		return true
	default:
		return false
	}
}
