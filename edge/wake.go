package edge

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

// wakeTimeout is how long a request waits for its sandbox to come back. The
// clients give up after a minute.
const wakeTimeout = 55 * time.Second

// wake brings a paused sandbox back for a request that may reach it. It returns
// the route that is there then, or has answered.
func (e *Edge) wake(w http.ResponseWriter, r *http.Request, t target) (nacre.Route, bool) {
	id := nacre.SandboxID(t.id)
	asleep, ok := e.asleep(id)
	if !ok {
		if route, ok := e.traffic.Route(id); ok { // it came back between two looks
			return route, true
		}
		t.notFound(w, r)
		return nacre.Route{}, false
	}
	if t.port == nacre.AgentPort && r.URL.Path == "/health" {
		t.notFound(w, r) // it asks whether the sandbox runs, and wants it to stay so
		return nacre.Route{}, false
	}
	if refused := e.refusal(r, t, asleep); refused != nil {
		writeBody(w, refused.status, refused.body)
		return nacre.Route{}, false
	}
	ctx, cancel := context.WithTimeout(r.Context(), wakeTimeout)
	defer cancel()
	if err := e.waker.Wake(ctx, id); err != nil {
		e.notWoken(w, r, t, err)
		return nacre.Route{}, false
	}
	route, ok := e.traffic.Route(id)
	if !ok { // it ended, or was paused again at once
		t.notFound(w, r)
	}
	return route, ok
}

// asleep is Waker.Asleep of an edge that may have none.
func (e *Edge) asleep(id nacre.SandboxID) (nacre.Route, bool) {
	if e.waker == nil {
		return nacre.Route{}, false
	}
	return e.waker.Asleep(id)
}

// notWoken says why a paused sandbox did not come back: 503 for what may work
// later, 502 for what does not.
func (e *Edge) notWoken(w http.ResponseWriter, r *http.Request, t target, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // nobody waits for an answer
	}
	code := nacre.ErrorCode(err)
	switch {
	case code == nacre.CodeNotFound:
		t.notFound(w, r)
		return
	case errors.Is(err, context.DeadlineExceeded):
		code = nacre.CodeDeadline
	}
	e.log.Warn("a paused sandbox was not resumed for a request", "sandbox", t.id, "error", err)
	body := sandboxError{Message: "The sandbox is paused and could not be resumed: " + nacre.ErrorMessage(err)}
	switch code {
	case nacre.CodeExhausted, nacre.CodeUnavailable, nacre.CodeNoSpace:
		body.Code = http.StatusServiceUnavailable
	case nacre.CodeDeadline:
		body.Code = http.StatusServiceUnavailable
		body.Message = "The sandbox is being resumed and was not ready in time"
	}
	if body.Code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	t.gatewayError(w, r, body)
}

// refused is an answer to who may not.
type refused struct {
	status int
	body   any
}

// agentError is the agent's own form.
type agentError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// refusal checks a request as it would be checked if its sandbox ran: nil means
// that it would be let through. A running agent does its half of it itself.
func (e *Edge) refusal(r *http.Request, t target, route nacre.Route) *refused {
	if t.port != nacre.AgentPort {
		if route.Network.PrivateTraffic && !t.permitted && !e.mayPass(r, route) {
			return privateTraffic(t)
		}
		return nil
	}
	given := r.Header.Get(headerAccessToken)
	if id, epoch, ok := e.tokens.ParseAccessToken(given); ok && id == route.Sandbox {
		if epoch != route.TokenEpoch {
			return staleToken()
		}
		return nil
	}
	if !route.Secure {
		return nil
	}
	if r.URL.Path != "/files" {
		return &refused{http.StatusUnauthorized, struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		}{"unauthenticated", "invalid access token"}}
	}
	if given != "" {
		return unauthorized("invalid access token")
	}
	return e.badSignature(r.Method, r.URL.Query(), route)
}

// badSignature checks a file URL's signature and then whether it has expired.
func (e *Edge) badSignature(method string, q url.Values, route nacre.Route) *refused {
	if q.Get("signature") == "" {
		return unauthorized("missing signature query parameter or X-Access-Token header")
	}
	if !signatureOf(method, q).by(e.tokens.AccessToken(route.Sandbox, route.TokenEpoch)) {
		return unauthorized("invalid signature")
	}
	if text := q.Get("signature_expiration"); text != "" {
		expires, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return unauthorized("invalid signature expiration")
		}
		if expires != 0 && expires < e.clock().Unix() {
			return unauthorized("signature is already expired")
		}
	}
	return nil
}

func unauthorized(message string) *refused {
	return &refused{http.StatusUnauthorized, agentError{http.StatusUnauthorized, message}}
}

func staleToken() *refused { return unauthorized("this access token is no longer good") }

func privateTraffic(t target) *refused {
	return &refused{http.StatusForbidden, sandboxError{SandboxID: t.id, Code: http.StatusForbidden,
		Message: "this sandbox takes no public traffic; send its traffic access token in the header moru-traffic-access-token or e2b-traffic-access-token"}}
}

// touchEvery is how often what flows on one connection counts as a use.
const touchEvery = 2 * time.Second

// touch tells that a sandbox is used.
func (e *Edge) touch(id nacre.SandboxID) {
	if e.activity != nil {
		e.activity.Touch(id)
	}
}

// touchAgent tells of the calls that are a use: those that start, write or type
// something, by who may. What only looks is none.
func (e *Edge) touchAgent(r *http.Request, t target, route nacre.Route) {
	if e.activity != nil && isUse(r) && e.refusal(r, t, route) == nil {
		e.activity.Touch(route.Sandbox)
	}
}

func isUse(r *http.Request) bool {
	if r.Method != http.MethodPost {
		return false
	}
	if r.URL.Path == "/files" {
		return true
	}
	_, method, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch method {
	case "Start", "SendInput", "StreamInput", "CloseStdin", "SendSignal", "MakeDir", "Move", "Remove":
		return true
	}
	return false
}
