package agent_test

import (
	"net"
	"strings"
	"sync"
	"testing"
)

// writes remembers what each write to its connections was.
type writes struct {
	net.Listener
	mu  sync.Mutex
	all []string
}

func (w *writes) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return writesConn{c, w}, nil
}

type writesConn struct {
	net.Conn
	all *writes
}

func (c writesConn) Write(p []byte) (int, error) {
	c.all.mu.Lock()
	c.all.all = append(c.all.all, string(p))
	c.all.mu.Unlock()
	return c.Conn.Write(p)
}

// TestTheEndIsOneWrite: what a process does is told at once, and its end together with
// that of the stream.
func TestTheEndIsOneWrite(t *testing.T) {
	var w *writes
	g := newGuestBehind(t, func(ln net.Listener) net.Listener { w = &writes{Listener: ln}; return w })
	g.initialised(t, "")
	g.stream(t, "/process.Process/Start", `{"process":{"cmd":"/bin/cat"},"tag":"cat"}`, func(f frame) bool {
		switch { // each comes before the next is asked for
		case strings.Contains(f.json, `"start"`):
			if status, answer := g.unary(t, "/process.Process/SendInput", `{"process":{"tag":"cat"},"input":{"stdin":"aGk="}}`); status != 200 {
				t.Fatal(status, answer)
			}
		case strings.Contains(f.json, `"data"`):
			if status, answer := g.unary(t, "/process.Process/CloseStdin", `{"process":{"tag":"cat"}}`); status != 200 {
				t.Fatal(status, answer)
			}
		}
		return true
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	ends := 0
	for _, text := range w.all {
		if strings.Contains(text, `"end"`) {
			if ends++; !strings.HasSuffix(text, "\r\n0\r\n\r\n") {
				t.Errorf("the end came alone: %q", text)
			}
		}
	}
	if ends != 1 {
		t.Errorf("%d ends in %q", ends, w.all)
	}
}
