package edge

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

func (w *world) token(id nacre.SandboxID, epoch int) string {
	return "X-Access-Token: " + w.tokens.AccessToken(id, epoch)
}

// TestRouting: what names a sandbox, in which order, and what does not.
func TestRouting(t *testing.T) {
	w := newWorld(t)
	const api = "api.nacre.localhost:8443"
	idHeader, portHeader := "Moru-Sandbox-Id: "+string(idA), "Moru-Sandbox-Port: 49983"
	for _, c := range []struct {
		name, method, host, target string
		headers                    []string
		status                     int
		body                       string
	}{
		{"host", "GET", host("8080", idA), "/x?y=1", nil, 200, "serverA GET /x?y=1"},
		{"host, agent", "POST", host("49983", idA), "/process.Process/List", nil, 200, "agentA POST /process.Process/List"},
		{"headers", "GET", api, "/files?path=a", []string{idHeader, portHeader}, 200, "agentA GET /files?path=a"},
		{"headers of E2B", "GET", api, "/health", []string{"E2b-Sandbox-Id: " + string(idB), "E2b-Sandbox-Port: 49983"}, 200, "agentB GET /health"},
		{"headers, no port", "GET", api, "/health", []string{idHeader}, 200, "agentA GET /health"},
		{"headers, a server's port", "GET", api, "/any/path", []string{idHeader, "Moru-Sandbox-Port: 8080"}, 200, "serverA GET /any/path"},
		{"the host wins over headers", "GET", host("8080", idA), "/", []string{"Moru-Sandbox-Id: " + string(idB), portHeader}, 200, "serverA GET /"},
		{"headers win over the token", "GET", api, "/health", []string{idHeader, portHeader, w.token(idB, 0)}, 200, "agentA GET /health"},
		{"token", "GET", api, "/health", []string{w.token(idB, 0)}, 200, "agentB GET /health"},
		{"token of nobody", "GET", api, "/health", []string{"X-Access-Token: nobody"}, 401, ""},
		{"sandbox.<domain>", "GET", "sandbox." + domain, "/health", []string{"E2b-Sandbox-Id: " + string(idA), "E2b-Sandbox-Port: 49983"}, 200, "agentA GET /health"},
		{"sandbox.<domain>, no headers", "GET", "sandbox." + domain, "/", nil, 404, ""},
		{"sandbox.<domain>, no headers, agent path", "GET", "sandbox." + domain, "/health", nil, 401, ""},

		{"the API's own", "GET", api, "/health", nil, 418, ""},
		{"the clients send the headers on API calls", "POST", api, "/sandboxes/" + string(idA) + "/connect", []string{idHeader, portHeader}, 418, ""},
		{"and perhaps the token", "POST", api, "/v2/sandboxes", []string{w.token(idB, 0)}, 418, ""},
		{"files without a signature", "GET", api, "/files?path=x", nil, 418, ""},
		{"X-Forwarded-Host names nothing", "GET", api, "/", []string{"X-Forwarded-Host: " + host("8080", idA)}, 418, ""},
	} {
		a := w.do(c.method, c.host, c.target, c.headers...)
		if a.status != c.status || c.body != "" && a.body != c.body {
			t.Errorf("%s: %d %q, want %d %q", c.name, a.status, a.body, c.status, c.body)
		}
	}
}

// TestFault34_HostTricks: every spelling of a name is the same sandbox, and no
// trick makes it another.
func TestFault34_HostTricks(t *testing.T) {
	w := newWorld(t)
	a := string(idA)
	for _, c := range []struct {
		host   string
		status int
	}{
		{"8080-" + a + ".nacre.localhost", 200},
		{"8080-" + a + ".nacre.localhost:8443", 200},
		{"8080-" + a + ".nacre.localhost.", 200},
		{"8080-" + a + ".nacre.localhost.:443", 200},
		{"8080-" + strings.ToUpper(a) + ".NACRE.LocalHost", 200},
		{"8080-" + a + ".another.example", 200}, // an operator's own proxy
		{"8080-" + a + ".xn--nicode-2ya.example", 200},
		{"8080-" + a + "x.nacre.localhost", 502},
		{"8080-" + a + "-" + string(idB) + ".nacre.localhost", 502},
		{"8080-" + string(idGone) + ".nacre.localhost", 502},
		{"8080-x.another.example", 418},
		{"08080-" + a + ".nacre.localhost", 418},
		{"+8080-" + a + ".nacre.localhost", 418},
		{"0-" + a + ".nacre.localhost", 418},
		{"65536-" + a + ".nacre.localhost", 418},
		{"8080_" + a + ".nacre.localhost", 418},
		{"x.8080-" + a + ".nacre.localhost", 418},
		{a + ".nacre.localhost", 418},
		{"nacre.localhost", 418},
		{"127.0.0.1", 418},
	} {
		if got := w.do("GET", c.host, "/"); got.status != c.status {
			t.Errorf("%s: %d %s, want %d", c.host, got.status, got.body, c.status)
		}
	}
	// Wider digits are no digits; Go's own client would not send this.
	r := httptest.NewRequest("GET", "/", nil)
	r.Host = "８０８０-" + a + ".nacre.localhost"
	if w.edge.Match(r) {
		t.Error("fullwidth digits name a port")
	}
	// An absolute URI counts, the Host beside it does not; two lengths are refused.
	out := w.raw("GET http://" + host("8080", idA) + "/abs HTTP/1.1\r\nHost: api.nacre.localhost\r\nConnection: close\r\n\r\n")
	if !strings.Contains(out, "serverA GET /abs") {
		t.Errorf("absolute URI: %s", out)
	}
	_, before := w.last()
	for _, smuggle := range []string{
		"POST / HTTP/1.1\r\nHost: " + host("8080", idA) + "\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
		"POST / HTTP/1.1\r\nHost: " + host("8080", idA) + "\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nHost: " + host("8080", idA) + "\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: " + host("8080", idA) + "\r\nX : y\r\n\r\n",
		"CONNECT " + host("8080", idA) + ":80 HTTP/1.1\r\nHost: " + host("8080", idA) + "\r\nConnection: close\r\n\r\n",
	} {
		if out := w.raw(smuggle); !strings.HasPrefix(out, "HTTP/1.1 4") && !strings.HasPrefix(out, "HTTP/1.1 501") {
			t.Errorf("%q: %s", smuggle, out)
		}
	}
	// Both a length and chunks: the chunks count, and the length is gone.
	out = w.raw("POST /clte HTTP/1.1\r\nHost: " + host("8080", idA) +
		"\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
	last, after := w.last()
	if strings.Contains(out, "smuggled") || last.RequestURI == "/smuggled" || after > before+1 {
		t.Errorf("smuggled: %s, the guest saw %s", out, last.RequestURI)
	}
}

// TestFault34_ForwardedHeaders: a guest learns who asked from the edge alone,
// and nothing that opens the API or the edge.
func TestFault34_ForwardedHeaders(t *testing.T) {
	w := newWorld(t)
	key, _ := nacre.NewKey("team_x", "x", time.Now())
	a := w.do("GET", host("8080", idA), "/?a=1;b=2&c", "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Host: evil", "X-Forwarded-Proto: gopher",
		"Forwarded: for=6.6.6.6", "X-Real-Ip: 6.6.6.6", "X-Host-Token: t", "X-Api-Key: "+key, "Authorization: Bearer "+key,
		w.token(idA, 1), "Moru-Traffic-Access-Token: t", "Moru-Sandbox-Id: x", "Connection: X-Hop", "X-Hop: 1", "Cookie: own=1", "X-Own: kept")
	if a.status != 200 || !strings.HasSuffix(a.body, "/?a=1;b=2&c") {
		t.Fatal(a)
	}
	r, _ := w.last()
	for name, want := range map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": host("8080", idA), "X-Forwarded-Proto": "http",
		"Forwarded": "", "X-Real-Ip": "", "X-Host-Token": "", "X-Api-Key": "", "Authorization": "", "X-Access-Token": "",
		"Moru-Traffic-Access-Token": "", "Moru-Sandbox-Id": "", "X-Hop": "", "Cookie": "own=1", "X-Own": "kept",
	} {
		if got := strings.Join(r.Header.Values(name), "|"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if r.Host != host("8080", idA) {
		t.Errorf("Host: %s", r.Host)
	}
	// A guest's own keys are its own business.
	w.do("GET", host("8080", idA), "/", "X-Api-Key: mine", "Authorization: Bearer mine")
	if r, _ := w.last(); r.Header.Get("X-Api-Key") != "mine" || r.Header.Get("Authorization") != "Bearer mine" {
		t.Errorf("the guest's own key was taken: %v", r.Header)
	}
	// The agent gets the token and the user, which are for it.
	w.do("POST", host("49983", idA), "/process.Process/List", w.token(idA, 1), "Authorization: Basic dXNlcjo=", "X-Api-Key: "+key, "Connect-Timeout-Ms: 500.0", "Upgrade: h2c", "Connection: Upgrade")
	r, _ = w.last()
	if r.Header.Get("X-Access-Token") == "" || r.Header.Get("Authorization") != "Basic dXNlcjo=" || r.Header.Get("X-Api-Key") != "" ||
		r.Header.Get("Connect-Timeout-Ms") != "500.0" || r.Header.Get("Upgrade") != "" {
		t.Errorf("the agent saw %v", r.Header)
	}
}

// TestFault34_CookieScope: a sandbox cannot set a cookie for its siblings.
func TestFault34_CookieScope(t *testing.T) {
	w := newWorld(t)
	w.guest(idA, 3000, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Add("Set-Cookie", "a=1; Path=/; Domain=nacre.localhost; HttpOnly")
		rw.Header().Add("Set-Cookie", "b=2;DOMAIN = .nacre.localhost;Secure")
		rw.Header().Add("Set-Cookie", "c=domain=x")
	}))
	got := w.do("GET", host("3000", idA), "/").header.Values("Set-Cookie")
	want := []string{"a=1; Path=/; HttpOnly", "b=2;Secure", "c=domain=x"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestWire3_2_Answers: the bodies that the clients and their suites look for.
func TestWire3_2_Answers(t *testing.T) {
	w := newWorld(t)
	w.setRoute(idB, func(r *nacre.Route) { r.Network.PrivateTraffic = true })
	gone := `{"sandboxId":"` + string(idGone) + `","message":"The sandbox was not found","code":502}` + "\n"
	for _, c := range []struct {
		host, header string
		status       int
		body         string
	}{
		{host("8080", idGone), "", 502, gone},
		{host("49983", idGone), "", 502, gone},
		{"api", "Moru-Sandbox-Id: " + string(idGone), 502, gone},
		{"api", w.token(idGone, 0), 502, gone}, // the tombstone: known, and not running
		{host("8081", idA), "", 502, `{"sandboxId":"` + string(idA) + `","message":"The sandbox is running but port is not open","port":8081,"code":502}` + "\n"},
		{host("8080", idGone), "Accept: text/html", 502, ""},
	} {
		a := w.do("GET", c.host, "/health", c.header)
		if a.status != c.status || c.body != "" && a.body != c.body {
			t.Errorf("%s %s: %d %s", c.host, c.header, a.status, a.body)
		}
		if html := strings.HasPrefix(a.header.Get("Content-Type"), "text/html"); html != strings.Contains(c.header, "html") {
			t.Errorf("%s %s: %s", c.host, c.header, a.header.Get("Content-Type"))
		}
	}
	page := w.do("GET", "8080-<script>.nacre.localhost", "/", "Accept: text/html,*/*")
	if page.status == 502 && strings.Contains(page.body, "<script>") {
		t.Errorf("the page runs what the address says: %s", page.body)
	}
}

// TestPrivateTraffic: previews demand their token, the agent its own.
func TestPrivateTraffic(t *testing.T) {
	w := newWorld(t)
	w.setRoute(idA, func(r *nacre.Route) { r.Network.PrivateTraffic = true })
	good := w.tokens.TrafficToken(idA, 1)
	for _, c := range []struct {
		header string
		status int
	}{
		{"", 403},
		{"moru-traffic-access-token: " + good, 200},
		{"e2b-traffic-access-token: " + good, 200},
		{"moru-traffic-access-token: " + good + "x", 403},
		{"moru-traffic-access-token: " + w.tokens.TrafficToken(idA, 0), 403},
		{"moru-traffic-access-token: " + w.tokens.TrafficToken(idB, 1), 403},
		{"moru-traffic-access-token: " + w.tokens.AccessToken(idA, 1), 403},
	} {
		a := w.do("GET", host("8080", idA), "/", c.header)
		if a.status != c.status {
			t.Errorf("%s: %d %s", c.header, a.status, a.body)
		}
		if a.status == 403 && !strings.Contains(a.body, `"code":403`) {
			t.Errorf("%s", a.body)
		}
	}
	if a := w.do("GET", host("8080", idA), "/", "Connection: Upgrade", "Upgrade: websocket"); a.status != 403 {
		t.Errorf("an upgrade went around the check: %d", a.status)
	}
	if a := w.do("GET", host("49983", idA), "/health"); a.status != 200 {
		t.Errorf("the agent: %d", a.status)
	}
}

// TestMaskRequestHost: the guest sees the mask, the agent never does.
func TestMaskRequestHost(t *testing.T) {
	w := newWorld(t)
	w.setRoute(idA, func(r *nacre.Route) { r.Network.MaskRequestHost = "custom-host.example.com:${PORT}" })
	w.do("GET", host("8080", idA), "/")
	if r, _ := w.last(); r.Host != "custom-host.example.com:8080" {
		t.Errorf("Host: %s", r.Host)
	}
	w.do("GET", host("49983", idA), "/health")
	if r, _ := w.last(); r.Host != host("49983", idA) {
		t.Errorf("the agent's Host: %s", r.Host)
	}
}

// TestFault35_TheHostsOwnRoutes: of the agent only its public routes are there,
// however the others are spelled and with whatever method.
func TestFault35_TheHostsOwnRoutes(t *testing.T) {
	w := newWorld(t)
	paths := []string{
		"/init", "/metrics", "/envs", "/logs", "/tunnel", "/upgrade", "/freeze", "/", "/debug/pprof/",
		"//init", "/./init", "/x/../init", "/%69nit", "/init/", "/init%00", "/init;x", "/INIT", "/health/../init", "/files/../init",
		"/health/", "//health", "/%66iles", "/files/x", "/process.Process/", "/process.Process/../init", "/process.Process/%2e%2e/init",
		"/process.Process/List/../../init", "/filesystem.Filesystem//init", "/process.Process/Li%73t", "/process.process/List", "/init?x=/health",
	}
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FOO"} {
		for _, p := range paths {
			for _, header := range []string{"", "Access-Control-Request-Method: POST", "X-Host-Token: guess"} {
				out := w.raw(method + " " + p + " HTTP/1.1\r\nHost: " + host("49983", idA) + "\r\n" + join(header) + "Connection: close\r\n\r\n")
				if !strings.HasPrefix(out, "HTTP/1.1 404 ") {
					t.Errorf("%s %s (%s): %.60s", method, p, header, out)
				}
			}
		}
	}
	for _, request := range []string{
		"GET http://" + host("49983", idA) + "//init HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"POST /init HTTP/1.1\r\nHost: sandbox." + domain + "\r\nE2b-Sandbox-Id: " + string(idA) + "\r\nE2b-Sandbox-Port: 49983\r\nConnection: close\r\n\r\n",
		"GET /tunnel HTTP/1.1\r\nHost: " + host("49983", idA) + "\r\nConnection: Upgrade, close\r\nUpgrade: tcp\r\n\r\n",
	} {
		if out := w.raw(request); !strings.HasPrefix(out, "HTTP/1.1 404 ") {
			t.Errorf("%q: %.60s", request, out)
		}
	}
	// On the API's host those are not even the edge's.
	for _, header := range []string{w.token(idA, 1), "Moru-Sandbox-Id: " + string(idA)} {
		if a := w.do("POST", "api", "/init", header); a.status != 418 {
			t.Errorf("%s: %d", header, a.status)
		}
	}
	if r, n := w.last(); n != 0 {
		t.Errorf("the agent saw %d requests, the last %s", n, r.RequestURI)
	}
	// Another port may have an /init of its own.
	if a := w.do("POST", host("8080", idA), "/init"); a.body != "serverA POST /init" {
		t.Error(a)
	}
}

func join(header string) string {
	if header == "" {
		return ""
	}
	return header + "\r\n"
}

// sign makes a file URL's signature as the clients do.
func sign(path, op, user, token, exp string) string {
	text := path + ":" + op + ":" + user + ":" + token
	if exp != "" {
		text += ":" + exp
	}
	sum := sha256.Sum256([]byte(text))
	return "v1_" + strings.TrimRight(base64.StdEncoding.EncodeToString(sum[:]), "=")
}

// TestSignatureVector is the wire notes' own.
func TestSignatureVector(t *testing.T) {
	if got := sign("hello.txt", "read", "user", "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0", ""); got != "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E" {
		t.Error(got)
	}
}

// TestTrap02_SignedURLs: on the API's host a file URL has nothing but its
// signature to name its sandbox.
func TestTrap02_SignedURLs(t *testing.T) {
	w := newWorld(t)
	tokenA, tokenB := w.tokens.AccessToken(idA, 1), w.tokens.AccessToken(idB, 0)
	q := func(pairs ...string) string {
		v := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			v.Set(pairs[i], pairs[i+1])
		}
		return "/files?" + v.Encode()
	}
	for _, c := range []struct {
		method, target string
		status         int
		agent          string
	}{
		{"GET", q("path", "a b", "username", "user", "signature", sign("a b", "read", "user", tokenA, "")), 200, "agentA"},
		{"HEAD", q("path", "a", "signature", sign("a", "read", "", tokenB, "")), 200, ""},
		{"POST", q("path", "a", "signature", sign("a", "write", "", tokenB, "99"), "signature_expiration", "99"), 200, "agentB"},
		{"POST", q("path", "a", "signature", sign("a", "read", "", tokenB, "")), 401, ""},
		{"GET", q("path", "b", "signature", sign("a", "read", "", tokenB, "")), 401, ""},
		{"GET", q("path", "a", "signature", sign("a", "read", "", tokenB, "99"), "signature_expiration", "100"), 401, ""},
		{"GET", q("path", "a", "signature", sign("a", "read", "", w.tokens.AccessToken(idA, 0), "")), 401, ""},
		{"GET", q("path", "a", "signature", "v1_"), 401, ""},
	} {
		a := w.do(c.method, "api", c.target)
		if a.status != c.status || !strings.HasPrefix(a.body, c.agent) {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.target, a.status, a.body, c.status, c.agent)
		}
	}
	raw := "/files?path=a&signature=" + sign("a", "read", "", tokenB, "") // '+' and '/' as they stand
	if a := w.do("GET", "api", raw); a.status != 200 {
		t.Errorf("an unescaped signature: %d", a.status)
	}
}

// TestFault37_RotatedToken: the token of before a rotation opens nothing, though
// the agent may know it still, and a dead sandbox's is told from a wrong one.
func TestFault37_RotatedToken(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		host, token string
		status      int
	}{
		{"api", w.token(idA, 1), 200},
		{"api", w.token(idA, 0), 401},
		{"api", w.token(idA, 2), 401},
		{host("49983", idA), w.token(idA, 0), 401},
		{"api", w.token(idA, 1) + "x", 401},
		{"api", strings.Replace(w.token(idA, 1), string(idA), string(idB), 1), 401},
		{"api", "X-Access-Token: " + w.tokens.TrafficToken(idA, 1), 401},
		{"api", w.token(idGone, 0), 502},
	} {
		if a := w.do("GET", c.host, "/health", c.token); a.status != c.status {
			t.Errorf("%s %s: %d, want %d", c.host, c.token, a.status, c.status)
		}
	}
	w.end(idA)
	if a := w.do("GET", "api", "/health", w.token(idA, 1)); a.status != 502 {
		t.Errorf("after the end: %d", a.status)
	}
}

// TestCORS: pages of any origin may use the agent; a server's answers are its own.
func TestCORS(t *testing.T) {
	w := newWorld(t)
	for _, id := range []nacre.SandboxID{idA, idGone} {
		a := w.do("OPTIONS", host("49983", id), "/process.Process/Start", "Origin: https://app.example",
			"Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-access-token,connect-timeout-ms")
		if a.status != 204 || a.header.Get("Access-Control-Allow-Origin") != "*" || a.header.Get("Access-Control-Allow-Headers") == "" {
			t.Errorf("preflight of %s: %d %v", id, a.status, a.header)
		}
		if a := w.do("GET", host("49983", id), "/health", "Origin: https://app.example"); len(a.header.Values("Access-Control-Allow-Origin")) != 1 {
			t.Errorf("%s: %v", id, a.header)
		}
	}
	a := w.do("OPTIONS", host("8080", idA), "/", "Access-Control-Request-Method: POST")
	if a.body != "serverA OPTIONS /" || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("a server's own preflight: %v", a)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("8080-iaaaaaaaaaaaaaaaaaaaa.nacre.localhost", "/files?signature=v1_x", "iaaaaaaaaaaaaaaaaaaaa", "49983", "tok")
	e := New(Config{Traffic: &fakeTraffic{}, Domain: domain})
	f.Fuzz(func(t *testing.T, host, target, id, port, token string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r := &http.Request{Method: "GET", Host: host, URL: u, Header: http.Header{}}
		r.Header.Set("Moru-Sandbox-Id", id)
		r.Header.Set("Moru-Sandbox-Port", port)
		r.Header.Set("X-Access-Token", token)
		got, ok := e.resolve(r)
		if ok && got.refusal == "" && (got.port < 1 || got.port > 65535 || got.id == "") && !strings.HasPrefix(canonicalHost(host), strings.Split(host, "-")[0]) {
			t.Fatalf("%q %q: %+v", host, target, got)
		}
		if agentPath(u) && (strings.Contains(u.Path, "init") && !strings.HasPrefix(u.Path, "/process.") && !strings.HasPrefix(u.Path, "/filesystem.") || strings.Contains(u.Path, "..") || strings.Contains(u.EscapedPath(), "%")) {
			t.Fatalf("%q is let through", target)
		}
	})
}
