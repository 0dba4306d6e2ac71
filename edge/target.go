package edge

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/nacrehq/nacre"
)

const headerAccessToken = "X-Access-Token"

// headersRouting are the clients' ways to name a sandbox without a host name.
var headersRouting = [...]struct{ id, port string }{
	{"Moru-Sandbox-Id", "Moru-Sandbox-Port"},
	{"E2b-Sandbox-Id", "E2b-Sandbox-Port"},
}

var headersTraffic = [...]string{"Moru-Traffic-Access-Token", "E2b-Traffic-Access-Token"}

// target is what a request is for. The id is as the client wrote it; a sandbox
// of that id need not exist.
type target struct {
	id      string
	port    int
	refusal string // why the request is answered with 401, or ""

	// Of a preview: its host, which slug that is under the domain, and, once it was
	// found, whose it is and who may embed it. permitted is for what a preview opens.
	host, slug string
	team       nacre.TeamID
	ancestors  []string
	permitted  bool
}

// resolve finds what names a sandbox: the host name, then the routing headers,
// then the access token, then a URL's signature. The latter three name one on
// the API's host too, so there only the agent's own paths count: the clients
// send the headers on some API calls.
func (e *Edge) resolve(r *http.Request) (target, bool) {
	host := canonicalHost(r.Host)
	if t, ok := e.fromHost(host); ok {
		return t, true
	}
	if t, ok := e.fromPreview(r.Context(), host); ok {
		return t, true
	}
	t, ok := fromHeaders(r.Header)
	if e.domain != "" && host == "sandbox."+e.domain {
		if !ok {
			t = target{port: nacre.AgentPort, refusal: "the headers E2b-Sandbox-Id and E2b-Sandbox-Port must name a sandbox"}
		}
		return t, true
	}
	if ok && t.port != nacre.AgentPort {
		return t, true
	}
	if !agentPath(r.URL) {
		return target{}, false
	}
	if ok {
		return t, true
	}
	if token := r.Header.Get(headerAccessToken); token != "" {
		return e.fromToken(token), true
	}
	if q := r.URL.Query(); r.URL.Path == "/files" && q.Get("signature") != "" {
		return e.fromSignature(r.Method, q), true
	}
	return target{}, false
}

// fromHost reads "<port>-<id>.…". Under our own domain any id is ours to answer;
// under another name, which an operator's proxy may use, only one that can exist.
func (e *Edge) fromHost(host string) (target, bool) {
	label, rest, _ := strings.Cut(host, ".")
	portText, id, ok := strings.Cut(label, "-")
	port, portOK := parsePort(portText)
	if !ok || !portOK || !nacre.SandboxID(id).Valid() && (e.domain == "" || rest != e.domain) {
		return target{}, false
	}
	return target{id: id, port: port}, true
}

func fromHeaders(h http.Header) (target, bool) {
	for _, names := range headersRouting {
		id := h.Get(names.id)
		if id == "" {
			continue
		}
		portText := h.Get(names.port)
		if portText == "" {
			portText = strconv.Itoa(nacre.AgentPort)
		}
		if port, ok := parsePort(portText); ok {
			return target{id: id, port: port}, true
		}
	}
	return target{}, false
}

// fromToken knows the sandbox of every token that this installation issued, also
// when the sandbox is gone.
func (e *Edge) fromToken(token string) target {
	t := target{port: nacre.AgentPort}
	id, _, ok := e.tokens.ParseAccessToken(token)
	if !ok {
		t.refusal = "invalid access token"
	}
	t.id = string(id)
	return t
}

// fromSignature tries a file URL's signature against the tokens of all sandboxes
// that run or would be woken: it is made with the token and names nothing. Its
// expiry is checked where the sandbox is known.
func (e *Edge) fromSignature(method string, q url.Values) target {
	t := target{port: nacre.AgentPort, refusal: "the signature fits no running sandbox"}
	given := signatureOf(method, q)
	try := func(r nacre.Route) bool {
		if !given.by(e.tokens.AccessToken(r.Sandbox, r.TokenEpoch)) {
			return true
		}
		t.id, t.refusal = string(r.Sandbox), ""
		return false
	}
	e.traffic.Routes(try)
	if t.id == "" && e.waker != nil {
		e.waker.Sleepers(try)
	}
	return t
}

// signature is what a file URL carries: the permission for one operation on one
// path, by who knows the token.
type signature struct{ given, prefix, suffix string }

func signatureOf(method string, q url.Values) signature {
	op := "write"
	if method == http.MethodGet || method == http.MethodHead {
		op = "read"
	}
	s := signature{
		given:  strings.ReplaceAll(q.Get("signature"), " ", "+"), // a '+' that was not escaped
		prefix: q.Get("path") + ":" + op + ":" + q.Get("username") + ":",
	}
	if exp := q.Get("signature_expiration"); exp != "" {
		s.suffix = ":" + exp
	}
	return s
}

// by tells in constant time whether it was made with the token.
func (s signature) by(token string) bool {
	sum := sha256.Sum256([]byte(s.prefix + token + s.suffix))
	want := "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
	return subtle.ConstantTimeCompare([]byte(s.given), []byte(want)) == 1
}

// parsePort accepts one spelling of each port.
func parsePort(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 65535 || strconv.Itoa(n) != s {
		return 0, false
	}
	return n, true
}

// canonicalHost drops the port and the root's dot, and lowers the case.
func canonicalHost(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}
