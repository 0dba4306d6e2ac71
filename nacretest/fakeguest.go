package nacretest

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// FakeGuest is the inside of a FakeMachine: what its agent knows, its files, its
// log and its TCP ports.
type FakeGuest struct {
	machine *FakeMachine

	mu        sync.Mutex
	listeners map[int]*pipeListener
	init      *nacre.AgentInit
	inits     int
	log       []nacre.LogEntry
	forgotten int           // entries of the log that nobody is shown
	more      chan struct{} // closed and replaced when the log grows or the guest ends
	closed    bool
	files     fakeFS
	procs     map[int]*fakeProcess
	nextPID   int
}

func newFakeGuest(m *FakeMachine) *FakeGuest {
	return &FakeGuest{machine: m, listeners: map[int]*pipeListener{}, more: make(chan struct{}),
		files: newFakeFS(), procs: map[int]*fakeProcess{}, nextPID: 100}
}

// Init returns what the agent was told last, and how often.
func (g *FakeGuest) Init() (nacre.AgentInit, int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.init == nil {
		return nacre.AgentInit{}, 0
	}
	return *g.init, g.inits
}

// Log adds an entry to the guest's log.
func (g *FakeGuest) Log(typ nacre.LogType, message string, fields map[string]string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.logLocked(typ, message, fields)
}

// LogAt is Log with the time that the guest claims.
func (g *FakeGuest) LogAt(at time.Time, typ nacre.LogType, message string, fields map[string]string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.logLocked(typ, message, fields)
	g.log[len(g.log)-1].Time = at
}

func (g *FakeGuest) logLocked(typ nacre.LogType, message string, fields map[string]string) {
	g.log = append(g.log, nacre.LogEntry{Seq: int64(len(g.log) + 1), Time: time.Now().UTC(), Type: typ, Message: message, Fields: fields})
	close(g.more)
	g.more = make(chan struct{})
}

// Listen serves a TCP port of the guest. On nacre.AgentPort it takes the place of
// the agent that FakeDaemon.NewAgent speaks to.
func (g *FakeGuest) Listen(port int) (net.Listener, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.listeners[port] != nil {
		return nil, nacre.Errorf(nacre.CodeConflict, "port %d is taken", port)
	}
	l := &pipeListener{guest: g, port: port, conns: make(chan net.Conn), done: make(chan struct{})}
	g.listeners[port] = l
	return l, nil
}

// connect reaches a listener, or the agent.
func (g *FakeGuest) connect(port int) (net.Conn, error) {
	g.mu.Lock()
	l := g.listeners[port]
	g.mu.Unlock()
	if l == nil {
		if port == nacre.AgentPort {
			here, there := net.Pipe()
			there.Close()
			return agentConn{here, g}, nil
		}
		return nil, nacre.Errorf(nacre.CodeUnavailable, "nobody listens on port %d", port)
	}
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.done:
		return nil, nacre.Errorf(nacre.CodeUnavailable, "nobody listens on port %d", port)
	}
}

func (g *FakeGuest) close() {
	g.mu.Lock()
	listeners := g.listeners
	g.listeners = map[int]*pipeListener{}
	g.closed = true
	close(g.more)
	g.more = make(chan struct{})
	procs := g.procs
	g.procs = map[int]*fakeProcess{}
	g.mu.Unlock()
	for _, l := range listeners {
		l.stop()
	}
	for _, p := range procs {
		p.gone()
	}
}

// agentConn leads to the guest's built-in agent.
type agentConn struct {
	net.Conn
	guest *FakeGuest
}

type pipeListener struct {
	guest *FakeGuest
	port  int
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.guest.mu.Lock()
	if l.guest.listeners[l.port] == l {
		delete(l.guest.listeners, l.port)
	}
	l.guest.mu.Unlock()
	l.stop()
	return nil
}

func (l *pipeListener) stop() { l.once.Do(func() { close(l.done) }) }

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{Port: l.port} }

// NewAgent makes the client of a guest's built-in agent. It behaves as the
// contract says: nothing but Healthy before the first Init, tokens checked after.
func (d *FakeDaemon) NewAgent(dial func(ctx context.Context, port int) (net.Conn, error), hostToken, accessToken string) nacre.Agent {
	return &fakeAgent{d: d, dial: dial, host: hostToken, access: accessToken}
}

type fakeAgent struct {
	d            *FakeDaemon
	dial         func(ctx context.Context, port int) (net.Conn, error)
	host, access string
}

// reach returns the guest when it answers.
func (a *fakeAgent) reach(ctx context.Context, op string) (*FakeGuest, error) {
	if err := ctx.Err(); err != nil {
		return nil, nacre.Wrap(nacre.CodeUnavailable, err, "the guest did not answer in time")
	}
	c, err := a.dial(ctx, nacre.AgentPort)
	if err != nil {
		return nil, nacre.Wrap(nacre.CodeUnavailable, err, "the guest does not answer")
	}
	defer c.Close()
	ac, ok := c.(agentConn)
	if !ok {
		return nil, nacre.Errorf(nacre.CodeUnavailable, "the guest's agent is not the fake one")
	}
	if err := a.d.host.call(op, ac.guest.machine.Spec.ID); err != nil {
		return nil, err
	}
	if err := ac.guest.machine.awaitGoing(ctx); err != nil {
		return nil, err
	}
	return ac.guest, nil
}

// enter is reach with the tokens checked.
func (a *fakeAgent) enter(ctx context.Context, op string) (*FakeGuest, error) {
	g, err := a.reach(ctx, op)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.init == nil || (g.init.AccessToken != "" && a.access != g.init.AccessToken) {
		return nil, nacre.Errorf(nacre.CodeUnauthenticated, "wrong access token")
	}
	return g, nil
}

func (a *fakeAgent) Init(ctx context.Context, in nacre.AgentInit) error {
	g, err := a.reach(ctx, "agent.init")
	if err != nil {
		return err
	}
	if err := a.d.Step(); err != nil {
		return err
	}
	g.mu.Lock()
	if g.init != nil && g.init.HostToken != a.host {
		g.mu.Unlock()
		return nacre.Errorf(nacre.CodeUnauthenticated, "wrong host token")
	}
	g.init = &in
	g.inits++
	if in.NewIdentity {
		g.forgotten = len(g.log)
	}
	g.mu.Unlock()
	return a.d.Step()
}

func (a *fakeAgent) Healthy(ctx context.Context) error {
	_, err := a.reach(ctx, "agent.healthy")
	return err
}

func (a *fakeAgent) Stats(ctx context.Context) (nacre.GuestStats, error) {
	g, err := a.enter(ctx, "agent.stats")
	if err != nil {
		return nacre.GuestStats{}, err
	}
	r := g.machine.Spec.Resources
	return nacre.GuestStats{
		CPUCount: r.CPUs, CPUUsedPct: 10, MemTotal: int64(r.MemoryMiB) << 20, MemUsed: 30 << 20, MemCache: 5 << 20,
		DiskUsed: 7 << 20, DiskTotal: int64(r.DiskMiB) << 20, At: time.Now(),
	}, nil
}

func (a *fakeAgent) Logs(ctx context.Context, after int64, fn func(nacre.LogEntry) error) error {
	return a.log(ctx, after, true, fn)
}

func (a *fakeAgent) LogsSoFar(ctx context.Context, after int64, fn func(nacre.LogEntry) error) error {
	return a.log(ctx, after, false, fn)
}

func (a *fakeAgent) log(ctx context.Context, after int64, on bool, fn func(nacre.LogEntry) error) error {
	g, err := a.enter(ctx, "agent.logs")
	if err != nil {
		return err
	}
	for {
		g.mu.Lock()
		after = max(after, int64(g.forgotten))
		var news []nacre.LogEntry
		if after < int64(len(g.log)) {
			news = g.log[after:len(g.log):len(g.log)]
		}
		more, closed := g.more, g.closed
		g.mu.Unlock()
		for _, e := range news {
			if err := fn(e); err != nil {
				return err
			}
			after = e.Seq
		}
		if closed {
			return nacre.Errorf(nacre.CodeUnavailable, "the guest went away")
		}
		if !on {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more:
		}
	}
}

func (a *fakeAgent) Processes() nacre.Processes { return fakeProcesses{a} }
func (a *fakeAgent) Files() nacre.Files         { return fakeFiles{a} }
