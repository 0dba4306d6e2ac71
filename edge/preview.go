package edge

import (
	"bytes"
	"context"
	"crypto/subtle"
	"html/template"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// How a client shows the token of a private preview. A browser that came with it in
// the query gets a cookie; the guest sees none of them.
const (
	queryToken   = "preview_token"
	shortToken   = "token" // only when it looks like one of ours: it may be the guest's own
	cookieToken  = "nacre_preview"
	tokenPrefix  = "pvt_"
	previewTTL   = 250 * time.Millisecond // so late a change of a preview shows
	missingTTL   = time.Second
	lookupTime   = 2 * time.Second
	staleLookup  = 250 * time.Millisecond // while there is an old answer to fall back on
	staleMost    = time.Hour
	maxLookups   = 16384 // hosts remembered
	messageNoPre = "There is no preview at this address"
)

var headersToken = [...]string{"X-Miosa-Preview-Token", "X-Nacre-Preview-Token"}

// ownLabels stand under the domain and are no previews.
var ownLabels = map[string]bool{"api": true, "sandbox": true, "sandboxes": true, "www": true, "preview": true}

// previews remembers which host shows what, so that a preview goes on when the store
// is slow or gone.
type previews struct {
	from  nacre.PreviewRoutes
	clock nacre.Clock

	mu    sync.Mutex
	known map[string]lookup
}

type lookup struct {
	route nacre.PreviewRoute
	found bool
	at    time.Time
}

func newPreviews(from nacre.PreviewRoutes, clock nacre.Clock) *previews {
	return &previews{from: from, clock: clock, known: map[string]lookup{}}
}

// find returns the preview of a slug, or of a whole host when slug is "". Unknown
// ones are CodeNotFound.
func (p *previews) find(ctx context.Context, slug, host string) (nacre.PreviewRoute, error) {
	p.mu.Lock()
	was, ok := p.known[keyOf(slug, host)]
	p.mu.Unlock()
	now := p.clock()
	age := now.Sub(was.at)
	switch {
	case ok && was.found && age >= 0 && age < previewTTL:
		return was.route, nil
	case ok && !was.found && age >= 0 && age < missingTTL:
		return nacre.PreviewRoute{}, errNoPreview()
	}
	return p.ask(ctx, slug, host, now)
}

// ask is find without an answer from memory, unless the store has none.
func (p *previews) ask(ctx context.Context, slug, host string, now time.Time) (nacre.PreviewRoute, error) {
	key := keyOf(slug, host)
	p.mu.Lock()
	was, ok := p.known[key]
	p.mu.Unlock()
	usable := ok && was.found && now.Sub(was.at) < staleMost
	limit := lookupTime
	if usable {
		limit = staleLookup
	}
	// The next one is answered with it too, so who asked may go: one that closed its half
	// of the connection looks as if it had, and waits.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	var route nacre.PreviewRoute
	var err error
	if slug != "" {
		route, err = p.from.PreviewBySlug(ctx, slug)
	} else {
		route, err = p.from.PreviewByDomain(ctx, host)
	}
	switch {
	case err == nil || nacre.IsCode(err, nacre.CodeNotFound):
		p.keep(key, lookup{route, err == nil, now})
	case usable:
		return was.route, nil
	}
	return route, err
}

func keyOf(slug, host string) string {
	if slug != "" {
		return slug
	}
	return "." + host
}

func (p *previews) keep(key string, l lookup) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.known) >= maxLookups {
		clear(p.known)
	}
	p.known[key] = l
}

func errNoPreview() error { return nacre.Errorf(nacre.CodeNotFound, messageNoPre) }

// fromPreview tells whether a host is a preview's: every label under the domain that
// is not the server's own, and a customer's name that is known to be one.
func (e *Edge) fromPreview(ctx context.Context, host string) (target, bool) {
	if e.previews == nil || host == "" {
		return target{}, false
	}
	label, rest, dotted := strings.Cut(host, ".")
	if e.domain != "" && (host == e.domain || strings.HasSuffix(host, "."+e.domain)) {
		if !dotted || rest != e.domain || ownLabels[label] {
			return target{}, false
		}
		return target{host: host, slug: label}, true
	}
	if !dotted || host == "localhost" || isAddress(host) {
		return target{}, false
	}
	if _, err := e.previews.find(ctx, "", host); err != nil {
		return target{}, false
	}
	return target{host: host}, true
}

func isAddress(host string) bool {
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil
}

// servePreview passes a request on to the port that its host shows, if the preview is
// public or the client has a token for it.
func (e *Edge) servePreview(w http.ResponseWriter, r *http.Request, t target) {
	route, err := e.previews.find(r.Context(), t.slug, t.host)
	switch {
	case nacre.IsCode(err, nacre.CodeNotFound), err == nil && route.Preview.Port == nacre.AgentPort:
		e.previewError(w, r, http.StatusNotFound, messageNoPre, "It was deleted, or the address is not quite right.")
		return
	case err != nil:
		e.log.Warn("a preview could not be looked up", "host", t.host, "error", err)
		w.Header().Set("Retry-After", "1")
		e.previewError(w, r, http.StatusServiceUnavailable, "The preview cannot be looked up now", "Load this page again in a moment.")
		return
	}
	p := route.Preview
	token, fromQuery := shownToken(r)
	if p.Private {
		expires, ok := e.opens(route, token)
		if !ok && strings.HasPrefix(token, tokenPrefix) { // it may be newer than what we remember
			if route, err = e.previews.ask(r.Context(), t.slug, t.host, e.clock()); err == nil {
				p = route.Preview
				expires, ok = e.opens(route, token)
				ok = ok || !p.Private
			}
		}
		if !ok {
			e.previewError(w, r, http.StatusUnauthorized, "This preview is private",
				"Open it with the link that was shared with you; links end after a while, so ask for a new one if yours did.")
			return
		}
		if fromQuery && wantsPage(r) {
			e.rememberToken(w, r, token, expires)
			return
		}
	}
	t.id, t.port, t.permitted, t.ancestors, t.team = string(p.Sandbox), p.Port, true, p.Ancestors, p.TeamID
	e.pass(w, withoutToken(r), t)
}

// opens tells whether a token opens a preview, and until when.
func (e *Edge) opens(route nacre.PreviewRoute, token string) (until time.Time, ok bool) {
	if token == "" {
		return until, false
	}
	hash := nacre.HashPreviewToken(token)
	for _, t := range route.Tokens {
		if subtle.ConstantTimeCompare(hash[:], t.Hash[:]) == 1 && e.clock().Before(t.ExpiresAt) {
			return t.ExpiresAt, true
		}
	}
	return until, false
}

// shownToken returns the token that a request has with it.
func shownToken(r *http.Request) (token string, fromQuery bool) {
	for _, name := range headersToken {
		if token := r.Header.Get(name); token != "" {
			return token, false
		}
	}
	q := r.URL.Query()
	if token := q.Get(queryToken); token != "" {
		return token, true
	}
	if token := q.Get(shortToken); strings.HasPrefix(token, tokenPrefix) {
		return token, true
	}
	if c, err := r.Cookie(cookieToken); err == nil {
		return c.Value, false
	}
	return "", false
}

// rememberToken sends a browser to the same page without the token, which a cookie
// holds from then on: the page's own requests have it, its address does not.
func (e *Edge) rememberToken(w http.ResponseWriter, r *http.Request, token string, until time.Time) {
	c := &http.Cookie{Name: cookieToken, Value: token, Path: "/", Expires: until, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	if secure(r) { // only then a browser takes it inside of another site's page
		c.Secure, c.SameSite, c.Partitioned = true, http.SameSiteNoneMode, true
	}
	http.SetCookie(w, c)
	u := url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: dropToken(r.URL.RawQuery)}
	if strings.HasPrefix(u.Path, "//") { // else it would name a host
		u.Path, u.RawPath = "/"+strings.TrimLeft(u.Path, "/"), ""
	}
	h := w.Header()
	h.Set("Location", u.String())
	h.Set("Referrer-Policy", "no-referrer")
	send(w, http.StatusSeeOther, nil)
}

func secure(r *http.Request) bool {
	return r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https"
}

// withoutToken is the request without what opened the preview.
func withoutToken(r *http.Request) *http.Request {
	out := r.Clone(r.Context())
	for _, name := range headersToken {
		out.Header.Del(name)
	}
	out.URL.RawQuery = dropToken(r.URL.RawQuery)
	if cookies := out.Header["Cookie"]; len(cookies) > 0 {
		out.Header["Cookie"] = dropCookie(cookies)
	}
	return out
}

// dropToken takes our parameters out of a query and leaves the rest byte for byte.
func dropToken(query string) string {
	if query == "" {
		return ""
	}
	kept := make([]string, 0, 8)
	for part := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		if plain, err := url.QueryUnescape(name); err == nil {
			name = plain
		}
		if name == queryToken || name == shortToken && strings.HasPrefix(value, tokenPrefix) {
			continue
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, "&")
}

func dropCookie(lines []string) []string {
	var out []string
	for _, line := range lines {
		var kept []string
		for part := range strings.SplitSeq(line, ";") {
			if name, _, _ := strings.Cut(strings.TrimSpace(part), "="); name != cookieToken {
				kept = append(kept, strings.TrimSpace(part))
			}
		}
		if len(kept) > 0 {
			out = append(out, strings.Join(kept, "; "))
		}
	}
	return out
}

// allowEmbedding lets pages of these origins, and no others, embed an answer. Without
// any what the guest says holds.
func allowEmbedding(h http.Header, ancestors []string) {
	if len(ancestors) == 0 {
		return
	}
	h.Del("X-Frame-Options")
	policies := h["Content-Security-Policy"]
	kept := policies[:0]
	for _, policy := range policies {
		var directives []string
		for d := range strings.SplitSeq(policy, ";") {
			if name, _, _ := strings.Cut(strings.TrimSpace(d), " "); d != "" && !strings.EqualFold(name, "frame-ancestors") {
				directives = append(directives, d)
			}
		}
		if len(directives) > 0 {
			kept = append(kept, strings.Join(directives, ";"))
		}
	}
	h["Content-Security-Policy"] = append(kept, "frame-ancestors "+strings.Join(ancestors, " "))
}

// previewError answers in place of a preview, as a page to a browser.
func (e *Edge) previewError(w http.ResponseWriter, r *http.Request, status int, message, hint string) {
	if !wantsPage(r) {
		writeError(w, status, message)
		return
	}
	var page bytes.Buffer
	if err := previewPage.Execute(&page, struct{ Message, Hint string }{message, hint}); err != nil {
		writeError(w, status, message)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	send(w, status, page.Bytes())
}

var previewPage = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Message}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}</style>
<h1>{{.Message}}</h1><p>{{.Hint}}</p></html>
`))
