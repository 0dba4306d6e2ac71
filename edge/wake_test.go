package edge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/nacrehq/nacre"
)

// fakeWaker is a nacre.Waker and a nacre.Activity beside a fakeTraffic.
type fakeWaker struct {
	traffic *fakeTraffic

	mu      sync.Mutex
	asleep  map[nacre.SandboxID]nacre.Route
	wakes   int
	fail    error
	block   chan struct{} // Wake waits until it is closed
	touched map[nacre.SandboxID]int
}

func (f *fakeWaker) Asleep(id nacre.SandboxID) (nacre.Route, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.asleep[id]
	return r, ok
}

func (f *fakeWaker) Sleepers(fn func(nacre.Route) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.asleep {
		if !fn(r) {
			return
		}
	}
}

func (f *fakeWaker) Wake(ctx context.Context, id nacre.SandboxID) error {
	f.mu.Lock()
	f.wakes++
	fail, block := f.fail, f.block
	f.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fail != nil {
		return fail
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.traffic.mu.Lock()
	defer f.traffic.mu.Unlock()
	r, ok := f.asleep[id]
	if ok {
		r.Machine = "mafteraresume0000001"
		f.traffic.routes[id] = r
		delete(f.asleep, id)
	}
	return nil
}

func (f *fakeWaker) Touch(id nacre.SandboxID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.touched[id]++
}

func (f *fakeWaker) LastUse(nacre.SandboxID) time.Time { return time.Time{} }

func (f *fakeWaker) counts(id nacre.SandboxID) (wakes, touched int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wakes, f.touched[id]
}

// sleep pauses a sandbox; what it served is there again after a wake.
func (w *world) sleep(id nacre.SandboxID) {
	w.waker.mu.Lock()
	defer w.waker.mu.Unlock()
	w.traffic.mu.Lock()
	defer w.traffic.mu.Unlock()
	if r, ok := w.traffic.routes[id]; ok {
		w.waker.asleep[id] = r
		delete(w.traffic.routes, id)
	}
	w.waker.wakes = 0
}

func (w *world) sign(id nacre.SandboxID, op, path string, expires int64) string {
	text := path + ":" + op + "::" + w.tokens.AccessToken(id, 1)
	q := url.Values{"path": {path}}
	if expires != 0 {
		text += ":" + strconv.FormatInt(expires, 10)
		q.Set("signature_expiration", strconv.FormatInt(expires, 10))
	}
	sum := sha256.Sum256([]byte(text))
	q.Set("signature", "v1_"+base64.RawStdEncoding.EncodeToString(sum[:]))
	return "/files?" + q.Encode()
}

// TestWakeOnRequest: each kind of request brings its sandbox back and is answered
// by it; what may not reach it, or only asks about it, does not.
func TestWakeOnRequest(t *testing.T) {
	w := newWorld(t)
	w.setRoute(idA, func(r *nacre.Route) { r.Network.PrivateTraffic = true })
	w.guest(idB, 8080, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, "serverB") }))
	const api = "api.nacre.localhost:8443"
	byID := "E2b-Sandbox-Id: " + string(idA)
	now := time.Now().Unix()
	traffic := "E2b-Traffic-Access-Token: " + w.tokens.TrafficToken(idA, 1)
	for _, c := range []struct {
		name, method, host, target string
		headers                    []string
		status                     int
		body                       string // part of it
		wakes                      int
	}{
		{"preview", "GET", host("8080", idB), "/", nil, 200, "serverB", 1},
		{"private preview", "POST", host("8080", idA), "/x", []string{traffic}, 200, "serverA POST /x", 1},
		{"private preview, no token", "GET", host("8080", idA), "/", nil, 403, "public traffic", 0},
		{"private preview, another's token", "GET", host("8080", idA), "/",
			[]string{"E2b-Traffic-Access-Token: " + w.tokens.TrafficToken(idB, 1)}, 403, "", 0},
		{"private preview, rotated token", "GET", host("8080", idA), "/",
			[]string{"E2b-Traffic-Access-Token: " + w.tokens.TrafficToken(idA, 0)}, 403, "", 0},
		{"command", "POST", host("49983", idA), "/process.Process/Start", []string{w.token(idA, 1)}, 200, "agentA", 1},
		{"command by token alone", "POST", api, "/process.Process/Start", []string{w.token(idA, 1)}, 200, "agentA", 1},
		{"command by header", "POST", api, "/process.Process/List", []string{byID, w.token(idA, 1)}, 200, "agentA", 1},
		{"command, no token", "POST", host("49983", idA), "/process.Process/Start", nil, 401, "unauthenticated", 0},
		{"command, wrong token", "POST", host("49983", idA), "/process.Process/Start", []string{"X-Access-Token: x"}, 401, "", 0},
		{"command, another's token", "POST", host("49983", idA), "/process.Process/Start", []string{w.token(idB, 0)}, 401, "", 0},
		{"command, rotated token", "POST", host("49983", idA), "/process.Process/Start", []string{w.token(idA, 0)}, 401, "no longer good", 0},
		{"command in one that is not secure", "POST", host("49983", idB), "/process.Process/Start", nil, 200, "agentB", 1},
		{"file", "GET", api, "/files?path=a", []string{byID, w.token(idA, 1)}, 200, "agentA GET /files?path=a", 1},
		{"file, nothing given", "GET", api, "/files?path=a", []string{byID}, 401, "missing signature", 0},
		{"signed file", "GET", host("49983", idA), w.sign(idA, "read", "a", 0), nil, 200, "agentA", 1},
		{"signed file that names no sandbox", "GET", api, w.sign(idA, "read", "a", now+60), nil, 200, "agentA", 1},
		{"signed upload", "POST", host("49983", idA), w.sign(idA, "write", "a", 0), nil, 200, "agentA", 1},
		{"signed for reading only", "POST", host("49983", idA), w.sign(idA, "read", "a", 0), nil, 401, "invalid signature", 0},
		{"signature that has expired", "GET", host("49983", idA), w.sign(idA, "read", "a", now-60), nil, 401,
			`{"code":401,"message":"signature is already expired"}`, 0},
		{"health", "GET", host("49983", idA), "/health", []string{w.token(idA, 1)}, 502, "The sandbox was not found", 0},
		{"a page's preflight", "OPTIONS", host("49983", idA), "/files", []string{"Access-Control-Request-Method: POST", "Origin: x"}, 204, "", 0},
		{"what is the host's alone", "POST", host("49983", idA), "/init", []string{w.token(idA, 1)}, 404, "", 0},
		{"one that is not paused but gone", "GET", host("8080", idGone), "/", nil, 502, "The sandbox was not found", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.sleep(idA)
			w.sleep(idB)
			a := w.do(c.method, c.host, c.target, c.headers...)
			if a.status != c.status || !strings.Contains(a.body, c.body) {
				t.Errorf("%d %q, want %d %q", a.status, a.body, c.status, c.body)
			}
			if wakes, _ := w.waker.counts(idA); wakes != c.wakes {
				t.Errorf("%d wakes, want %d", wakes, c.wakes)
			}
		})
	}
}

// TestWakeRefusedAsWhenRunning: who may not reach a running sandbox gets the same
// answer while it is paused.
func TestWakeRefusedAsWhenRunning(t *testing.T) {
	w := newWorld(t)
	w.setRoute(idA, func(r *nacre.Route) { r.Network.PrivateTraffic = true })
	for _, c := range []struct{ host, header string }{
		{host("8080", idA), ""}, {host("8080", idA), "E2b-Traffic-Access-Token: x"}, {host("49983", idA), w.token(idA, 0)},
	} {
		running := w.do("POST", c.host, "/process.Process/List", c.header)
		w.sleep(idA)
		asleep := w.do("POST", c.host, "/process.Process/List", c.header)
		_ = w.waker.Wake(t.Context(), idA)
		if running.status < 400 || asleep.status != running.status || asleep.body != running.body {
			t.Errorf("%s %s: running %d %s, asleep %d %s", c.host, c.header, running.status, running.body, asleep.status, asleep.body)
		}
	}
}

func TestWakeOnWebSocket(t *testing.T) {
	w := newWorld(t)
	w.guest(idB, 3000, http.HandlerFunc(echoWebSocket))
	w.sleep(idB)
	conn := w.dialWebSocket(host("3000", idB))
	if err := conn.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, got, err := conn.Read(t.Context()); err != nil || string(got) != "hello" {
		t.Fatalf("%q %v", got, err)
	}
}

// TestWakeKeepsTheBody: what was uploaded while the sandbox came back is all there.
func TestWakeKeepsTheBody(t *testing.T) {
	w := newWorld(t)
	w.guest(idB, 3000, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(rw, strconv.FormatInt(n, 10))
	}))
	w.waker.block = make(chan struct{})
	w.sleep(idB)
	time.AfterFunc(50*time.Millisecond, func() { close(w.waker.block) })
	resp := w.open(t.Context(), "POST", host("3000", idB), "/", bytes.NewReader(make([]byte, 3<<20)))
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != strconv.Itoa(3<<20) {
		t.Errorf("%s %v", got, err)
	}
}

// TestWakeFails: the reason reaches who asked, in words, with what to do.
func TestWakeFails(t *testing.T) {
	for _, c := range []struct {
		err     error
		status  int
		message string
		retry   bool
	}{
		{nacre.Errorf(nacre.CodeExhausted, "this host is full"), 503, "this host is full", true},
		{nacre.Errorf(nacre.CodeUnavailable, "the store does not answer"), 503, "the store does not answer", true},
		{nacre.Errorf(nacre.CodeConflict, "the snapshot is damaged"), 502, "the snapshot is damaged", false},
		{nacre.Errorf(nacre.CodeMismatch, "it was taken on another processor"), 502, "it was taken on another processor", false},
		{nacre.Errorf(nacre.CodeNotFound, "it was killed"), 502, "The sandbox was not found", false},
		{context.DeadlineExceeded, 503, "was not ready in time", true},
		{io.ErrUnexpectedEOF, 502, "could not be resumed", false},
	} {
		w := newWorld(t)
		w.waker.fail = c.err
		w.sleep(idB)
		a := w.do("GET", host("8080", idB), "/")
		var body sandboxError
		if err := json.Unmarshal([]byte(a.body), &body); err != nil || a.status != c.status || body.Code != c.status ||
			body.SandboxID != string(idB) || !strings.Contains(body.Message, c.message) || (a.header.Get("Retry-After") != "") != c.retry {
			t.Errorf("%v: %d %s %v, want %d %q", c.err, a.status, a.body, a.header, c.status, c.message)
		}
		if strings.Contains(a.body, "EOF") {
			t.Errorf("the cause reached the client: %s", a.body)
		}
		page := w.do("GET", host("8080", idB), "/", "Accept: text/html")
		if page.status != c.status || !strings.Contains(page.body, "<h1>") {
			t.Errorf("a browser gets %d %s", page.status, page.body)
		}
	}
}

// TestWakeOfManyAtOnce: they all wait, and are all answered.
func TestWakeOfManyAtOnce(t *testing.T) {
	w := newWorld(t)
	w.waker.block = make(chan struct{})
	w.sleep(idA)
	const n = 50
	answers := make(chan answer, n)
	for range n {
		go func() { answers <- w.do("POST", host("49983", idA), "/process.Process/List", w.token(idA, 1)) }()
	}
	for {
		if wakes, _ := w.waker.counts(idA); wakes == n {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(w.waker.block)
	for range n {
		if a := <-answers; a.status != 200 || !strings.HasPrefix(a.body, "agentA") {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
}

// TestWakeEndsWithItsRequest: a client that went away waits for nothing.
func TestWakeEndsWithItsRequest(t *testing.T) {
	w := newWorld(t)
	w.waker.block = make(chan struct{})
	w.sleep(idB)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		req, _ := http.NewRequestWithContext(ctx, "GET", w.url, nil)
		req.Host = host("8080", idB)
		_, err := http.DefaultTransport.RoundTrip(req)
		done <- err
	}()
	for {
		if wakes, _ := w.waker.counts(idB); wakes == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("the request was answered")
	}
}

// TestActivity: what is a use, and by whom.
func TestActivity(t *testing.T) {
	w := newWorld(t)
	agent := host("49983", idA)
	for _, c := range []struct {
		name, method, host, target, header string
		use                                bool
	}{
		{"a command", "POST", agent, "/process.Process/Start", w.token(idA, 1), true},
		{"terminal input", "POST", agent, "/process.Process/SendInput", w.token(idA, 1), true},
		{"an upload", "POST", agent, "/files?path=x", w.token(idA, 1), true},
		{"a signed upload", "POST", agent, w.sign(idA, "write", "a", 0), "", true},
		{"a new directory", "POST", agent, "/filesystem.Filesystem/MakeDir", w.token(idA, 1), true},
		{"a preview", "GET", host("8080", idA), "/", "", true},
		{"a stranger's command", "POST", agent, "/process.Process/Start", "X-Access-Token: x", false},
		{"a stranger's upload", "POST", agent, "/files?path=x", "", false},
		{"a download", "GET", agent, "/files?path=x", w.token(idA, 1), false},
		{"health", "GET", agent, "/health", w.token(idA, 1), false},
		{"a list of processes", "POST", agent, "/process.Process/List", w.token(idA, 1), false},
		{"following a process", "POST", agent, "/process.Process/Connect", w.token(idA, 1), false},
		{"a file's data", "POST", agent, "/filesystem.Filesystem/Stat", w.token(idA, 1), false},
		{"a directory", "POST", agent, "/filesystem.Filesystem/ListDir", w.token(idA, 1), false},
		{"watching", "POST", agent, "/filesystem.Filesystem/WatchDir", w.token(idA, 1), false},
	} {
		_, before := w.waker.counts(idA)
		w.do(c.method, c.host, c.target, c.header)
		if _, after := w.waker.counts(idA); (after > before) != c.use {
			t.Errorf("%s: a use %v, want %v", c.name, after > before, c.use)
		}
	}
}

// TestActivityOfAWebSocket: what a client sends counts, at most every other second.
func TestActivityOfAWebSocket(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	now := time.Unix(1e9, 0)
	w.edge.clock = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	w.guest(idB, 3000, http.HandlerFunc(echoWebSocket))
	conn := w.dialWebSocket(host("3000", idB))
	echo := func() int {
		if err := conn.Write(t.Context(), websocket.MessageText, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := conn.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, touched := w.waker.counts(idB)
		return touched
	}
	if n := echo() + echo(); n != 2 {
		t.Errorf("messages of one moment are %d uses beyond the first", n-2)
	}
	mu.Lock()
	now = now.Add(touchEvery)
	mu.Unlock()
	if n := echo(); n != 2 {
		t.Errorf("%d uses, want 2", n)
	}
}
