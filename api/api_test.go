package api_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
	"github.com/nacrehq/nacre/nacretest/fakeservice"
)

type world struct {
	t     *testing.T
	teams *fakeservice.Teams
	auth  *api.Auth
	team  nacre.TeamID
	key   string
	log   bytes.Buffer
	now   time.Time
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, teams: &fakeservice.Teams{}, now: time.Unix(1795343400, 0)}
	w.team, w.key = w.teams.NewTeam("a")
	w.auth = api.NewAuth(w.teams, func() time.Time { return w.now })
	return w
}

func (w *world) handler(routes ...api.Route) http.Handler {
	return api.Dialect{
		Routes: routes, Auth: w.auth,
		WriteError: func(rw http.ResponseWriter, _ *http.Request, err error) {
			status := 500
			switch {
			case errors.Is(err, api.ErrMethod):
				status = 405
			case errors.Is(err, api.ErrTooLarge):
				status = 413
			case nacre.IsCode(err, nacre.CodeNotFound):
				status = 404
			case nacre.IsCode(err, nacre.CodeUnauthenticated):
				status = 401
			case nacre.IsCode(err, nacre.CodeInvalid):
				status = 400
			}
			_ = api.WriteJSON(rw, status, nacre.ErrorMessage(err))
		},
		Logger: slog.New(slog.NewTextHandler(&w.log, nil)),
	}.Handler()
}

func text(s string) func(*api.Call) error {
	return func(c *api.Call) error {
		_, err := c.W.Write([]byte(s + " " + c.R.PathValue("id") + " " + string(c.Team)))
		return err
	}
}

// TestRouting: literal before pattern by order, decoded segments, HEAD as GET.
func TestRouting(t *testing.T) {
	w := newWorld(t)
	h := w.handler(
		api.Route{Method: "GET", Path: "/a/all", Public: true, Handle: text("all")},
		api.Route{Method: "GET", Path: "/a/{id}", Public: true, Handle: text("one")},
		api.Route{Method: "DELETE", Path: "/a/{id}", Public: true, Handle: text("gone")},
		api.Route{Method: "GET", Path: "/f/{id...}", Public: true, Handle: text("file")},
	)
	for _, c := range []struct {
		method, path string
		status       int
		body, allow  string
	}{
		{"GET", "/a/all", 200, "all  ", ""},
		{"GET", "/a/x", 200, "one x ", ""},
		{"GET", "/a/x%2Fy%20z", 200, "one x/y z ", ""},
		{"HEAD", "/a/x", 200, "one x ", ""},
		{"DELETE", "/a/x", 200, "gone x ", ""},
		{"POST", "/a/x", 405, "", "GET, DELETE"},
		{"GET", "/f/x", 200, "file x ", ""},
		{"GET", "/f/x/y%2Fz/w", 200, "file x/y/z/w ", ""},
		{"GET", "/f", 404, "", ""},
		{"GET", "/a", 404, "", ""},
		{"GET", "/a/", 404, "", ""},
		{"GET", "/a/x/", 404, "", ""},
		{"GET", "//a/x", 404, "", ""},
		{"GET", "/A/x", 404, "", ""},
		{"GET", "/a/x?q=%20+y", 200, "one x ", ""},
		{"GET", "/a/x?q=%", 400, "", ""},
		{"GET", "/a/x?q=1;w=2", 400, "", ""},
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(c.method, c.path, nil))
		if rec.Code != c.status || c.body != "" && rec.Body.String() != c.body || rec.Header().Get("Allow") != c.allow {
			t.Errorf("%s %s: %d %q Allow %q", c.method, c.path, rec.Code, rec.Body, rec.Header().Get("Allow"))
		}
	}
}

// TestCredential: one header or the other, in any case; the key wins.
func TestCredential(t *testing.T) {
	for _, c := range []struct {
		headers [][2]string
		want    string
	}{
		{nil, ""},
		{[][2]string{{"X-API-KEY", "k"}}, "k"},
		{[][2]string{{"x-api-key", " k "}}, "k"},
		{[][2]string{{"Authorization", "Bearer b"}}, "b"},
		{[][2]string{{"authorization", "bearer  b "}}, "b"},
		{[][2]string{{"Authorization", "Bearer b"}, {"X-API-Key", "k"}}, "k"},
		{[][2]string{{"Authorization", "Basic dXNlcjo="}}, ""},
		{[][2]string{{"Authorization", "Bearer"}}, ""},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		for _, h := range c.headers {
			r.Header.Set(h[0], h[1])
		}
		if got := api.Credential(r); got != c.want {
			t.Errorf("%v: %q, want %q", c.headers, got, c.want)
		}
	}
}

// TestAuth: who is let in, what is remembered and for how long.
func TestAuth(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for range 100 {
		if k, err := w.auth.Key(ctx, w.key); err != nil || k.TeamID != w.team {
			t.Fatal(k, err)
		}
	}
	if n := w.teams.Lookups(); n != 1 {
		t.Errorf("100 calls asked the store %d times", n)
	}
	// The same secret is good under another service's prefix.
	if _, err := w.auth.Key(ctx, "msk_u_"+strings.TrimPrefix(w.key, "e2b_")); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "x", w.key + "x", "e2b_" + strings.Repeat("0", 40)} {
		if _, err := w.auth.Key(ctx, bad); !nacre.IsCode(err, nacre.CodeUnauthenticated) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	keys, _ := w.teams.Keys(ctx, w.team)
	_ = w.teams.RevokeKey(ctx, w.team, keys[0].ID)
	w.now = w.now.Add(time.Second)
	if _, err := w.auth.Key(ctx, w.key); !nacre.IsCode(err, nacre.CodeUnauthenticated) {
		t.Errorf("a revoked key after a second: %v", err)
	}
	_, fresh := w.teams.NewTeam("b")
	w.teams.SetDown(true)
	if _, err := w.auth.Key(ctx, fresh); !nacre.IsCode(err, nacre.CodeUnavailable) {
		t.Errorf("with the store down: %v", err)
	}
	w.teams.SetDown(false)
	if _, err := w.auth.Key(ctx, fresh); err != nil {
		t.Errorf("a failed look-up was remembered: %v", err)
	}
}

// TestAuthNotesUse: that a key was used is written behind the request, once a minute.
func TestAuthNotesUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		teams := &fakeservice.Teams{}
		team, key := teams.NewTeam("a")
		auth := api.NewAuth(teams, time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = auth.Run(ctx) })
		used := func() time.Time {
			keys, _ := teams.Keys(ctx, team)
			return keys[0].UsedAt
		}
		start := time.Now()
		for range 600 { // a minute of ten a second
			if _, err := auth.Key(ctx, key); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if at := used(); !at.Equal(start) || teams.Noted() != 1 {
			t.Errorf("in a minute it was written %d times, as of %s", teams.Noted(), at.Sub(start))
		}
		if _, err := auth.Key(ctx, key); err != nil {
			t.Fatal(err)
		}
		if n := teams.Noted(); n != 1 {
			t.Errorf("the request waited for the write (%d)", n)
		}
		time.Sleep(time.Second)
		if at := used(); at.Sub(start) != time.Minute || teams.Noted() != 2 {
			t.Errorf("after it, %d times, as of %s", teams.Noted(), at.Sub(start))
		}
		if _, err := auth.Key(ctx, "e2b_"+strings.Repeat("0", 40)); err == nil {
			t.Error("a key that nobody has was let in")
		}
		cancel()
		wg.Wait()
	})
}

// TestAuthClockSteps: a clock that went back does not make a key immortal.
func TestAuthClockSteps(t *testing.T) {
	w := newWorld(t)
	_, _ = w.auth.Key(t.Context(), w.key)
	w.now = w.now.Add(-time.Hour)
	_, _ = w.auth.Key(t.Context(), w.key)
	if n := w.teams.Lookups(); n != 2 {
		t.Errorf("the store was asked %d times", n)
	}
}

// TestPanics: before the answer a whole error, in the middle of it a cut
// connection, and the cause in the log only.
func TestPanics(t *testing.T) {
	w := newWorld(t)
	srv := httptest.NewServer(w.handler(
		api.Route{Method: "GET", Path: "/early", Public: true, Handle: func(*api.Call) error { panic("early secret") }},
		api.Route{Method: "GET", Path: "/late", Public: true, Handle: func(c *api.Call) error {
			c.W.Header().Set("Content-Length", "100")
			_, _ = c.W.Write([]byte("part"))
			panic("late")
		}},
	))
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/early")
	if err != nil {
		t.Fatal(err)
	}
	var body bytes.Buffer
	_, _ = body.ReadFrom(resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != 500 || !strings.Contains(body.String(), "internal error") || strings.Contains(body.String(), "secret") {
		t.Errorf("%d %s", resp.StatusCode, &body)
	}
	if resp, err = http.Get(srv.URL + "/late"); err == nil {
		_, err = body.ReadFrom(resp.Body)
		_ = resp.Body.Close()
	}
	if err == nil {
		t.Error("an answer that broke off looked whole")
	}
	srv.Close() // the log is complete
	if log := w.log.String(); !strings.Contains(log, "early secret") || !strings.Contains(log, "api_test.go") {
		t.Errorf("the log has no cause: %s", log)
	}
}

// TestAccessLogHasNoSecrets: neither headers nor the query get there.
func TestAccessLogHasNoSecrets(t *testing.T) {
	w := newWorld(t)
	h := w.handler(api.Route{Method: "GET", Path: "/a/{id}", Handle: text("one")})
	id := string(nacre.NewSandboxID())
	r := httptest.NewRequest("GET", "/a/"+id+"?signature=v1_hush&metadata=hush", nil)
	r.Header.Set("X-API-Key", w.key)
	r.Header.Set("X-Access-Token", "hush")
	r.Header.Set("X-Request-Id", "mine-1")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	if rec.Code != 200 || rec.Header().Get("X-Request-Id") != "mine-1" {
		t.Fatal(rec.Code, rec.Header())
	}
	log := w.log.String()
	if strings.Contains(log, "hush") || strings.Contains(log, w.key[4:]) {
		t.Errorf("a secret is in the log: %s", log)
	}
	for _, want := range []string{"mine-1", string(w.team), id, "status=200", "key_"} {
		if !strings.Contains(log, want) {
			t.Errorf("%s is not in the log: %s", want, log)
		}
	}
}

// TestRequestID: a harmful one is replaced.
func TestRequestID(t *testing.T) {
	w := newWorld(t)
	h := w.handler(api.Route{Method: "GET", Path: "/", Public: true, Handle: text("")})
	for _, given := range []string{"", "a b", "a\nb", strings.Repeat("x", 65), "é"} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["X-Request-Id"] = []string{given}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if got := rec.Header().Get("X-Request-Id"); len(got) != 16 || got == given {
			t.Errorf("%q became %q", given, got)
		}
	}
}

// TestConcurrentAuth is for the race detector.
func TestConcurrentAuth(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if _, err := w.auth.Key(t.Context(), w.key); err != nil {
					t.Error(err)
				}
				w.auth.Forget()
			}
		})
	}
	wg.Wait()
}

func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(`{"a":{"b":["1"]},"n":1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var v struct {
			A map[string][]string `json:"a"`
			N int                 `json:"n"`
		}
		if err := api.DecodeJSON(body, &v); err != nil && (!nacre.IsCode(err, nacre.CodeInvalid) || nacre.ErrorMessage(err) == "") {
			t.Fatalf("%q: %v", body, err)
		}
	})
}
