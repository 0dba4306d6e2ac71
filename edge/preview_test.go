package edge

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// fakePreviews is a store of previews.
type fakePreviews struct {
	mu      sync.Mutex
	slugs   map[string]nacre.PreviewRoute
	domains map[string]nacre.PreviewRoute
	fail    error
	asked   int
}

func (f *fakePreviews) find(m map[string]nacre.PreviewRoute, key string) (nacre.PreviewRoute, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.fail != nil {
		return nacre.PreviewRoute{}, f.fail
	}
	r, ok := m[key]
	if !ok {
		return r, nacre.Errorf(nacre.CodeNotFound, "none")
	}
	return r, nil
}

func (f *fakePreviews) PreviewBySlug(ctx context.Context, slug string) (nacre.PreviewRoute, error) {
	if err := ctx.Err(); err != nil {
		return nacre.PreviewRoute{}, err
	}
	return f.find(f.slugs, slug)
}

func (f *fakePreviews) PreviewByDomain(_ context.Context, host string) (nacre.PreviewRoute, error) {
	return f.find(f.domains, host)
}

func (f *fakePreviews) set(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

// TestLookupOfWhoIsGone: a client that has closed its half of the connection, which
// looks like one that is gone, is told what there is and not that nobody knows.
func TestLookupOfWhoIsGone(t *testing.T) {
	p := newPreviews(&fakePreviews{}, time.Now)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.find(ctx, "none", "none.example"); !nacre.IsCode(err, nacre.CodeNotFound) {
		t.Errorf("the look-up ended with %v", err)
	}
}

// previewWorld is a world whose sandbox A has a public preview "open" and a private
// one "shut" of port 8080, which secret opens for an hour.
type previewWorld struct {
	*world
	previews *fakePreviews
	secret   string

	clockMu sync.Mutex
	now     time.Time
}

func (w *previewWorld) clock() time.Time {
	w.clockMu.Lock()
	defer w.clockMu.Unlock()
	return w.now
}

func (w *previewWorld) advance(d time.Duration) {
	w.clockMu.Lock()
	defer w.clockMu.Unlock()
	w.now = w.now.Add(d)
}

func newPreviewWorld(t *testing.T) *previewWorld {
	w := &previewWorld{world: newWorld(t), secret: nacre.NewPreviewToken(), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	preview := nacre.Preview{ID: "pv_1", Sandbox: idA, Port: 8080}
	private := preview
	private.Private = true
	shut := nacre.PreviewRoute{Preview: private, Tokens: []nacre.PreviewToken{
		{Hash: nacre.HashPreviewToken("pvt_old"), ExpiresAt: w.now.Add(-time.Second)},
		{Hash: nacre.HashPreviewToken(w.secret), ExpiresAt: w.now.Add(time.Hour)},
	}}
	w.previews = &fakePreviews{
		slugs:   map[string]nacre.PreviewRoute{"open": {Preview: preview}, "shut": shut},
		domains: map[string]nacre.PreviewRoute{"shop.example.com": {Preview: preview}},
	}
	w.edge = New(Config{Traffic: w.traffic, TokenKey: w.tokens, Domain: domain + ":8443", Waker: w.waker, Activity: w.waker, Previews: w.previews, Clock: w.clock})
	return w
}

// get asks for a path of a host and follows no redirect.
func (w *previewWorld) get(host, path string, header ...string) (*http.Response, string) {
	w.t.Helper()
	r, err := http.NewRequest("GET", w.url+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Host = host
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp, string(body)
}

func (w *previewWorld) want(status int, text, host, path string, header ...string) *http.Response {
	w.t.Helper()
	resp, body := w.get(host, path, header...)
	if resp.StatusCode != status || !strings.Contains(body, text) {
		w.t.Errorf("%s%s: %d %q, want %d %q", host, path, resp.StatusCode, body, status, text)
	}
	return resp
}

// TestPreviewHosts: which hosts are previews, which are the API's, and which are
// answered that there is none.
func TestPreviewHosts(t *testing.T) {
	w := newPreviewWorld(t)
	for _, c := range []struct {
		host   string
		status int
		body   string
	}{
		{"open." + domain, 200, "serverA GET /p?q=1"},
		{"OPEN." + domain + ":8443", 200, "serverA GET /p?q=1"},
		{"shop.example.com", 200, "serverA GET /p?q=1"},
		{"none." + domain, 404, messageNoPre},
		{"shut." + domain, 401, "private"},
		{"other.example.com", 418, ""},
		{"api." + domain, 418, ""},
		{"sandboxes." + domain, 418, ""},
		{domain, 418, ""},
		{"a.open." + domain, 418, ""},
		{"127.0.0.1", 418, ""},
		{"[::1]", 418, ""},
		{"localhost:3000", 418, ""},
	} {
		w.want(c.status, c.body, c.host, "/p?q=1")
	}
	w.waker.mu.Lock()
	defer w.waker.mu.Unlock()
	if w.waker.touched[idA] == 0 {
		t.Error("preview traffic does not count as a use")
	}
}

// TestPrivatePreview: each way to show a token opens it, none of them reaches the
// guest, and a wrong, expired, revoked or missing one is refused.
func TestPrivatePreview(t *testing.T) {
	w := newPreviewWorld(t)
	host := "shut." + domain
	for _, bad := range []string{"", "x", "pvt_old", w.secret + "x"} {
		w.want(401, "private", host, "/?preview_token="+bad)
		w.want(401, "private", host, "/", "X-Miosa-Preview-Token", bad)
		w.want(401, "private", host, "/", "Cookie", "nacre_preview="+bad)
	}
	w.want(200, "serverA GET /a?b=1&c=%2F", host, "/a?b=1&preview_token="+w.secret+"&c=%2F")
	w.want(200, "serverA GET /a", host, "/a?token="+w.secret)
	w.want(200, "serverA GET /a", host, "/a", "X-Miosa-Preview-Token", w.secret)
	w.want(200, "serverA GET /a?token=mine", host, "/a?token=mine", "Cookie", "a=1; nacre_preview="+w.secret+"; b=2")
	last := w.seen[len(w.seen)-1]
	if got := last.Header.Get("Cookie"); got != "a=1; b=2" {
		t.Errorf("the guest's cookies are %q", got)
	}
	for _, r := range w.seen {
		for name, values := range r.Header {
			if strings.Contains(strings.Join(values, " ")+r.RequestURI, w.secret) {
				t.Errorf("the guest sees the token in %s", name)
			}
		}
	}
	fresh := nacre.NewPreviewToken()
	w.previews.set(func() {
		r := w.previews.slugs["shut"]
		r.Tokens = append(slices.Clone(r.Tokens), nacre.PreviewToken{Hash: nacre.HashPreviewToken(fresh), ExpiresAt: w.now.Add(time.Hour)})
		w.previews.slugs["shut"] = r
	})
	w.want(200, "serverA", host, "/a?token="+fresh) // at once
	w.previews.set(func() {
		r := w.previews.slugs["shut"]
		r.Tokens = nil
		w.previews.slugs["shut"] = r
	})
	w.advance(previewTTL)
	w.want(401, "private", host, "/", "X-Miosa-Preview-Token", w.secret)
}

func TestPreviewTokenExpires(t *testing.T) {
	w := newPreviewWorld(t)
	w.advance(time.Hour)
	w.want(401, "private", "shut."+domain, "/?preview_token="+w.secret)
}

// TestPreviewInABrowser: a share link becomes a cookie and an address without the
// token; on HTTPS the cookie works inside of another site's page.
func TestPreviewInABrowser(t *testing.T) {
	w := newPreviewWorld(t)
	host, page := "shut."+domain, "text/html,*/*"
	resp := w.want(303, "", host, "/a/b?x=1&preview_token="+w.secret, "Accept", page)
	if loc := resp.Header.Get("Location"); loc != "/a/b?x=1" {
		t.Errorf("sent to %q", loc)
	}
	c := resp.Cookies()[0]
	if c.Value != w.secret || !c.HttpOnly || c.Domain != "" || !c.Expires.Equal(w.now.Add(time.Hour)) {
		t.Errorf("cookie %+v", c)
	}
	w.want(200, "serverA GET /a/b?x=1", host, "/a/b?x=1", "Accept", page, "Cookie", c.Name+"="+c.Value)
	resp = w.want(401, "<h1>This preview is private</h1>", host, "/", "Accept", page)
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/html") {
		t.Errorf("a page of type %q", ct)
	}
	resp = w.want(303, "", host, "//evil.example/?preview_token="+w.secret, "Accept", page)
	if loc := resp.Header.Get("Location"); loc != "/evil.example/" {
		t.Errorf("a path that looks like a host is sent to %q", loc)
	}
	r := httptest.NewRequest("GET", "https://"+host+"/?preview_token="+w.secret, nil)
	r.TLS = &tls.ConnectionState{}
	r.Header.Set("Accept", page)
	rec := httptest.NewRecorder()
	w.edge.ServeHTTP(rec, r)
	if c := rec.Result().Cookies()[0]; !c.Secure || c.SameSite != http.SameSiteNoneMode || !c.Partitioned {
		t.Errorf("cookie over HTTPS: %+v", c)
	}
}

// TestPreviewEmbedding: the preview's word on who may embed it replaces the guest's.
func TestPreviewEmbedding(t *testing.T) {
	w := newPreviewWorld(t)
	w.guest(idA, 8080, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("X-Frame-Options", "DENY")
		rw.Header().Add("Content-Security-Policy", "default-src 'self'; Frame-Ancestors 'none'; img-src *")
		rw.Header().Add("Content-Security-Policy", "frame-ancestors 'self'")
	}))
	resp := w.want(200, "", "open."+domain, "/")
	if resp.Header.Get("X-Frame-Options") != "DENY" || len(resp.Header["Content-Security-Policy"]) != 2 {
		t.Errorf("without a word: %v", resp.Header)
	}
	w.previews.set(func() {
		r := w.previews.slugs["open"]
		r.Preview.Ancestors = []string{"https://a.example", "https://b.example"}
		w.previews.slugs["open"] = r
	})
	w.advance(previewTTL)
	resp = w.want(200, "", "open."+domain, "/")
	got := strings.Join(resp.Header["Content-Security-Policy"], " | ")
	if got != "default-src 'self'; img-src * | frame-ancestors https://a.example https://b.example" || resp.Header.Get("X-Frame-Options") != "" {
		t.Errorf("policies %q, X-Frame-Options %q", got, resp.Header.Get("X-Frame-Options"))
	}
}

// TestPreviewOpensNoMore: a preview opens its port of its team's sandbox, also of one
// that takes no public traffic, never the agent, and only while it runs.
func TestPreviewOpensNoMore(t *testing.T) {
	w := newPreviewWorld(t)
	w.traffic.mu.Lock()
	r := w.traffic.routes[idA]
	r.Network.PrivateTraffic = true
	w.traffic.routes[idA] = r
	w.traffic.mu.Unlock()
	w.want(200, "serverA", "open."+domain, "/")
	w.want(403, "traffic", "8080-"+string(idA)+"."+domain, "/")
	w.previews.set(func() {
		w.previews.slugs["agent"] = nacre.PreviewRoute{Preview: nacre.Preview{Sandbox: idA, Port: nacre.AgentPort}}
		w.previews.slugs["theirs"] = nacre.PreviewRoute{Preview: nacre.Preview{Sandbox: idA, Port: 8080, TeamID: "team_other"}}
		w.previews.slugs["ended"] = nacre.PreviewRoute{Preview: nacre.Preview{Sandbox: idGone, Port: 8080}}
		w.previews.slugs["silent"] = nacre.PreviewRoute{Preview: nacre.Preview{Sandbox: idA, Port: 9999}}
	})
	w.want(404, messageNoPre, "agent."+domain, "/health")
	w.want(502, messageNotFound, "theirs."+domain, "/")
	w.want(502, messageNotFound, "ended."+domain, "/")
	w.want(502, messageNotOpen, "silent."+domain, "/")
}

// TestPreviewWithoutTheStore: what was looked up goes on while the store is gone; what
// was not is told to come back.
func TestPreviewWithoutTheStore(t *testing.T) {
	w := newPreviewWorld(t)
	w.want(200, "serverA", "open."+domain, "/")
	w.previews.set(func() { w.previews.fail = nacre.Errorf(nacre.CodeUnavailable, "the database is gone") })
	w.advance(time.Minute)
	w.want(200, "serverA", "open."+domain, "/")
	resp := w.want(503, "looked up", "shut."+domain, "/")
	if resp.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	w.previews.set(func() { w.previews.fail = nil; delete(w.previews.slugs, "open") })
	w.want(404, messageNoPre, "open."+domain, "/")
	w.previews.set(func() { w.previews.asked = 0 })
	for range 5 {
		w.want(404, messageNoPre, "open."+domain, "/")
	}
	if w.previews.asked != 0 {
		t.Errorf("the store was asked %d times for what it does not know", w.previews.asked)
	}
}

// FuzzDropToken: what is left of a query has no token of ours, and every other
// parameter as it was.
func FuzzDropToken(f *testing.F) {
	for _, q := range []string{"", "a=1&preview_token=x&b=2", "preview%5ftoken=x", "token=pvt_1&token=mine", "&&=&a"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		got := dropToken(query)
		r := &http.Request{URL: mustQuery(got), Header: http.Header{}}
		if token, _ := shownToken(r); token != "" {
			t.Errorf("%q keeps the token %q: %q", query, token, got)
		}
		if !strings.Contains(query, "token") && !strings.Contains(query, "%") && got != query {
			t.Errorf("%q became %q", query, got)
		}
	})
}

func mustQuery(q string) *url.URL { return &url.URL{Path: "/", RawQuery: q} }
