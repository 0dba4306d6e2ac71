package machines

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/pidfd"
)

// Files in a machine's state directory.
const (
	StopFile = "stopping"  // Stop was called: the end is no crash
	ExitFile = "exit.json" // how it ended
	heldFile = "held"      // the guest may stand still: a snapshot was begun
)

// Trace is what a handle says of every machine: enough to find its process again.
type Trace struct {
	BootID string
	PID    int
	Start  uint64 // of the process, see pidfd.Process
	Dir    string // the machine's state directory
}

// Valid tells whether there was a machine like this.
func (t Trace) Valid() bool { return t.PID > 1 && filepath.IsAbs(t.Dir) }

// Find returns the process, nil when it is gone.
func (t Trace) Find(bootID string) (*pidfd.Process, error) {
	if t.BootID != bootID {
		return nil, nil
	}
	return pidfd.Find(t.PID, t.Start)
}

// Kind is what a driver knows of its machine's end.
type Kind interface {
	// Reason says why the machine ended; its cgroup and files are still there. The
	// status is known when the host could tell.
	Reason(status unix.WaitStatus, known bool) (nacre.EndReason, string)
	// Evidence is added to what the node's log says of a crash; mostly "".
	Evidence() string
	// Clear removes what a machine leaves beside its cgroup. It is repeated until it
	// succeeds.
	Clear() error
}

// Birth is what a Life begins with. Proc is nil for a machine that had ended before
// it was recovered.
type Birth struct {
	Handle nacre.Handle
	Dir    string // the machine's state directory
	Proc   *pidfd.Process
	Group  *cgroup.Group
	Kind   Kind
	Log    *slog.Logger
	Clock  nacre.Clock
}

// Life is a machine from its start to its end; the methods that it shares with
// nacre.Machine are that contract's.
type Life struct {
	Birth

	over chan struct{} // closed when exit is set and nothing is left
	exit nacre.Exit
	lost bool // released first

	Hold Hold

	mu    sync.Mutex
	left  error              // why something is left after the end
	conns map[*conn]struct{} // given out by Connect; nil after the end
}

// New returns a life that is to be watched, or has to End.
func New(b Birth) *Life {
	l := &Life{Birth: b, over: make(chan struct{}), conns: map[*conn]struct{}{}}
	l.Hold.mark = filepath.Join(b.Dir, heldFile)
	return l
}

// ID implements nacre.Machine.
func (l *Life) ID() nacre.MachineID { return l.Birth.Handle.Machine }

// Handle implements nacre.Machine.
func (l *Life) Handle() nacre.Handle { return l.Birth.Handle }

// Over is closed when the machine has ended, or was released.
func (l *Life) Over() <-chan struct{} { return l.over }

// Release implements Member.
func (l *Life) Release() { l.Proc.Close() }

// Watch waits for the end and clears up.
func (l *Life) Watch() {
	status, known, err := l.Proc.Wait()
	if err != nil {
		l.lost = true
		close(l.over)
		return
	}
	// A group that cannot be removed for this long is kept for Sweep.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = l.end(ctx, status, known) // Stop tries again
	l.Proc.Close()
}

// End settles a machine that had ended before it was recovered.
func (l *Life) End(ctx context.Context) error {
	if err := l.end(ctx, 0, false); err != nil {
		return fmt.Errorf("clear machine %s: %w", l.ID(), err)
	}
	return nil
}

// end decides why the machine ended and removes what is left of it.
func (l *Life) end(ctx context.Context, status unix.WaitStatus, known bool) error {
	l.exit = l.decide(status, known)
	if l.exit.Reason == nacre.EndCrash {
		args := []any{"machine", l.ID(), "detail", l.exit.Detail}
		if e := l.Kind.Evidence(); e != "" {
			args = append(args, "evidence", e)
		}
		l.Log.Warn("machine crashed", args...)
	}
	left := l.clear(ctx)
	l.mu.Lock()
	l.left = left
	l.mu.Unlock()
	if left != nil {
		l.Log.Error("a machine that ended left something behind", "machine", l.ID(), "error", left)
	}
	close(l.over)
	l.hangUp()
	return left
}

func (l *Life) clear(ctx context.Context) error {
	return errors.Join(l.Group.Destroy(ctx), l.Kind.Clear())
}

// decide says why the machine ended. The group and the driver's files tell a part
// of it and go away, so the answer is kept: it stays the same for whoever recovers
// the machine later.
func (l *Life) decide(status unix.WaitStatus, known bool) nacre.Exit {
	file := filepath.Join(l.Dir, ExitFile)
	var e nacre.Exit
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &e) == nil && e.Machine == l.ID() {
		return e
	}
	e = nacre.Exit{Machine: l.ID(), At: l.Clock(), Reason: nacre.EndKilled, Detail: "The machine was stopped."}
	if _, err := os.Stat(filepath.Join(l.Dir, StopFile)); err != nil {
		e.Reason, e.Detail = l.Kind.Reason(status, known)
	}
	if b, err := json.Marshal(e); err == nil {
		_ = os.WriteFile(file, b, 0o600) // a torn file is decided again
	}
	return e
}

// Gone is nil while the machine runs, else what its methods return.
func (l *Life) Gone() error {
	select {
	case <-l.over:
		if l.lost {
			return nacre.Wrap(nacre.CodeUnavailable, pidfd.ErrClosed, "the node is shutting down; try again")
		}
		return nacre.Errorf(nacre.CodeNotFound, "machine %s has ended", l.ID())
	default:
		return nil
	}
}

// GoneOr prefers "it has ended" to whatever that end made of a call, which the
// caller may notice before Watch does.
func (l *Life) GoneOr(err error) error {
	if l.Proc != nil && (!l.Proc.Alive() || brokenOff(err)) {
		select {
		case <-l.over:
		case <-time.After(10 * time.Second):
		}
	}
	if gone := l.Gone(); gone != nil {
		return gone
	}
	return err
}

// brokenOff tells whether the other end of a connection went away: a process that is
// killed has closed its sockets a while before anybody sees that it has ended.
func brokenOff(err error) bool {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE, unix.ECONNREFUSED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// kill has the process ended, if it has not.
func (l *Life) kill() {
	if l.Gone() != nil {
		return
	}
	// The mark tells a later process that the end was wanted, should this one die in
	// between.
	if f, err := os.OpenFile(filepath.Join(l.Dir, StopFile), os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
		f.Close()
	}
	l.Proc.Kill()
}

// Kill implements nacre.Machine.
func (l *Life) Kill(context.Context) error {
	l.kill()
	l.hangUp()
	if err := l.Gone(); err != nil && l.lost {
		return err
	}
	return nil
}

// Stop implements nacre.Machine.
func (l *Life) Stop(ctx context.Context) error {
	l.kill()
	select {
	case <-l.over:
	case <-ctx.Done():
		return nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the machine has not ended yet")
	}
	if l.lost {
		return l.Gone()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left != nil {
		l.left = l.clear(ctx)
	}
	return l.left
}

// Wait implements nacre.Machine.
func (l *Life) Wait(ctx context.Context) (nacre.Exit, error) {
	select {
	case <-l.over:
	case <-ctx.Done():
		return nacre.Exit{}, ctx.Err()
	}
	if l.lost {
		return nacre.Exit{}, l.Gone()
	}
	return l.exit, nil
}

// Usage implements nacre.Machine.
func (l *Life) Usage(context.Context) (nacre.Usage, error) {
	if err := l.Gone(); err != nil {
		return nacre.Usage{}, err
	}
	u, err := l.Group.Usage()
	if err != nil {
		if gone := l.GoneOr(nil); gone != nil {
			return nacre.Usage{}, gone
		}
		return nacre.Usage{}, fmt.Errorf("accounts of machine %s: %w", l.ID(), err)
	}
	return u, nil
}

// conn is a connection to the guest. A machine that is killed sends no FIN: its
// peers would wait for ever, so the machine's end closes them.
type conn struct {
	*net.TCPConn
	l *Life
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	c.l.mu.Unlock()
	return c.TCPConn.Close()
}

// hangUp closes what Connect gave out.
func (l *Life) hangUp() {
	l.mu.Lock()
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	for c := range conns {
		_ = c.SetLinger(0) // nobody will take what was not sent yet
		_ = c.TCPConn.Close()
	}
}

// Connect is nacre.Machine's Dial by way of dial, whose context ends with the
// machine, as the connection does.
func (l *Life) Connect(ctx context.Context, port int, dial func(context.Context) (*net.TCPConn, error)) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, nacre.Invalidf("port", "%d is no TCP port", port)
	}
	if err := l.Gone(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	defer func() { cancel(); <-ended }()
	go func() {
		defer close(ended)
		select {
		case <-l.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	c, err := dial(ctx)
	if err == nil {
		own := &conn{c, l}
		l.mu.Lock()
		if l.conns != nil {
			l.conns[own] = struct{}{}
			l.mu.Unlock()
			return own, nil
		}
		l.mu.Unlock()
		c.Close()
	}
	if gone := l.GoneOr(nil); gone != nil {
		return nil, gone
	}
	if ctx.Err() != nil {
		return nil, nacre.Wrap(nacre.CodeDeadline, err, fmt.Sprintf("port %d of the sandbox did not answer in time", port))
	}
	return nil, nacre.Wrap(nacre.CodeUnavailable, err, fmt.Sprintf("nothing listens on port %d of the sandbox", port))
}
