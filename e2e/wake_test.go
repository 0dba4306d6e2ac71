package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

// TestWakeOnRequest: each kind of request resumes a paused sandbox and is answered.
func TestWakeOnRequest(t *testing.T) {
	d := start(t, "--memory-mib", "256")
	c := d.client()
	sb := many(t, c, 1, client.AutoPause(), client.AutoResume())[0]
	d.serveInside(sb, 8000, "preview")
	if _, err := sb.Start(t.Context(), webSocketEcho); err != nil {
		t.Fatal(err)
	}
	d.eventually(patience, func() error { return d.echo(sb.ID) })
	started := func() time.Time {
		t.Helper()
		info, err := sb.Info(t.Context())
		if err != nil || info.State != nacre.StateRunning {
			t.Fatalf("%+v %v", info, err)
		}
		return info.StartedAt
	}
	for _, c := range []struct {
		name string
		call func() error
	}{
		{"HTTP", func() error {
			if a := d.preview(sb.ID, 8000, "/"); a.Status != 200 || !strings.Contains(a.Body, "preview") {
				return errors.New(a.String())
			}
			return nil
		}},
		{"WebSocket", func() error { return d.echo(sb.ID) }},
		{"a call of the guest", func() error { _, err := sb.Run(t.Context(), "true"); return err }},
		{"a signed URL", func() error {
			resp, err := plain.Get(sb.Files.DownloadURL("/tmp/www/index.html", time.Minute))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return errors.New(resp.Status)
			}
			return nil
		}},
	} {
		if err := sb.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := c.call(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		t.Logf("%s was answered after %s", c.name, time.Since(begin).Round(time.Millisecond))
		started()
	}

	if err := sb.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	var mu sync.Mutex
	runs := map[time.Time]bool{}
	for range 30 {
		g.Go(func() error {
			if a := d.preview(sb.ID, 8000, "/"); a.Status != 200 {
				return errors.New(a.String())
			}
			info, err := sb.Info(t.Context())
			mu.Lock()
			defer mu.Unlock()
			runs[info.StartedAt] = true
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if len(runs) != 1 {
		t.Errorf("thirty requests at once made %d resumes", len(runs))
	}
	// What may not reach it does not wake it, nor what only asks.
	if err := sb.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	a, err := d.ask(t.Context(), http.MethodPost, "/process.Process/List", []byte("{}"), as("E2b-Sandbox-Id", sb.ID, "Content-Type", "application/json"))
	if err != nil || a.Status != http.StatusUnauthorized {
		t.Errorf("a call without the token: %s %v", a, err)
	}
	if up, err := sb.IsRunning(t.Context()); up || err != nil {
		t.Errorf("is it running: %v %v", up, err)
	}
	if info, err := sb.Info(t.Context()); err != nil || info.State != nacre.StatePaused {
		t.Errorf("it was woken: %+v %v", info, err)
	}
	d.kill9() // and a server that knows it from its records alone wakes it too
	d.up()
	if a := d.preview(sb.ID, 8000, "/"); a.Status != 200 {
		t.Errorf("after a restart of the server: %s", a)
	}
}

// TestFault21_WakeThatDoesNotFit: the reason reaches who asked, and the sandbox is kept.
func TestFault21_WakeThatDoesNotFit(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--max-sandboxes", "1", "--standby", "0")
	c := d.client()
	var sb *client.Sandbox
	d.eventually(patience, func() (err error) { // a built-in template may be made at the moment
		sb, err = c.Create(t.Context(), client.AutoResume())
		return err
	})
	d.serveInside(sb, 8000, "preview")
	if err := sb.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := many(t, c, 1)[0]
	a := d.preview(sb.ID, 8000, "/")
	var body struct {
		SandboxID, Message string
		Code               int
	}
	if err := a.decode(&body); err != nil || a.Status != 503 || body.Code != 503 || body.SandboxID != sb.ID ||
		!strings.Contains(body.Message, "could not be resumed") || a.Header.Get("Retry-After") == "" {
		t.Errorf("%s %v", a, a.Header)
	}
	if err := other.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := d.preview(sb.ID, 8000, "/"); a.Status != 200 || !strings.Contains(a.Body, "preview") {
		t.Errorf("with room again: %s", a)
	}
}

// webSocketEcho is a server on port 8001 of which one can only say hello.
const webSocketEcho = `exec python3 -c '
import base64, hashlib, socketserver
class H(socketserver.StreamRequestHandler):
    def handle(self):
        key = None
        while (line := self.rfile.readline().strip()):
            if line.lower().startswith(b"sec-websocket-key:"): key = line.split(b":", 1)[1].strip()
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        while True:
            head = self.rfile.read(2)
            if len(head) < 2 or head[0] & 15 == 8: return
            n = head[1] & 127; mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(n)))
            self.wfile.write(bytes([0x81, n]) + data)
class S(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
S(("0.0.0.0", 8001), H).serve_forever()'`

// echo says hello over a WebSocket through the edge.
func (d *daemon) echo(id string) error {
	ctx, cancel := context.WithTimeout(d.t.Context(), slow(patience))
	defer cancel()
	conn, _, err := websocket.Dial(ctx, d.note().APIURL, &websocket.DialOptions{Host: "8001-" + id + "." + d.note().Domain})
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseNow() }()
	if err := conn.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		return err
	}
	_, got, err := conn.Read(ctx)
	if err == nil && string(got) != "hello" {
		err = fmt.Errorf("%q came back", got)
	}
	return err
}

// TestWebSocketAcrossAPause: it is cut at once, not left to hang.
func TestWebSocketAcrossAPause(t *testing.T) {
	d := start(t, "--memory-mib", "256")
	sb := many(t, d.client(), 1)[0]
	if _, err := sb.Start(t.Context(), webSocketEcho); err != nil {
		t.Fatal(err)
	}
	d.eventually(patience, func() error { return d.echo(sb.ID) })
	conn, _, err := websocket.Dial(t.Context(), d.note().APIURL, &websocket.DialOptions{Host: "8001-" + sb.ID + "." + d.note().Domain})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseNow() }()
	cut := make(chan time.Time, 1)
	go func() {
		_, _, _ = conn.Read(t.Context())
		cut <- time.Now()
	}()
	begin := time.Now()
	if err := sb.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case at := <-cut:
		t.Logf("cut after %s, paused after %s", at.Sub(begin).Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	case <-time.After(slow(5 * time.Second)):
		t.Error("a WebSocket hangs across a pause")
	}
	if err := sb.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.echo(sb.ID); err != nil {
		t.Errorf("after the resume: %v", err)
	}
}
