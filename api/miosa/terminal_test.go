package miosa

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/nacrehq/nacre"
)

// typist is a client of a terminal's socket.
type typist struct {
	t    *testing.T
	conn *websocket.Conn
}

func (c typist) send(kind websocket.MessageType, data string) {
	c.t.Helper()
	if err := c.conn.Write(c.t.Context(), kind, []byte(data)); err != nil {
		c.t.Fatal(err)
	}
}

// error reads until the next text frame, which must be an error's.
func (c typist) error() string {
	c.t.Helper()
	for {
		kind, data, err := c.conn.Read(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		var e streamEvent
		if kind == websocket.MessageText {
			if err := json.Unmarshal(data, &e); err != nil || e.Type != "error" {
				c.t.Fatalf("%s %v", data, err)
			}
			return e.Message
		}
	}
}

// closed expects that the server ends the socket because input was lost.
func (c typist) closed() {
	c.t.Helper()
	for {
		if _, _, err := c.conn.Read(c.t.Context()); err != nil {
			if got := websocket.CloseStatus(err); got != websocket.StatusTryAgainLater {
				c.t.Errorf("closed with %v", err)
			}
			return
		}
	}
}

func (c typist) shows(want string) {
	c.t.Helper()
	for shown := ""; !strings.Contains(shown, want); {
		kind, data, err := c.conn.Read(c.t.Context())
		if err != nil || kind != websocket.MessageBinary {
			c.t.Fatalf("after %q: %s %v", shown, data, err)
		}
		shown += string(data)
	}
}

// TestTerminalTellsWhatItDidNotDo: a frame that cannot be done is answered and nothing
// lost; input that was lost ends the socket, and never goes unnoticed; a socket that is
// open over a pause types into the sandbox that came back.
func TestTerminalTellsWhatItDidNotDo(t *testing.T) {
	h := newHarness(t)
	srv := httptest.NewServer(h.api)
	defer srv.Close()
	box := "/sandboxes/" + h.create(`{"timeout_sec":600}`)
	session := h.ok(201, "POST", box+"/terminal", `{"shell":"cat"}`)
	url := strings.Replace(srv.URL, "http", "ws", 1) + Prefix + box + "/terminal/" + session.field(t, "session_id") + "/ws?token=" + session.field(t, "token")
	dial := func() typist {
		t.Helper()
		conn, _, err := websocket.Dial(t.Context(), url, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.CloseNow() })
		return typist{t, conn}
	}

	c := dial()
	for frame, want := range map[string]string{
		"ls\n": "binary", `{"type":"tap"}`: "tap", `{"type":"resize","cols":0,"rows":24}`: "cols", `{"type":"resize","cols":80,"rows":5000}`: "rows",
	} {
		c.send(websocket.MessageText, frame)
		if got := c.error(); !strings.Contains(got, want) {
			t.Errorf("%s: %q", frame, got)
		}
	}
	c.send(websocket.MessageBinary, "first\n")
	c.shows("first")

	h.host.SetHook(func(op string, _ nacre.MachineID) error {
		if op == "agent.process" {
			return nacre.Errorf(nacre.CodeUnavailable, "the guest does not answer")
		}
		return nil
	})
	c.send(websocket.MessageBinary, "second\n")
	if got := c.error(); got != "the guest does not answer" {
		t.Errorf("%q", got)
	}
	c.closed()
	h.host.SetHook(nil)

	open, typing := dial(), dial()
	h.ok(200, "POST", box+"/pause", "")
	typing.send(websocket.MessageBinary, "third\n")
	if got := typing.error(); !strings.Contains(got, "try again") {
		t.Errorf("%q", got)
	}
	typing.closed()
	h.ok(200, "POST", box+"/resume", "")
	open.send(websocket.MessageBinary, "fourth\n")
	open.send(websocket.MessageText, `{"type":"tap"}`)
	if got := open.error(); !strings.Contains(got, "tap") { // and not that of what was typed before it
		t.Errorf("%q", got)
	}
}

// TestTerminalThatIsNotRead: while a program does not read what is typed its socket's
// pings are answered and the terminal gets its size; what is typed waits in its order,
// up to a bound, and then the socket ends with a word.
func TestTerminalThatIsNotRead(t *testing.T) {
	h := newHarness(t)
	srv := httptest.NewServer(h.api)
	defer srv.Close()
	box := "/sandboxes/" + h.create(`{"timeout_sec":600}`)
	session := h.ok(201, "POST", box+"/terminal", `{"shell":"cat"}`)
	url := strings.Replace(srv.URL, "http", "ws", 1) + Prefix + box + "/terminal/" + session.field(t, "session_id") + "/ws?token=" + session.field(t, "token")
	dial := func() (*websocket.Conn, <-chan string, <-chan error) {
		t.Helper()
		conn, _, err := websocket.Dial(t.Context(), url, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.CloseNow() })
		got, end := make(chan string, 100), make(chan error, 1)
		go func() {
			for {
				_, data, err := conn.Read(t.Context())
				if err != nil {
					end <- err
					return
				}
				got <- string(data)
			}
		}()
		return conn, got, end
	}
	send := func(conn *websocket.Conn, kind websocket.MessageType, data string) {
		t.Helper()
		if err := conn.Write(t.Context(), kind, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	// The first call holds until it may go on, as one does whose program does not read.
	hold := func() (goOn func(), next <-chan struct{}) {
		calls, reads := make(chan struct{}, 100), make(chan struct{})
		var n atomic.Int32
		h.host.SetHook(func(op string, _ nacre.MachineID) error {
			if op == "agent.process" {
				calls <- struct{}{}
				if n.Add(1) == 1 {
					<-reads
				}
			}
			return nil
		})
		return sync.OnceFunc(func() { h.host.SetHook(nil); close(reads) }), calls
	}

	goOn, calls := hold()
	defer func() { goOn() }()
	conn, got, _ := dial()
	send(conn, websocket.MessageBinary, "one ")
	<-calls
	send(conn, websocket.MessageBinary, "two ")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := conn.Ping(ctx); err != nil {
		t.Fatalf("a ping: %v", err)
	}
	send(conn, websocket.MessageText, `{"type":"resize","cols":90,"rows":30}`)
	select {
	case <-calls:
	case <-ctx.Done():
		t.Fatal("the terminal gets no size")
	}
	send(conn, websocket.MessageText, `{"type":"input","data":"three"}`)
	goOn()
	for shown := ""; shown != "one two three"; {
		select {
		case text := <-got:
			shown += text
		case <-ctx.Done():
			t.Fatalf("it shows %q", shown)
		}
	}

	goOn, calls = hold()
	conn, got, end := dial()
	send(conn, websocket.MessageBinary, "x")
	<-calls
	big := strings.Repeat("y", 256<<10)
	for range 6 {
		if conn.Write(t.Context(), websocket.MessageBinary, []byte(big)) != nil {
			break // it has been told
		}
	}
	told := ""
	for !strings.Contains(told, "does not read") {
		select {
		case told = <-got:
		case <-time.After(20 * time.Second):
			t.Fatal("what does not fit is not told of")
		}
	}
	go goOn() // the fake's program holds who waits for it
	if err := <-end; websocket.CloseStatus(err) != websocket.StatusTryAgainLater {
		t.Errorf("it ended with %v", err)
	}
}
