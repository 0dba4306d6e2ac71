package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/pidfd"
)

// state is a handle's content.
type state struct {
	BootID string
	PID    int
	Start  uint64
	Dir    string
	Guest  netip.Addr
}

// machine implements nacre.Machine.
type machine struct {
	r     *Runtime
	id    nacre.MachineID
	proc  *pidfd.Process // nil: it had ended before it was recovered
	group *cgroup.Group
	st    state

	over chan struct{} // closed when exit is set and nothing is left
	exit nacre.Exit
	lost bool // the driver was closed first

	snapping sync.Mutex // held for a snapshot, and while the guest is let go on
	held     bool       // the guest stands still; guarded by snapping

	mu    sync.Mutex
	left  error              // why something is left after the end
	conns map[*conn]struct{} // given out by Dial; nil after the end
}

// conn is a connection to the guest. A sandbox that is killed sends no FIN: its
// peers would wait for ever, so the machine's end closes them.
type conn struct {
	*net.TCPConn
	m *machine
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.m.mu.Lock()
	delete(c.m.conns, c)
	c.m.mu.Unlock()
	return c.TCPConn.Close()
}

// hangUp closes what Dial gave out.
func (m *machine) hangUp() {
	m.mu.Lock()
	conns := m.conns
	m.conns = nil
	m.mu.Unlock()
	for c := range conns {
		_ = c.SetLinger(0) // nobody will take what was not sent yet
		_ = c.TCPConn.Close()
	}
}

func newMachine(r *Runtime, id nacre.MachineID, p *pidfd.Process, g *cgroup.Group, st state) *machine {
	return &machine{r: r, id: id, proc: p, group: g, st: st, over: make(chan struct{}), conns: map[*conn]struct{}{}}
}

// Recover implements nacre.Runtime.
func (r *Runtime) Recover(ctx context.Context, h nacre.Handle) (nacre.Machine, error) {
	var st state
	if err := json.Unmarshal(h.State, &st); err != nil || h.Runtime != r.Name() || !h.Machine.Valid() || st.PID <= 1 || !filepath.IsAbs(st.Dir) {
		return nil, nacre.Wrap(nacre.CodeInvalid, err, "the handle of machine "+strconv.Quote(string(h.Machine))+" is not one of this runtime's")
	}
	r.recovering.Lock() // so that a second one finds what the first one took back
	defer r.recovering.Unlock()
	r.mu.Lock()
	m := r.machines[h.Machine]
	r.mu.Unlock()
	if m != nil {
		return m, nil
	}
	if err := r.claim(h.Machine); err != nil {
		return nil, err
	}
	var p *pidfd.Process
	if st.BootID == r.bootID {
		var err error
		if p, err = pidfd.Find(st.PID, st.Start); err != nil {
			r.adopt(h.Machine, nil)
			return nil, err
		}
	}
	m = newMachine(r, h.Machine, p, r.cgroup.Group(string(h.Machine)), st)
	if p == nil {
		left := m.end(ctx, 0, false)
		r.adopt(h.Machine, nil)
		if left != nil {
			return nil, fmt.Errorf("clear machine %s: %w", h.Machine, left)
		}
		return m, nil
	}
	r.adopt(h.Machine, m)
	return m, nil
}

// watch waits for the end and clears up.
func (m *machine) watch() {
	status, known, err := m.proc.Wait()
	if err != nil {
		m.lost = true
		close(m.over)
		return
	}
	// A group that cannot be removed for this long is kept for Sweep.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = m.end(ctx, status, known) // Stop tries again
	m.proc.Close()
}

// end decides why the machine ended and removes what is left of it.
func (m *machine) end(ctx context.Context, status unix.WaitStatus, known bool) error {
	m.exit = m.decide(status, known)
	left := m.group.Destroy(ctx)
	m.mu.Lock()
	m.left = left
	m.mu.Unlock()
	_ = os.Remove(filepath.Join(m.st.Dir, socketFile))
	if left != nil {
		m.r.cfg.Log.Error("a machine that ended left something behind", "machine", m.id, "error", left)
	}
	if m.exit.Reason == nacre.EndCrash {
		m.r.cfg.Log.Warn("machine crashed", "machine", m.id, "detail", explain(errors.New(m.exit.Detail), m.st.Dir))
	}
	close(m.over)
	m.hangUp()
	return left
}

// decide says why the machine ended. The group tells a part of it and goes away,
// so the answer is kept: it stays the same for whoever recovers the machine later.
func (m *machine) decide(status unix.WaitStatus, known bool) nacre.Exit {
	file := filepath.Join(m.st.Dir, exitFile)
	var e nacre.Exit
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &e) == nil && e.Machine == m.id {
		return e
	}
	e = nacre.Exit{Machine: m.id, At: m.r.cfg.Clock()}
	e.Reason, e.Detail = m.reason(status, known)
	if b, err := json.Marshal(e); err == nil {
		_ = os.WriteFile(file, b, 0o600) // a torn file is decided again
	}
	return e
}

// reason must be asked while the group is still there.
func (m *machine) reason(status unix.WaitStatus, known bool) (nacre.EndReason, string) {
	has := func(file string) bool {
		st, err := os.Stat(filepath.Join(m.st.Dir, file))
		return err == nil && (st.Size() > 0 || file == stopFile)
	}
	switch {
	case has(stopFile):
		return nacre.EndKilled, "The machine was stopped."
	case known && status.Exited() && !has(fatalFile):
		return nacre.EndCrash, fmt.Sprintf("The machine's first process exited with status %d.", status.ExitStatus())
	case m.group.OOMKilled():
		return nacre.EndOOM, "The sandbox used more memory than its limit."
	case m.st.BootID != m.r.bootID:
		return nacre.EndCrash, "The host was restarted."
	case has(fatalFile) && m.group.PIDsExceeded():
		return nacre.EndCrash, "The sandbox reached its limit of host tasks."
	case has(fatalFile):
		return nacre.EndCrash, "The sandbox's kernel failed; the node's log has the cause."
	case known && status.Signaled():
		return nacre.EndCrash, fmt.Sprintf("The machine was killed from outside by signal %d (%s).", status.Signal(), status.Signal())
	default:
		return nacre.EndCrash, "The machine ended by itself while nobody watched."
	}
}

// ID implements nacre.Machine.
func (m *machine) ID() nacre.MachineID { return m.id }

// Handle implements nacre.Machine.
func (m *machine) Handle() nacre.Handle {
	b, err := json.Marshal(m.st)
	if err != nil {
		panic(err) // plain data
	}
	return nacre.Handle{Machine: m.id, Runtime: m.r.Name(), State: b}
}

func (m *machine) gone() error {
	select {
	case <-m.over:
		if m.lost {
			return nacre.Wrap(nacre.CodeUnavailable, pidfd.ErrClosed, "the node is shutting down; try again")
		}
		return nacre.Errorf(nacre.CodeNotFound, "machine %s has ended", m.id)
	default:
		return nil
	}
}

// Dial implements nacre.Machine.
func (m *machine) Dial(ctx context.Context, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, nacre.Invalidf("port", "%d is no TCP port", port)
	}
	if err := m.gone(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	defer func() { cancel(); <-ended }()
	go func() {
		defer close(ended)
		select {
		case <-m.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(m.st.Guest, uint16(port)).String())
	if err == nil {
		own := &conn{c.(*net.TCPConn), m}
		m.mu.Lock()
		if m.conns != nil {
			m.conns[own] = struct{}{}
			m.mu.Unlock()
			return own, nil
		}
		m.mu.Unlock()
		c.Close()
	}
	if gone := m.gone(); gone != nil {
		return nil, gone
	}
	if ctx.Err() != nil {
		return nil, nacre.Wrap(nacre.CodeDeadline, err, fmt.Sprintf("port %d of the sandbox did not answer in time", port))
	}
	return nil, nacre.Wrap(nacre.CodeUnavailable, err, fmt.Sprintf("nothing listens on port %d of the sandbox", port))
}

// Stop implements nacre.Machine.
func (m *machine) Stop(ctx context.Context) error {
	if m.gone() == nil {
		// The mark tells a later process that the end was wanted, should this one
		// die in between.
		if f, err := os.OpenFile(filepath.Join(m.st.Dir, stopFile), os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
			f.Close()
		}
		m.proc.Kill()
	}
	select {
	case <-m.over:
	case <-ctx.Done():
		return nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the machine has not ended yet")
	}
	if m.lost {
		return m.gone()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left != nil {
		m.left = m.group.Destroy(ctx)
	}
	return m.left
}

// Wait implements nacre.Machine.
func (m *machine) Wait(ctx context.Context) (nacre.Exit, error) {
	select {
	case <-m.over:
	case <-ctx.Done():
		return nacre.Exit{}, ctx.Err()
	}
	if m.lost {
		return nacre.Exit{}, m.gone()
	}
	return m.exit, nil
}

// Usage implements nacre.Machine.
func (m *machine) Usage(context.Context) (nacre.Usage, error) {
	if err := m.gone(); err != nil {
		return nacre.Usage{}, err
	}
	u, err := m.group.Usage()
	if err != nil {
		if gone := m.gone(); gone != nil {
			return nacre.Usage{}, gone
		}
		return nacre.Usage{}, fmt.Errorf("accounts of machine %s: %w", m.id, err)
	}
	return u, nil
}
