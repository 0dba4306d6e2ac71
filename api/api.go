// Package api is what the dialects share: routing to a handler with the key's
// team known, request ids, panics turned into answers, an access log without
// secrets, and JSON bodies with limits. It knows HTTP and no dialect's shapes.
package api

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

// Causes that only HTTP knows. A dialect's error table asks for them with
// errors.Is before it looks at the code.
var (
	ErrMethod   = errors.New("method not allowed")
	ErrTooLarge = errors.New("request body too large")
)

// Route is one operation of a dialect. Path consists of literal segments and
// {name}s, which Call.R.PathValue returns decoded; a {name...} at the end is one or
// more segments. The first route of the table that matches wins, so literal paths
// stand before patterns.
type Route struct {
	Method string
	Path   string
	Public bool // answered without a key
	Handle func(*Call) error
}

// Call is one request whose caller is known.
type Call struct {
	W    http.ResponseWriter
	R    *http.Request
	Team nacre.TeamID // "" on a public route
	Key  nacre.Key
}

// Dialect is a wire API.
type Dialect struct {
	Routes []Route
	Auth   *Auth
	// WriteError answers a failed call in the dialect's form. It is not called
	// when the answer has begun already: such a connection is cut instead.
	WriteError func(w http.ResponseWriter, r *http.Request, err error)
	Logger     *slog.Logger // nil means none
	Clock      nacre.Clock  // nil means time.Now
}

// Handler serves the dialect's routes. Every answer of it, also to an unknown
// path, a wrong method and a panic, has the dialect's form.
func (d Dialect) Handler() http.Handler {
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Clock == nil {
		d.Clock = time.Now
	}
	h := &handler{Dialect: d, patterns: make([][]string, len(d.Routes))}
	for i, route := range d.Routes {
		h.patterns[i] = strings.Split(strings.TrimPrefix(route.Path, "/"), "/")
	}
	return h
}

type handler struct {
	Dialect
	patterns [][]string
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := h.Clock()
	id := requestID(r.Header.Get("X-Request-Id"))
	w.Header().Set("X-Request-Id", id)
	rec := &recorder{ResponseWriter: w}
	call := &Call{W: rec, R: r}
	route, err := h.run(call)
	if err != nil {
		if rec.status == 0 {
			h.WriteError(rec, r, err)
		} else {
			defer panic(http.ErrAbortHandler) // after the log line
		}
	}
	h.log(call, rec, logLine{id: id, route: route, took: h.Clock().Sub(start), err: err})
}

// run finds the route, the caller and calls the handler. A panic becomes a
// CodeInternal whose cause has the stack.
func (h *handler) run(c *Call) (pattern string, err error) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			err = nacre.Wrap(nacre.CodeInternal, fmt.Errorf("panic: %v\n%s", p, debug.Stack()),
				"an internal error occurred; the server's log has the cause")
		}
	}()
	route, err := h.match(c)
	if err != nil {
		return "", err
	}
	// Query() leaves out what it cannot decode, and a list without its filter is a
	// list of everything.
	if _, err := url.ParseQuery(c.R.URL.RawQuery); err != nil {
		return route.Path, nacre.Invalidf("query", "the query string is not valid: %v", err)
	}
	if !route.Public {
		if c.Key, err = h.Auth.Key(c.R.Context(), Credential(c.R)); err != nil {
			return route.Path, err
		}
		c.Team = c.Key.TeamID
	}
	return route.Path, route.Handle(c)
}

// match returns the route of a request and sets its path values.
func (h *handler) match(c *Call) (Route, error) {
	r := c.R
	segments := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
	for i, s := range segments {
		decoded, err := url.PathUnescape(s)
		if err != nil {
			return Route{}, nacre.Errorf(nacre.CodeInvalid, "the path is not valid percent-encoding")
		}
		segments[i] = decoded
	}
	var allow []string
	for i, pattern := range h.patterns {
		if !matches(pattern, segments) {
			continue
		}
		route := h.Routes[i]
		if route.Method != r.Method && !(r.Method == http.MethodHead && route.Method == http.MethodGet) {
			allow = append(allow, route.Method)
			continue
		}
		for j, p := range pattern {
			if name, ok := rest(p); ok {
				r.SetPathValue(name, strings.Join(segments[j:], "/"))
			} else if name, ok := param(p); ok {
				r.SetPathValue(name, segments[j])
			}
		}
		return route, nil
	}
	if len(allow) > 0 {
		methods := strings.Join(allow, ", ")
		c.W.Header().Set("Allow", methods)
		return Route{}, nacre.Wrap(nacre.CodeInvalid, ErrMethod, "this path answers to "+methods+" only")
	}
	return Route{}, nacre.Errorf(nacre.CodeNotFound, "there is no such path; see the list of operations in the documentation")
}

func matches(pattern, segments []string) bool {
	if n := len(pattern); n > 0 && len(segments) >= n {
		if _, ok := rest(pattern[n-1]); ok {
			pattern, segments = pattern[:n-1], segments[:n-1]
		}
	}
	if len(pattern) != len(segments) {
		return false
	}
	for i, p := range pattern {
		if _, ok := param(p); ok && segments[i] != "" {
			continue
		}
		if p != segments[i] {
			return false
		}
	}
	return true
}

// param returns the name in "{name}".
func param(segment string) (string, bool) {
	if len(segment) < 3 || segment[0] != '{' || segment[len(segment)-1] != '}' {
		return "", false
	}
	return segment[1 : len(segment)-1], true
}

// rest returns the name in "{name...}".
func rest(segment string) (string, bool) {
	name, ok := param(segment)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(name, "...")
}

// requestID keeps a caller's id if it is harmless in a log, else makes one.
func requestID(given string) string {
	ok := given != "" && len(given) <= 64
	for i := 0; ok && i < len(given); i++ {
		c := given[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
	}
	if ok {
		return given
	}
	var b [8]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
