// Package edge is public traffic: everything that comes from outside for a
// sandbox, be it for its agent or for a server that runs in it. It answers from
// what the node has in memory and needs neither the API nor the store.
package edge

import (
	"context"
	"crypto/subtle"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

// Config is what the edge needs. Traffic and TokenKey are required.
type Config struct {
	Traffic  nacre.Traffic
	TokenKey nacre.TokenKey
	// Domain is what "<port>-<id>" labels stand under; a port in it is ignored.
	Domain string
	// Waker brings paused sandboxes back when a request comes for them, and Activity
	// is told of uses; nil means that nobody does.
	Waker    nacre.Waker
	Activity nacre.Activity

	// Previews tells which hosts show a port of a sandbox; nil means none does.
	Previews nacre.PreviewRoutes

	Logger *slog.Logger // nil means none
	Clock  nacre.Clock  // nil means time.Now
}

// Edge is an http.Handler for the requests that Match tells.
type Edge struct {
	traffic  nacre.Traffic
	waker    nacre.Waker
	activity nacre.Activity
	tokens   nacre.TokenKey
	domain   string // lower case, no port, no dot at its end
	log      *slog.Logger
	clock    nacre.Clock
	previews *previews // nil without any

	conns   *conns
	agents  *httputil.ReverseProxy
	servers *httputil.ReverseProxy

	healthTime time.Duration // healthTimeout, but in tests
}

// New returns an edge. While nobody is connected it holds nothing but connections
// to guests that are kept for the next request, for seconds.
func New(c Config) *Edge {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	e := &Edge{
		traffic:  c.Traffic,
		waker:    c.Waker,
		activity: c.Activity,
		tokens:   c.TokenKey,
		domain:   canonicalHost(c.Domain),
		log:      c.Logger,
		clock:    c.Clock,
		conns:    newConns(c.Traffic),

		healthTime: healthTimeout,
	}
	if c.Previews != nil {
		e.previews = newPreviews(c.Previews, c.Clock)
	}
	e.agents = e.newProxy(agentIdle)
	e.servers = e.newProxy(serverIdle)
	return e
}

// Close ends the connections to guests that wait for another request. Requests that
// are being served go on; whoever serves them ends them.
func (e *Edge) Close() error {
	for _, p := range []*httputil.ReverseProxy{e.agents, e.servers} {
		p.Transport.(uploads).next.CloseIdleConnections()
	}
	return nil
}

// Match tells whether a request is a sandbox's rather than the API's.
func (e *Edge) Match(r *http.Request) bool {
	_, ok := e.resolve(r)
	return ok
}

// ServeHTTP passes a request on to its sandbox, which is resumed for it first when
// it is paused and to be woken; or says why it cannot: 502 for a sandbox that is
// not running and for a port where nobody listens, 503 for one that cannot be
// resumed now, 404 for what is the host's alone, 401 and 403 for a wrong token.
func (e *Edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t, ok := e.resolve(r)
	if !ok {
		writeError(w, http.StatusNotFound, "this request names no sandbox")
		return
	}
	if t.port == nacre.AgentPort {
		allowBrowsers(w.Header())
		if !agentPath(r.URL) {
			writeError(w, http.StatusNotFound, "no such route")
			return
		}
		if preflight(w, r) {
			return
		}
	}
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		writeError(w, http.StatusMethodNotAllowed, "this method is not passed on")
		return
	}
	if t.refusal != "" {
		writeError(w, http.StatusUnauthorized, t.refusal)
		return
	}
	if t.host != "" {
		e.servePreview(w, r, t)
		return
	}
	e.pass(w, r, t)
}

// pass hands a request to its sandbox.
func (e *Edge) pass(w http.ResponseWriter, r *http.Request, t target) {
	route, ok := e.traffic.Route(nacre.SandboxID(t.id))
	if !ok {
		if route, ok = e.wake(w, r, t); !ok {
			return
		}
	}
	if t.team != "" && route.Team != t.team {
		t.notFound(w, r)
		return
	}
	duplex := r.ProtoMajor == 1 && r.ContentLength != 0
	if duplex {
		// An answer may begin before the request's end; the server would wait for
		// that. A writer that cannot do this waits, which is all there is to lose.
		_ = http.NewResponseController(w).EnableFullDuplex()
	}
	if t.port == nacre.AgentPort {
		e.serveAgent(w, r, t, route)
	} else {
		e.servePort(w, r, t, route)
	}
	if duplex && upgradeOf(r) == "" {
		// What is left of a request that was answered before its end: the server reads it
		// too, but in full duplex so late (Go 1.26) that the connection's next request
		// finds that under way and is cut off. The client may wait for the answer first.
		_ = http.NewResponseController(w).Flush()
		_ = r.Body.Close()
	}
}

// serveAgent passes on to the agent, which checks tokens and signatures itself;
// but for tokens of before they were rotated, which it may still know.
func (e *Edge) serveAgent(w http.ResponseWriter, r *http.Request, t target, route nacre.Route) {
	id, epoch, ok := e.tokens.ParseAccessToken(r.Header.Get(headerAccessToken))
	if ok && id == route.Sandbox && epoch != route.TokenEpoch {
		writeBody(w, http.StatusUnauthorized, staleToken().body)
		return
	}
	e.touchAgent(r, t, route)
	if r.URL.Path == "/health" {
		ctx, cancel := context.WithTimeout(r.Context(), e.healthTime)
		defer cancel()
		r = r.WithContext(ctx)
	}
	e.agents.ServeHTTP(w, withHop(r, newHop(w, r, t, route)))
}

// servePort passes on to whatever listens in the sandbox.
func (e *Edge) servePort(w http.ResponseWriter, r *http.Request, t target, route nacre.Route) {
	if route.Network.PrivateTraffic && !t.permitted && !e.mayPass(r, route) {
		writeBody(w, http.StatusForbidden, privateTraffic(t).body)
		return
	}
	e.touch(route.Sandbox)
	h := newHop(w, r, t, route)
	if upgradeOf(r) != "" {
		e.serveUpgrade(w, r, h)
		return
	}
	e.servers.ServeHTTP(w, withHop(r, h))
}

func (e *Edge) mayPass(r *http.Request, route nacre.Route) bool {
	want := []byte(e.tokens.TrafficToken(route.Sandbox, route.TokenEpoch))
	ok := 0
	for _, name := range headersTraffic {
		ok |= subtle.ConstantTimeCompare([]byte(r.Header.Get(name)), want)
	}
	return ok == 1
}

// agentPath lists what of the agent is for everybody. Each has one spelling:
// whatever else a decoder might read as one of the host's own routes is none of
// these.
func agentPath(u *url.URL) bool {
	if u.RawPath != "" { // spelled with escapes
		return false
	}
	if u.Path == "/health" || u.Path == "/files" {
		return true
	}
	for _, service := range []string{"/process.Process/", "/filesystem.Filesystem/"} {
		if method, ok := strings.CutPrefix(u.Path, service); ok && method != "" && !strings.ContainsFunc(method, notLetter) {
			return true
		}
	}
	return false
}

func notLetter(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') }

// hop is where a request goes, carried by its context to the proxy's hooks.
type hop struct {
	target target
	route  nacre.Route
	client *http.ResponseController // who sends a body; nil when none comes
}

func newHop(w http.ResponseWriter, r *http.Request, t target, route nacre.Route) hop {
	h := hop{target: t, route: route}
	if r.ContentLength != 0 {
		h.client = http.NewResponseController(w)
	}
	return h
}

type hopKey struct{}

func withHop(r *http.Request, h hop) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), hopKey{}, h))
}

func hopOf(ctx context.Context) hop {
	h, _ := ctx.Value(hopKey{}).(hop)
	return h
}
