package agent

import (
	"net"
	"sync"
)

// conns are the agent's TCP connections. A guest that was restored still has those
// of the one that it was made from, whose other ends are gone: who writes to them
// would wait until TCP gives up, and hold a process's output up for as long.
type conns struct {
	mu   sync.Mutex
	open map[*conn]struct{}
}

// conn is a connection that leaves the list when it is closed. It keeps what TCP's
// can do beside reading and writing.
type conn struct {
	*net.TCPConn
	all *conns
}

func (c *conn) Close() error {
	c.all.mu.Lock()
	delete(c.all.open, c)
	c.all.mu.Unlock()
	return c.TCPConn.Close()
}

// endOthers resets every connection but those from one address.
func (cs *conns) endOthers(remote string) {
	cs.mu.Lock()
	var dead []*conn
	for c := range cs.open {
		if c.RemoteAddr().String() != remote {
			dead = append(dead, c)
		}
	}
	cs.mu.Unlock()
	for _, c := range dead {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

// connListener lists the TCP connections that it accepts.
type connListener struct {
	net.Listener
	all *conns
}

func (l connListener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	tcp, ok := raw.(*net.TCPConn)
	if err != nil || !ok {
		return raw, err
	}
	c := &conn{tcp, l.all}
	l.all.mu.Lock()
	defer l.all.mu.Unlock()
	if l.all.open == nil {
		l.all.open = map[*conn]struct{}{}
	}
	l.all.open[c] = struct{}{}
	return c, nil
}
