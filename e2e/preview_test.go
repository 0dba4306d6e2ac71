package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/nacrehq/nacre/client"
)

// previewServer is a guest's server on port 8002: it tells what it was asked, hands out
// events one at a time, and counts what is sent to it.
const previewServer = `
import hashlib, http.server, threading
more = threading.Semaphore(0)
class H(http.server.BaseHTTPRequestHandler):
    def answer(self, text, kind="text/plain"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def do_GET(self):
        if self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for i in range(3):
                self.wfile.write(b"data: %d\n\n" % i)
                self.wfile.flush()
                more.acquire()
        elif self.path == "/more":
            more.release()
            self.answer(b"")
        elif self.path.startswith("/bytes/"):
            self.answer(b"\xff" * int(self.path[7:]))
        else:
            self.answer(("%s %s\n%s" % (self.command, self.path, self.headers)).encode())
    def parts(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while n := int(self.rfile.readline(), 16):
                yield self.rfile.read(n)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers["Content-Length"])
            while left:
                b = self.rfile.read(min(left, 1 << 16))
                left -= len(b)
                yield b
    def do_POST(self):
        h = hashlib.sha256()
        for b in self.parts(): h.update(b)
        self.answer(h.hexdigest().encode())
http.server.ThreadingHTTPServer(("", 8002), H).serve_forever()
`

const previewPort = 8002

// servePreview starts it and waits until it is reached.
func (d *daemon) servePreview(sb *client.Sandbox, shape ...func(*http.Request)) {
	d.t.Helper()
	if err := sb.Files.WriteFile(d.t.Context(), "/tmp/preview.py", []byte(previewServer)); err != nil {
		d.t.Fatal(err)
	}
	if _, err := sb.Start(d.t.Context(), "exec python3 /tmp/preview.py"); err != nil {
		d.t.Fatal(err)
	}
	d.eventually(patience, func() error {
		if a := d.preview(sb.ID, previewPort, "/", shape...); a.Status != http.StatusOK {
			return errors.New(a.String())
		}
		return nil
	})
}

// TestPreviews: a port of a real guest as a browser has it, whatever it speaks and
// however it is named.
func TestPreviews(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0")
	sb := many(t, d.client(), 1)[0]
	if a := d.preview(sb.ID, previewPort, "/"); a.Status != http.StatusBadGateway || !strings.Contains(a.Body, "port is not open") {
		t.Errorf("nobody listens: %s", a)
	}
	d.servePreview(sb)
	t.Run("Names", func(t *testing.T) { d.previewNames(t, sb) })
	t.Run("ServerSentEvents", func(t *testing.T) { d.previewEvents(t, sb) })
	t.Run("Bodies", func(t *testing.T) { d.previewBodies(t, sb) })
	t.Run("WebSocket", func(t *testing.T) { d.previewWebSocket(t, sb) })
	t.Run("Signatures", func(t *testing.T) {
		if err := sb.Files.WriteFile(t.Context(), "f", []byte("content")); err != nil {
			t.Fatal(err)
		}
		d.signatures(t, sb)
	})
	t.Run("Private", d.previewPrivate)
}

func (d *daemon) previewNames(t *testing.T, sb *client.Sandbox) {
	port, host := fmt.Sprint(previewPort), fmt.Sprintf("%d-%s.%s", previewPort, sb.ID, d.note().Domain)
	for name, way := range map[string]func(*http.Request){
		"host name":                    as("Host", host),
		"host name, as a proxy has it": as("Host", strings.ToUpper(host)+":443"),
		"E2B's headers":                as("E2b-Sandbox-Id", sb.ID, "E2b-Sandbox-Port", port),
		"Moru's headers":               as("Moru-Sandbox-Id", sb.ID, "Moru-Sandbox-Port", port),
	} {
		a, err := d.ask(t.Context(), http.MethodGet, "/a%20b?c=d", nil, way, as("X-Own", "kept"))
		if err != nil || a.Status != http.StatusOK || !strings.HasPrefix(a.Body, "GET /a%20b?c=d\n") || !strings.Contains(a.Body, "kept") {
			t.Errorf("by %s: %s %v", name, a, err)
		}
	}
	for name, way := range map[string]func(*http.Request){
		"another port":    as("E2b-Sandbox-Id", sb.ID, "E2b-Sandbox-Port", "8009"),
		"another sandbox": as("E2b-Sandbox-Id", strings.Repeat("i", len(sb.ID)), "E2b-Sandbox-Port", port),
	} {
		if a, err := d.ask(t.Context(), http.MethodGet, "/", nil, way); err != nil || a.Status != http.StatusBadGateway {
			t.Errorf("%s: %s %v", name, a, err)
		}
	}
}

// previewEvents: each event is there before the next is made.
func (d *daemon) previewEvents(t *testing.T, sb *client.Sandbox) {
	ctx, cancel := context.WithTimeout(t.Context(), slow(time.Minute))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.note().APIURL+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	as("E2b-Sandbox-Id", sb.ID, "E2b-Sandbox-Port", fmt.Sprint(previewPort))(req)
	resp, err := plain.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 3 {
		for lines.Scan() && lines.Text() == "" {
		}
		if want := fmt.Sprintf("data: %d", i); lines.Text() != want {
			t.Fatalf("%q (%v), want %q", lines.Text(), lines.Err(), want)
		}
		if a := d.preview(sb.ID, previewPort, "/more"); a.Status != http.StatusOK {
			t.Fatal(a)
		}
	}
}

// previewBodies: what is sent and what is fetched arrives whole, with its length told
// ahead or not.
func (d *daemon) previewBodies(t *testing.T, sb *client.Sandbox) {
	body := bytes.Repeat([]byte("0123456789abcde\n"), 4<<20/16)
	sum := sha256.Sum256(body)
	for name, r := range map[string]io.Reader{
		"with its length": bytes.NewReader(body),
		"in chunks":       struct{ io.Reader }{bytes.NewReader(body)}, // whose length nobody knows
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.note().APIURL+"/", r)
		if err != nil {
			t.Fatal(err)
		}
		as("E2b-Sandbox-Id", sb.ID, "E2b-Sandbox-Port", fmt.Sprint(previewPort))(req)
		resp, err := plain.Do(req)
		if err != nil {
			t.Fatalf("an upload %s: %v", name, err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(got) != hex.EncodeToString(sum[:]) {
			t.Errorf("an upload %s came as %d %s %v", name, resp.StatusCode, got, err)
		}
	}
	const n = 1 << 20 // what ask reads
	if a := d.preview(sb.ID, previewPort, fmt.Sprint("/bytes/", n)); a.Status != http.StatusOK || a.Body != strings.Repeat("\xff", n) {
		t.Errorf("a download: %d, %d bytes", a.Status, len(a.Body))
	}
}

// previewWebSocket: both ways of naming the sandbox, and no upgrade where nobody listens.
func (d *daemon) previewWebSocket(t *testing.T, sb *client.Sandbox) {
	if _, err := sb.Start(t.Context(), webSocketEcho); err != nil {
		t.Fatal(err)
	}
	d.eventually(patience, func() error { return d.echo(sb.ID) })
	ctx, cancel := context.WithTimeout(t.Context(), slow(30*time.Second))
	defer cancel()
	conn, _, err := websocket.Dial(ctx, d.note().APIURL, &websocket.DialOptions{
		HTTPHeader: http.Header{"E2b-Sandbox-Id": {sb.ID}, "E2b-Sandbox-Port": {"8001"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseNow() }()
	for _, sent := range []string{"", "hello", strings.Repeat("x", 125)} {
		if err := conn.Write(ctx, websocket.MessageText, []byte(sent)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.Read(ctx); err != nil || string(got) != sent {
			t.Fatalf("%q came back as %q: %v", sent, got, err)
		}
	}
	if a := d.preview(sb.ID, 8009, "/", as("Connection", "Upgrade", "Upgrade", "websocket")); a.Status != http.StatusBadGateway {
		t.Errorf("an upgrade where nobody listens: %s", a)
	}
}

// previewPrivate: a sandbox without public traffic demands its token, and a guest sees
// the host name that was asked for.
func (d *daemon) previewPrivate(t *testing.T) {
	sb := many(t, d.client(), 1, client.PrivateTraffic(), client.MaskRequestHost("guest.example.com:${PORT}"))[0]
	defer func() { _ = sb.Kill(t.Context()) }()
	d.servePreview(sb, as("E2b-Traffic-Access-Token", sb.TrafficToken))
	for _, c := range []struct {
		name   string
		way    func(*http.Request)
		status int
	}{
		{"no token", as(), http.StatusForbidden},
		{"another token", as("E2b-Traffic-Access-Token", sb.TrafficToken+"x"), http.StatusForbidden},
		{"an upgrade without one", as("Connection", "Upgrade", "Upgrade", "websocket"), http.StatusForbidden},
		{"E2B's header", as("E2b-Traffic-Access-Token", sb.TrafficToken), http.StatusOK},
		{"Moru's header", as("Moru-Traffic-Access-Token", sb.TrafficToken), http.StatusOK},
	} {
		a := d.preview(sb.ID, previewPort, "/", c.way)
		if a.Status != c.status {
			t.Errorf("%s: %s", c.name, a)
		}
		if a.Status == http.StatusOK && !strings.Contains(a.Body, fmt.Sprintf("Host: guest.example.com:%d\n", previewPort)) {
			t.Errorf("%s: the guest sees %s", c.name, a)
		}
	}
}
