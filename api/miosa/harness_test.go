package miosa

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
	"github.com/nacrehq/nacre/control"
	"github.com/nacrehq/nacre/deploy"
	"github.com/nacrehq/nacre/event"
	"github.com/nacrehq/nacre/image"
	"github.com/nacrehq/nacre/meter"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/node"
	"github.com/nacrehq/nacre/sqlstore"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const build = nacre.BuildID("b0000000000000000001")

// harness is the dialect over the whole product, on a host that is not real.
type harness struct {
	t    *testing.T
	api  *API
	db   *sqlstore.DB
	node *node.Node
	host *nacretest.FakeHost
	log  *safeBuffer

	teamA, teamB nacre.TeamID
	keyA, keyB   string
}

// safeBuffer takes log lines of many goroutines.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.buf.Reset()
	return b.buf.String()
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	h := &harness{t: t, log: &safeBuffer{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(h.log, nil))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	db, err := sqlstore.Open(ctx, filepath.Join(dir, "nacre.db"), sqlstore.Options{})
	must(err)
	now := time.Now()
	for id, name := range map[nacre.TemplateID]string{"t0000000000000000001": "base", "t0000000000000000002": "miosa-sandbox"} {
		must(db.PutTemplate(ctx, nacre.Template{ID: id, Names: []string{name}, Public: true, Build: build, CreatedAt: now, UpdatedAt: now,
			Resources: nacre.Resources{CPUs: 1, MemoryMiB: 1024, DiskMiB: 3072}}))
	}
	h.host = nacretest.NewFakeHost(build)
	fake := h.host.Daemon()
	arts, err := image.OpenArtifacts(image.ArtifactOptions{Dir: filepath.Join(dir, "snapshots"), ReserveMiB: -1})
	must(err)
	h.node, err = node.New(node.Config{
		Dir: filepath.Join(dir, "node"), Runtime: fake.Runtime(), Network: fake.Network(), Images: fake.Images(), Artifacts: arts,
		NewAgent: fake.NewAgent, AgentPath: "/agent", Clock: time.Now, Logger: log, LogDrain: time.Millisecond,
		Host: func() (node.HostStats, error) {
			return node.HostStats{MemoryTotal: 64 << 30, MemoryAvailable: 60 << 30, DiskTotal: 1 << 40, DiskFree: 1 << 39}, nil
		},
	})
	must(err)
	must(h.node.Recover(ctx))
	svc, err := control.New(control.Config{Store: db, Snapshots: db, Templates: db, Node: h.node, Traffic: h.node, Telemetry: h.node, Logger: log})
	must(err)
	hub := event.New(event.Config{Log: db, Signal: db, Logger: log})
	recorder := event.NewRecorder(db, time.Now, log)
	counter := meter.New(meter.Config{Events: db, Signal: db, Usage: db, Records: db, Labels: []string{nacre.LabelExternalUser}, Logger: log})
	for _, run := range []func(context.Context) error{h.node.Run, svc.Run, hub.Run, recorder.Run, counter.Run} {
		wg.Go(func() { _ = run(ctx) })
	}
	h.db = db
	h.teamA, h.keyA = h.team("a")
	h.teamB, h.keyB = h.team("b")
	deployer := deploy.New(deploy.Config{Service: svc, Snapshots: svc, Traffic: h.node, Previews: db, Store: db, Teams: db, Logger: log})
	h.api = New(Config{
		Service: svc, Snapshots: svc, Traffic: h.node, Activity: svc, Auth: api.NewAuth(db, nil), TokenKey: nacre.TokenKey{1, 2, 3},
		Nouns: Nouns{Editor: svc, Events: db, Streams: hub, Previews: db, Domains: db, Secrets: db, Usage: counter, Emit: recorder.Record,
			Once: &api.Once{Requests: db}, Publisher: deployer, Deployments: db},
		Domain: "nacre.localhost:8443", Logger: log,
	})
	t.Cleanup(func() {
		must(h.api.Close())
		must(deployer.Close())
		cancel()
		wg.Wait()
		must(h.node.Close())
		must(arts.Close())
		must(db.Close())
	})
	return h
}

func (h *harness) team(name string) (nacre.TeamID, string) {
	h.t.Helper()
	team, err := h.db.EnsureTeam(h.t.Context(), name)
	if err != nil {
		h.t.Fatal(err)
	}
	key, rec := nacre.NewKey(team.ID, "", time.Now())
	if err := h.db.InsertKey(h.t.Context(), rec); err != nil {
		h.t.Fatal(err)
	}
	return team.ID, "msk_u_" + key[strings.LastIndexByte(key, '_')+1:]
}

type answer struct {
	status int
	header http.Header
	body   string
}

// silence is how long a stream that goes on says nothing before it is cut. A busy host
// needs a while for what it has to say.
const silence = time.Second

// cut ends a stream that has begun and says nothing more.
type cut struct {
	*httptest.ResponseRecorder
	after *time.Timer
}

func (c cut) WriteHeader(status int) {
	c.after.Reset(silence)
	c.ResponseRecorder.WriteHeader(status)
}

func (c cut) Write(b []byte) (int, error) {
	c.after.Reset(silence)
	return c.ResponseRecorder.Write(b)
}

// do sends a request below the prefix with a key ("" for none). A stream is cut
// when nothing more comes.
func (h *harness) do(method, target, key, body string, header ...string) answer {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req := httptest.NewRequest(method, "http://api.test"+Prefix+target, r).WithContext(ctx)
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w := http.ResponseWriter(rec)
	if strings.Contains(target, "stream") || strings.HasSuffix(target, "/watch") || strings.HasSuffix(target, "/events") || strings.Contains(target, "/events?") {
		end := time.AfterFunc(20*time.Second, cancel)
		defer end.Stop()
		w = cut{rec, end}
	}
	func() {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				panic(p)
			}
		}()
		h.api.ServeHTTP(w, req)
	}()
	return answer{rec.Code, rec.Header(), rec.Body.String()}
}

// ok is do as team A, with the status that must come back.
func (h *harness) ok(want int, method, target, body string, header ...string) answer {
	h.t.Helper()
	a := h.do(method, target, h.keyA, body, header...)
	if a.status != want {
		h.t.Fatalf("%s %s: %d %s, want %d", method, target, a.status, a.body, want)
	}
	return a
}

// field returns a string field of an answer's top level.
func (a answer) field(t *testing.T, name string) string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(a.body), &m); err != nil {
		t.Fatalf("%v in %q", err, a.body)
	}
	s, _ := m[name].(string)
	if s == "" {
		t.Fatalf("no %s in %s", name, a.body)
	}
	return s
}

// create makes a sandbox of team A and returns its id.
func (h *harness) create(body string) string {
	h.t.Helper()
	return h.ok(201, "POST", "/sandboxes", body).field(h.t, "id")
}

// unstable are the parts of an answer that differ from run to run.
var unstable = regexp.MustCompile(`"(` + strings.Join([]string{
	`\d{4}-\d\d-\d\dT[0-9:.]+Z`, `i[a-z0-9]{20}`, `s[a-z0-9]{19}`, `team_[a-z0-9]{16}`, `(sec|bnd|pv|pt|dom|req)_[a-z0-9]{16}`,
	`p[a-z0-9]{15}`, `https://p[a-z0-9]{15}\.[^"]*`, `pvt_[a-z0-9]+`, `miosa-tok-[a-z0-9]+`, `[0-9a-f]{16}`, `wss?://[^"]*`, `\d{10}\.[0-9a-f]{40}`,
}, "|") + `)"|"(duration_ms|boot_ms|timeout_remaining_ms|total_runtime_sec|size_bytes|size|provisioned_[a-z_]*_ms)": ?\d+`)

// golden compares an answer as indented JSON with a file.
func golden(t *testing.T, name string, a answer) {
	t.Helper()
	var buf bytes.Buffer
	if err := json.Indent(&buf, []byte(a.body), "", "  "); err != nil {
		t.Fatalf("%s: %v in %q", name, err, a.body)
	}
	got := unstable.ReplaceAllFunc(buf.Bytes(), func(m []byte) []byte {
		if i := bytes.IndexByte(m, ':'); i > 0 && bytes.HasSuffix(m[:i], []byte(`"`)) {
			return append(bytes.Clone(m[:i]), ": 0"...)
		}
		return []byte(`"*"`)
	})
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytes.TrimSpace(want), bytes.TrimSpace(got)) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}
