package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nacrehq/nacre"
)

// A guest that does not even refuse a connection within dialTimeout has no
// server there. sweepEvery is how soon connections end after their machine: it
// is gone without a word, so nothing else would end them.
const (
	dialTimeout = 10 * time.Second
	sweepEvery  = 200 * time.Millisecond
)

// errDial marks errors of connecting.
var errDial = errors.New("cannot connect to the guest")

// conns are the open connections to guests, by machine.
type conns struct {
	traffic nacre.Traffic

	mu    sync.Mutex
	open  map[machineKey]map[*conn]struct{}
	timer *time.Timer // runs while open has any
}

type machineKey struct {
	sandbox nacre.SandboxID
	machine nacre.MachineID
}

func newConns(t nacre.Traffic) *conns {
	return &conns{traffic: t, open: map[machineKey]map[*conn]struct{}{}}
}

// poolKey is the "host" under which the transport keeps connections: those of
// one port of one machine, so that none is ever used for another.
func poolKey(r nacre.Route, port int) string {
	return string(r.Sandbox) + "." + string(r.Machine) + ":" + strconv.Itoa(port)
}

// dial connects to what poolKey names.
func (c *conns) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	sandbox, machine, _ := strings.Cut(host, ".")
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, err
	}
	return c.connect(ctx, machineKey{nacre.SandboxID(sandbox), nacre.MachineID(machine)}, port)
}

func (c *conns) connect(ctx context.Context, key machineKey, port int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := c.traffic.Dial(ctx, key.sandbox, port)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDial, err)
	}
	guest := &conn{Conn: raw, all: c, key: key}
	c.add(guest)
	if !c.current(key) { // after it was added, so that the sweep cannot miss it
		_ = guest.Close()
		return nil, nacre.Errorf(nacre.CodeNotFound, "the sandbox ended")
	}
	return guest, nil
}

func (c *conns) current(key machineKey) bool {
	r, ok := c.traffic.Route(key.sandbox)
	return ok && r.Machine == key.machine
}

func (c *conns) add(guest *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	set := c.open[guest.key]
	if set == nil {
		set = map[*conn]struct{}{}
		c.open[guest.key] = set
	}
	set[guest] = struct{}{}
	if c.timer == nil {
		c.timer = time.AfterFunc(sweepEvery, c.sweep)
	}
}

func (c *conns) remove(guest *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	set := c.open[guest.key]
	delete(set, guest)
	if len(set) == 0 {
		delete(c.open, guest.key)
	}
	if len(c.open) == 0 && c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}

// sweep closes the connections of machines that run no more.
func (c *conns) sweep() {
	c.mu.Lock()
	keys := make([]machineKey, 0, len(c.open))
	for key := range c.open {
		keys = append(keys, key)
	}
	c.mu.Unlock()
	for _, key := range keys {
		if c.current(key) {
			continue
		}
		c.mu.Lock()
		dead := make([]*conn, 0, len(c.open[key]))
		for guest := range c.open[key] {
			dead = append(dead, guest)
		}
		c.mu.Unlock()
		for _, guest := range dead {
			_ = guest.Close()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Reset(sweepEvery)
	}
}

// conn is a connection to a guest.
type conn struct {
	net.Conn
	all  *conns
	key  machineKey
	once sync.Once

	closed  atomic.Bool
	carried atomic.Pointer[upload] // the request that goes over it
}

func (c *conn) Close() error {
	c.once.Do(func() { c.all.remove(c) })
	err := c.Conn.Close()
	c.closed.Store(true)
	if u := c.carried.Load(); u != nil {
		u.gone(c)
	}
	return err
}

// carry tells u when the connection is closed; false when it is already.
func (c *conn) carry(u *upload) bool {
	c.carried.Store(u)
	return !c.closed.Load()
}

// largeCopy is what a busy upload borrows.
const largeCopy = 256 << 10

var large = sync.Pool{New: func() any { return new([largeCopy]byte) }}

// ReadFrom passes a body of known length on, in large steps while a lot comes: a
// guest pays more for two small ones.
func (c *conn) ReadFrom(r io.Reader) (sent int64, err error) {
	small := bulk.Get().(*[32 << 10]byte)
	defer bulk.Put(small)
	var big *[largeCopy]byte
	for buf := small[:]; ; {
		n, err := r.Read(buf)
		if n > 0 {
			m, werr := c.Conn.Write(buf[:n])
			sent += int64(m)
			if werr != nil {
				err = werr
			}
		}
		if more := n >= len(small); more != (big != nil) {
			if more {
				big = large.Get().(*[largeCopy]byte)
				buf = big[:]
			} else {
				large.Put(big)
				big, buf = nil, small[:]
			}
		}
		if err != nil {
			if big != nil {
				large.Put(big)
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return sent, err
		}
	}
}

// CloseWrite ends our direction only, where the connection can.
func (c *conn) CloseWrite() error { return closeWrite(c.Conn) }
