package moru

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
	"github.com/nacrehq/nacre/nacretest/fakeservice"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// harness is the dialect over a fake service, with two teams.
type harness struct {
	t       *testing.T
	service *fakeservice.Service
	teams   *fakeservice.Teams
	handler http.Handler
	dialect *dialect
	log     *bytes.Buffer

	teamA, teamB nacre.TeamID
	keyA, keyB   string

	mu  sync.Mutex
	now time.Time
}

func newHarness(t *testing.T) *harness {
	h := &harness{t: t, teams: &fakeservice.Teams{}, log: &bytes.Buffer{},
		now: time.Date(2026, 11, 22, 10, 30, 0, 123456789, time.UTC)}
	h.service = fakeservice.New(h.clock)
	h.teamA, h.keyA = h.teams.NewTeam("a")
	h.teamB, h.keyB = h.teams.NewTeam("b")
	c := Config{
		Service: h.service, Snapshots: h.service, Auth: api.NewAuth(h.teams, h.clock), Teams: h.teams,
		TokenKey: nacre.TokenKey{1, 2, 3}, Domain: "nacre.localhost:8443",
		EnvdVersion: "0.4.0", Clock: h.clock,
		Logger: slog.New(slog.NewTextHandler(h.log, nil)),
	}
	h.handler = New(c)
	h.dialect = &dialect{Config: c}
	return h
}

func (h *harness) clock() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *harness) advance(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(d)
}

type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request with a key ("" for none).
func (h *harness) do(method, target, key, body string) answer {
	h.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req := httptest.NewRequest(method, "http://api.test/", r)
	u, err := req.URL.Parse(target)
	if err != nil {
		h.t.Fatal(err)
	}
	req.URL = u
	if key != "" {
		req.Header.Set("x-api-key", key)
	}
	w := httptest.NewRecorder()
	h.handler.ServeHTTP(w, req)
	return answer{w.Code, w.Header(), w.Body.String()}
}

// ok is do as team A, with the status that must come back.
func (h *harness) ok(want int, method, target, body string) answer {
	h.t.Helper()
	a := h.do(method, target, h.keyA, body)
	if a.status != want {
		h.t.Fatalf("%s %s: %d %s, want %d", method, target, a.status, a.body, want)
	}
	return a
}

func (a answer) decode(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		t.Fatalf("%v in %q", err, a.body)
	}
}

// create makes a sandbox of team A.
func (h *harness) create(body string) sandbox {
	h.t.Helper()
	var s sandbox
	h.ok(201, "POST", "/sandboxes", body).decode(h.t, &s)
	return s
}

// isError fails unless the answer is a whole error of this status.
func (a answer) isError(t *testing.T, status int) string {
	t.Helper()
	var e errorBody
	if a.status != status {
		t.Errorf("status %d (%s), want %d", a.status, a.body, status)
		return ""
	}
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || e.Code != status || e.Message == "" {
		t.Errorf("error body %q, want code %d and a message", a.body, status)
	}
	if ct := a.header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("error of type %q", ct)
	}
	return e.Message
}

// golden compares indented JSON with a file, after replacements.
func golden(t *testing.T, name, body string, replace ...string) {
	t.Helper()
	var buf bytes.Buffer
	if err := json.Indent(&buf, []byte(strings.NewReplacer(replace...).Replace(body)), "", "  "); err != nil {
		t.Fatalf("%s: %v in %q", name, err, body)
	}
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(path, buf.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytes.TrimSpace(want), bytes.TrimSpace(buf.Bytes())) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, buf.Bytes(), want)
	}
}
