package edge

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/nacrehq/nacre"
)

const (
	idA    = nacre.SandboxID("iaaaaaaaaaaaaaaaaaaaa")
	idB    = nacre.SandboxID("ibbbbbbbbbbbbbbbbbbbb")
	idGone = nacre.SandboxID("igggggggggggggggggggg")
	domain = "nacre.localhost"
)

// fakeTraffic is a node whose guests' ports are servers on this host.
type fakeTraffic struct {
	mu     sync.Mutex
	routes map[nacre.SandboxID]nacre.Route
	ports  map[nacre.SandboxID]map[int]string
	dials  int
}

func (f *fakeTraffic) Route(id nacre.SandboxID) (nacre.Route, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.routes[id]
	return r, ok
}

func (f *fakeTraffic) Routes(fn func(nacre.Route) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.routes {
		if !fn(r) {
			return
		}
	}
}

func (f *fakeTraffic) Dial(ctx context.Context, id nacre.SandboxID, port int) (net.Conn, error) {
	f.mu.Lock()
	f.dials++
	_, running := f.routes[id]
	addr := f.ports[id][port]
	f.mu.Unlock()
	if !running {
		return nil, nacre.Errorf(nacre.CodeNotFound, "no machine")
	}
	if addr == "" {
		return nil, nacre.Errorf(nacre.CodeUnavailable, "nobody listens")
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
}

func (f *fakeTraffic) Agent(context.Context, nacre.SandboxID) (nacre.Agent, error) {
	return nil, errors.New("the edge speaks HTTP to agents")
}

// world is an edge in front of two running sandboxes, served over HTTP; what is
// not the edge's is answered with 418.
type world struct {
	t       testing.TB
	traffic *fakeTraffic
	waker   *fakeWaker
	tokens  nacre.TokenKey
	edge    *Edge
	url     string

	mu   sync.Mutex
	seen []*http.Request // by the guests
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, tokens: nacre.TokenKey{7}, traffic: &fakeTraffic{
		routes: map[nacre.SandboxID]nacre.Route{
			idA: {Sandbox: idA, Machine: "maaaaaaaaaaaaaaa1", Secure: true, TokenEpoch: 1},
			idB: {Sandbox: idB, Machine: "mbbbbbbbbbbbbbbb1"},
		},
		ports: map[nacre.SandboxID]map[int]string{idA: {}, idB: {}},
	}}
	w.waker = &fakeWaker{traffic: w.traffic, asleep: map[nacre.SandboxID]nacre.Route{}, touched: map[nacre.SandboxID]int{}}
	w.edge = New(Config{Traffic: w.traffic, TokenKey: w.tokens, Domain: domain + ":8443", Waker: w.waker, Activity: w.waker})
	echo := func(name string) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			w.mu.Lock()
			w.seen = append(w.seen, r.Clone(context.Background()))
			w.mu.Unlock()
			_, _ = io.WriteString(rw, name+" "+r.Method+" "+r.RequestURI)
		})
	}
	w.guest(idA, nacre.AgentPort, echo("agentA"))
	w.guest(idB, nacre.AgentPort, echo("agentB"))
	w.guest(idA, 8080, echo("serverA"))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if w.edge.Match(r) {
			w.edge.ServeHTTP(rw, r)
			return
		}
		rw.WriteHeader(http.StatusTeapot)
	}))
	Harden(srv.Config)
	srv.Start()
	t.Cleanup(srv.Close)
	w.url = srv.URL
	return w
}

// guest makes a handler the server on a port of a sandbox.
func (w *world) guest(id nacre.SandboxID, port int, h http.Handler) {
	srv := httptest.NewServer(h)
	w.t.Cleanup(srv.Close)
	w.traffic.mu.Lock()
	defer w.traffic.mu.Unlock()
	w.traffic.ports[id][port] = srv.Listener.Addr().String()
}

func (w *world) setRoute(id nacre.SandboxID, change func(*nacre.Route)) {
	w.traffic.mu.Lock()
	defer w.traffic.mu.Unlock()
	r := w.traffic.routes[id]
	change(&r)
	w.traffic.routes[id] = r
}

func (w *world) end(id nacre.SandboxID) {
	w.traffic.mu.Lock()
	defer w.traffic.mu.Unlock()
	delete(w.traffic.routes, id)
}

// last returns what a guest saw last, and how many requests came in all.
func (w *world) last() (*http.Request, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.seen) == 0 {
		return nil, 0
	}
	return w.seen[len(w.seen)-1], len(w.seen)
}

type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request with a Host and headers "Name: value".
func (w *world) do(method, host, target string, headers ...string) answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+target, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Host = host
	for _, h := range headers {
		if name, value, ok := strings.Cut(h, ": "); ok {
			req.Header.Add(name, value)
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// raw sends bytes as they stand and returns what comes back until the answer's
// body ends or the connection does.
func (w *world) raw(request string) string {
	w.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, request); err != nil {
		w.t.Fatal(err)
	}
	out, _ := io.ReadAll(conn) // the request asks for the connection's end; half-closing it would cancel it
	return string(out)
}

func host(port string, id nacre.SandboxID) string { return port + "-" + string(id) + "." + domain }
