package node

import (
	"context"
	"net"
	"slices"
	"time"

	"github.com/nacrehq/nacre"
)

// tunneler is an agent that reaches the guest's own loopback.
type tunneler interface {
	Tunnel(ctx context.Context, port int) (net.Conn, error)
}

// running returns the unit of a sandbox that has a running machine.
func (n *Node) running(id nacre.SandboxID) (*unit, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	e := n.sandboxes[id]
	if e == nil || !e.runs() || e.snap != nil && e.snap.pause {
		return nil, errNoMachine(id)
	}
	return e.unit, nil
}

// Route returns how to treat traffic for a sandbox.
func (n *Node) Route(id nacre.SandboxID) (nacre.Route, bool) {
	u, err := n.running(id)
	if err != nil {
		return nacre.Route{}, false
	}
	return u.route(), true
}

// Routes calls fn for each running sandbox until it returns false.
func (n *Node) Routes(fn func(nacre.Route) bool) {
	n.mu.RLock()
	units := make([]*unit, 0, len(n.sandboxes))
	for _, e := range n.sandboxes {
		if e.runs() && (e.snap == nil || !e.snap.pause) {
			units = append(units, e.unit)
		}
	}
	n.mu.RUnlock()
	for _, u := range units {
		if !fn(u.route()) {
			return
		}
	}
}

// route reads only what does not change once the unit is the sandbox's.
func (u *unit) route() nacre.Route {
	return nacre.Route{
		Sandbox: u.spec.Sandbox, Machine: u.id, Team: u.spec.Team, TokenEpoch: u.spec.TokenEpoch,
		Secure: u.spec.Secure, Network: u.spec.Network,
	}
}

// Dial connects to a TCP port of a guest, on its address, else on its loopback.
func (n *Node) Dial(ctx context.Context, id nacre.SandboxID, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, nacre.Invalidf("port", "port %d is not between 1 and 65535", port)
	}
	u, err := n.running(id)
	if err != nil {
		return nil, err
	}
	if port == nacre.AgentPort {
		select {
		case conn := <-u.ahead:
			return conn, nil
		default:
		}
	}
	conn, err := u.dial(ctx, port)
	if !nacre.IsCode(err, nacre.CodeUnavailable) || port == nacre.AgentPort {
		return conn, err
	}
	if t, ok := u.agent.(tunneler); ok {
		return t.Tunnel(ctx, port)
	}
	return nil, err
}

// aheadFor is how long a connection that was made ahead waits for its use.
const aheadFor = 5 * time.Second

// connectAhead has dialAhead run now, and not when the sandbox is published.
func (n *Node) connectAhead(u *unit) {
	u.dialed.Do(func() { n.spawn(func() { n.dialAhead(u) }) })
}

// greeter is a client that can make a first request on a new connection, and tell the
// guest who it is over one that it was given: it wakes the guest, calls ready, and tells
// it when that returned nil.
type greeter interface {
	Greet(ctx context.Context, conn net.Conn) error
	InitOver(ctx context.Context, conn net.Conn, in nacre.AgentInit, ready func() error) error
}

// connect makes a connection to the agent and exchanges a word over it.
func (u *unit) connect(ctx context.Context) (net.Conn, error) {
	conn, err := u.dial(ctx, nacre.AgentPort)
	if err != nil {
		return nil, err
	}
	if g, ok := u.client().(greeter); ok {
		if err := g.Greet(ctx, conn); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	return conn, nil
}

// keepSpare gives a standby the connection over which it will be told whose it is, and
// which is then its client's first. A client's own connections do not last as long as a
// standby waits.
func (u *unit) keepSpare(ctx context.Context) {
	if _, ok := u.client().(greeter); !ok {
		return
	}
	if conn, err := u.connect(ctx); err == nil {
		u.putSpare(conn)
	}
}

// wake makes the spare connection and says nothing over it.
func (u *unit) wake(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	conn, err := u.dial(ctx, nacre.AgentPort)
	if err != nil {
		return err
	}
	u.putSpare(conn)
	return nil
}

func (u *unit) putSpare(conn net.Conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.spare = conn
}

func (u *unit) hasSpare() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.spare != nil
}

// takeSpare returns nil when there is none.
func (u *unit) takeSpare() net.Conn {
	u.mu.Lock()
	defer u.mu.Unlock()
	conn := u.spare
	u.spare = nil
	return conn
}

// dialAhead has a connection ready to the agent of a sandbox that starts, or has just
// started, while its client still learns of it: the spare one, or one that it makes, over
// which it exchanges a word. The first request need not wait for that, and finds a guest
// that is awake.
func (n *Node) dialAhead(u *unit) {
	ctx, cancel := context.WithTimeout(u.life, aheadFor)
	defer cancel()
	conn := u.takeSpare()
	if conn == nil {
		var err error
		if conn, err = u.connect(ctx); err != nil {
			return // whoever asks is told
		}
	}
	select {
	case u.ahead <- conn:
		return
	case <-u.ended:
	case <-ctx.Done():
	}
	_ = conn.Close()
}

// client is of the unit's guest as it is known now.
func (u *unit) client() nacre.Agent {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.agent
}

// Agent returns the agent of a running sandbox.
func (n *Node) Agent(_ context.Context, id nacre.SandboxID) (nacre.Agent, error) {
	u, err := n.running(id)
	if err != nil {
		return nil, err
	}
	return u.agent, nil
}

// Machines lists every sandbox with a machine here; see nacre.Node.
func (n *Node) Machines(context.Context) ([]nacre.MachineStatus, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	out := make([]nacre.MachineStatus, 0, len(n.sandboxes))
	for _, e := range n.sandboxes {
		u := e.unit
		if u == nil {
			continue
		}
		st := nacre.MachineStatus{Sandbox: e.id, Team: u.spec.Team, Machine: u.id, Started: u.started}
		if u.hasEnded() {
			exit := *u.exit
			st.Exit = &exit
		}
		out = append(out, st)
	}
	return out, nil
}

// announce tells those who watch exits.
func (n *Node) announce(u *unit) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.exits++
	u.exitNo = n.exits
	close(n.exited)
	n.exited = make(chan struct{})
}

// WatchExits calls fn for each machine that ended by itself; see nacre.Node.
func (n *Node) WatchExits(ctx context.Context, fn func(nacre.SandboxID, nacre.Exit)) error {
	type news struct {
		no   int64
		id   nacre.SandboxID
		exit nacre.Exit
	}
	var seen int64
	for {
		var list []news
		n.mu.RLock()
		for _, e := range n.sandboxes {
			if u := e.unit; u != nil && u.exitNo > seen && e.stop == nil && !e.left {
				list = append(list, news{u.exitNo, e.id, *u.exit})
			}
		}
		seen = n.exits
		more := n.exited
		n.mu.RUnlock()
		slices.SortFunc(list, func(a, b news) int { return int(a.no - b.no) })
		for _, x := range list {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			fn(x.id, x.exit)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.life.Done():
			return errClosed()
		case <-more:
		}
	}
}

func equalPolicy(a, b nacre.EgressPolicy) bool {
	return a.DenyAll == b.DenyAll && slices.Equal(a.Allow, b.Allow) && slices.Equal(a.Deny, b.Deny)
}
