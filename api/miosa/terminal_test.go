package miosa

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

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
