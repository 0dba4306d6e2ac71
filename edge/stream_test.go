package edge

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/nacrehq/nacre"
)

// open starts a request and returns its answer with the body open.
func (w *world) open(ctx context.Context, method, host, target string, body io.Reader) *http.Response {
	w.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, w.url+target, body)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Host = host
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// dialWebSocket opens a WebSocket to a port through the edge.
func (w *world) dialWebSocket(host string) *websocket.Conn {
	w.t.Helper()
	conn, _, err := websocket.Dial(w.t.Context(), w.url, &websocket.DialOptions{Host: host})
	if err != nil {
		w.t.Fatal(err)
	}
	conn.SetReadLimit(-1)
	w.t.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

func echoWebSocket(rw http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(rw, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	conn.SetReadLimit(-1)
	defer func() { _ = conn.CloseNow() }()
	for {
		kind, msg, err := conn.Read(r.Context())
		if err != nil || conn.Write(r.Context(), kind, msg) != nil {
			return
		}
	}
}

// TestWebSocket: messages of every size come back whole, and a close is passed on.
func TestWebSocket(t *testing.T) {
	w := newWorld(t)
	w.guest(idA, 3000, http.HandlerFunc(echoWebSocket))
	conn := w.dialWebSocket(host("3000", idA))
	for _, n := range []int{0, 1, 500, 512, 513, 5000, 1 << 20} {
		sent := strings.Repeat("x", n)
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(sent)); err != nil {
			t.Fatal(err)
		}
		_, got, err := conn.Read(t.Context())
		if err != nil || string(got) != sent {
			t.Fatalf("%d bytes came back as %d: %v", n, len(got), err)
		}
	}
	if err := conn.Close(websocket.StatusNormalClosure, "done"); err != nil {
		t.Error(err)
	}
	w.waitNoConns()
}

// waitNoConns waits until no connection to a guest is open.
func (w *world) waitNoConns() {
	w.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		w.edge.conns.mu.Lock()
		n := len(w.edge.conns.open)
		w.edge.conns.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("connections to %d machines are left", n)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestUpgradeRefused: the guest's own answer comes through.
func TestUpgradeRefused(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		host   string
		status int
	}{{host("8080", idA), 200}, {host("8081", idA), 502}, {host("8080", idGone), 502}} {
		a := w.do("GET", c.host, "/ws", "Connection: Upgrade", "Upgrade: websocket")
		if a.status != c.status || c.status == 200 && a.body != "serverA GET /ws" {
			t.Errorf("%s: %d %s", c.host, a.status, a.body)
		}
	}
}

// TestServerSentEvents: each event is there before the next is made.
func TestServerSentEvents(t *testing.T) {
	w := newWorld(t)
	next := make(chan struct{})
	w.guest(idA, 3000, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_, _ = fmt.Fprintf(rw, "data: %d\n\n", i)
			rw.(http.Flusher).Flush()
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
		}
	}))
	resp := w.open(t.Context(), "GET", host("3000", idA), "/", nil)
	lines := bufio.NewScanner(resp.Body)
	for i := range 3 {
		for lines.Scan() && lines.Text() == "" {
		}
		if want := fmt.Sprintf("data: %d", i); lines.Text() != want {
			t.Fatalf("%q, want %q", lines.Text(), want)
		}
		next <- struct{}{}
	}
}

// TestFullDuplex: an answer begins while the request still comes, as the agent's
// streams do over one connection.
func TestFullDuplex(t *testing.T) {
	w := newWorld(t)
	w.guest(idA, 3000, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).EnableFullDuplex()
		line, _ := bufio.NewReader(r.Body).ReadString('\n')
		_, _ = io.WriteString(rw, "got "+line)
		rw.(http.Flusher).Flush()
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	pr, pw := io.Pipe()
	go func() { _, _ = io.WriteString(pw, "one\n") }()
	resp := w.open(t.Context(), "POST", host("3000", idA), "/", pr)
	got, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil || got != "got one\n" {
		t.Fatalf("%q %v", got, err)
	}
	_ = pw.Close()
}

// TestMachineEnds: what is open to a machine is cut when it ends, for the guest
// goes without a word, and what is open to another stays.
func TestMachineEnds(t *testing.T) {
	w := newWorld(t)
	hang := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(rw, "begun")
		rw.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	for _, id := range []nacre.SandboxID{idA, idB} {
		w.guest(id, 3000, hang)
		w.guest(id, 3001, http.HandlerFunc(echoWebSocket))
	}
	streamA := w.open(t.Context(), "GET", host("3000", idA), "/", nil)
	streamB := w.open(t.Context(), "GET", host("3000", idB), "/", nil)
	socketA := w.dialWebSocket(host("3001", idA))
	socketB := w.dialWebSocket(host("3001", idB))
	for _, r := range []*http.Response{streamA, streamB} {
		if _, err := io.ReadFull(r.Body, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	w.end(idA)
	if _, err := io.ReadAll(streamA.Body); err == nil {
		t.Error("a stream that was cut ended as if it were whole")
	}
	if _, _, err := socketA.Read(t.Context()); err == nil {
		t.Error("a WebSocket of a dead machine went on")
	}
	if err := socketB.Write(t.Context(), websocket.MessageText, []byte("x")); err != nil {
		t.Error(err)
	}
	if _, got, err := socketB.Read(t.Context()); err != nil || string(got) != "x" {
		t.Errorf("the other sandbox was cut too: %q %v", got, err)
	}
}

// TestStaleConnections: after a sandbox got another machine, nothing goes over a
// connection to the old one.
func TestStaleConnections(t *testing.T) {
	w := newWorld(t)
	var old, young atomic.Int64
	w.guest(idA, 3000, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { old.Add(1) }))
	w.do("GET", host("3000", idA), "/")
	w.guest(idA, 3000, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { young.Add(1) }))
	w.setRoute(idA, func(r *nacre.Route) { r.Machine = "maaaaaaaaaaaaaaa2" })
	for range 5 {
		if a := w.do("GET", host("3000", idA), "/"); a.status != 200 {
			t.Fatal(a)
		}
	}
	if old.Load() != 1 || young.Load() != 5 {
		t.Errorf("the old machine had %d requests, the new one %d", old.Load(), young.Load())
	}
	w.end(idA)
	w.waitNoConns()
}

// TestConnectionsAreReused: a call does not dial, and the pool is per port.
func TestConnectionsAreReused(t *testing.T) {
	w := newWorld(t)
	for range 20 {
		w.do("GET", host("8080", idA), "/")
		w.do("GET", host("49983", idA), "/health")
	}
	w.traffic.mu.Lock()
	defer w.traffic.mu.Unlock()
	if w.traffic.dials != 2 {
		t.Errorf("40 requests dialled %d times", w.traffic.dials)
	}
}

// TestGuestMisbehaves: a server that hangs up or talks nonsense is said to be
// that, and hurts nobody else.
func TestGuestMisbehaves(t *testing.T) {
	w := newWorld(t)
	for name, reply := range map[string]string{
		"nothing":   "",
		"nonsense":  "SSH-2.0-x\r\n",
		"bomb":      "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"two sizes": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = http.ReadRequest(bufio.NewReader(c))
				_, _ = io.WriteString(c, reply)
				_ = c.Close()
			}
		})
		w.traffic.mu.Lock()
		w.traffic.ports[idA][3000] = l.Addr().String()
		w.traffic.mu.Unlock()
		for _, headers := range [][]string{nil, {"Connection: Upgrade", "Upgrade: websocket"}} {
			if a := w.do("POST", host("3000", idA), "/", headers...); a.status != 502 || !strings.Contains(a.body, `"port":3000`) {
				t.Errorf("%s %v: %d %s", name, headers, a.status, a.body)
			}
		}
		_ = l.Close()
		wg.Wait()
	}
}

// zeros is a body without a length in memory.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestBigUpload: a gigabyte up and down, through little memory.
func TestBigUpload(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	w := newWorld(t)
	var peak atomic.Uint64
	watch := func() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if m.HeapInuse > peak.Load() {
			peak.Store(m.HeapInuse)
		}
	}
	w.guest(idA, 3000, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		buf, n, next := make([]byte, 256<<10), int64(0), int64(0)
		for {
			k, err := r.Body.Read(buf)
			if n += int64(k); n >= next {
				watch()
				next += size / 16
			}
			if err != nil {
				break
			}
		}
		if r.Method == "GET" {
			_, _ = io.CopyN(rw, zeros{}, size)
			return
		}
		_, _ = fmt.Fprint(rw, n)
	}))
	for _, body := range []io.Reader{io.LimitReader(zeros{}, size), nil} {
		method := "POST"
		if body == nil {
			method = "GET"
		}
		start := time.Now()
		resp := w.open(t.Context(), method, host("3000", idA), "/", body)
		if method == "POST" {
			if got, _ := io.ReadAll(resp.Body); string(got) != fmt.Sprint(size) {
				t.Fatalf("%s of %d bytes came", got, size)
			}
		} else if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
			t.Fatal(n, err)
		}
		watch()
		t.Logf("%s: %.0f MB/s", method, float64(size)/1e6/time.Since(start).Seconds())
	}
	t.Logf("peak heap %d MiB", peak.Load()>>20)
	if peak.Load() > 64<<20 {
		t.Errorf("the heap grew to %d MiB", peak.Load()>>20)
	}
}

// TestFault33_Slowloris: headers that never end do not hold a connection, and
// big ones are refused.
func TestFault33_Slowloris(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	Harden(srv.Config)
	if srv.Config.ReadHeaderTimeout <= 0 || srv.Config.IdleTimeout < 5*time.Minute || srv.Config.WriteTimeout != 0 || srv.Config.ReadTimeout != 0 {
		t.Errorf("limits: %+v", srv.Config)
	}
	srv.Config.ReadHeaderTimeout = 50 * time.Millisecond // the same rule, sooner
	srv.Start()
	defer srv.Close()
	for _, request := range []string{"", "GET / HTTP/1.1\r\nHost: x\r\n", "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n"} {
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, request)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		out, err := io.ReadAll(conn)
		if ne, ok := err.(net.Error); ok && ne.Timeout() || strings.Contains(string(out), " 404 ") {
			t.Errorf("%.30q: %.40s %v", request, out, err)
		}
		_ = conn.Close()
	}
}

// TestClientLeaves: the guest's side ends with the client's.
func TestClientLeaves(t *testing.T) {
	w := newWorld(t)
	left := make(chan struct{})
	w.guest(idA, 3000, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.(http.Flusher).Flush()
		<-r.Context().Done()
		close(left)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	w.open(ctx, "GET", host("3000", idA), "/", nil)
	cancel()
	select {
	case <-left:
	case <-time.After(10 * time.Second):
		t.Fatal("the guest was not told that the client left")
	}
}
