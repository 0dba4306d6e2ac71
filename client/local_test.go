package client_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent"
	"github.com/nacrehq/nacre/agent/envd"
	"github.com/nacrehq/nacre/api"
	"github.com/nacrehq/nacre/api/moru"
	"github.com/nacrehq/nacre/client"
	"github.com/nacrehq/nacre/nacretest/fakeservice"
)

// local is a server without machines: the real dialect over records in memory,
// and for each sandbox a real agent that works on this host.
type local struct {
	t       *testing.T
	service *fakeservice.Service
	dialect http.Handler
	tokens  nacre.TokenKey
	team    nacre.TeamID

	mu     sync.Mutex
	agents map[nacre.SandboxID]*agent.Agent
}

func newLocal(t *testing.T) *client.Client {
	t.Helper()
	l := &local{t: t, service: fakeservice.New(time.Now), tokens: nacre.TokenKey{1}, agents: map[nacre.SandboxID]*agent.Agent{}}
	teams := &fakeservice.Teams{}
	team, key := teams.NewTeam("default")
	l.team = team
	l.dialect = moru.New(moru.Config{Service: l.service, Auth: api.NewAuth(teams, time.Now), Teams: teams, TokenKey: l.tokens})
	srv := httptest.NewServer(l)
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, a := range l.agents {
			a.Close()
		}
		srv.Close()
	})
	c, err := client.New(client.WithAPIKey(key), client.WithAPIURL(srv.URL), client.WithSandboxURL(srv.URL), client.WithDomain(""))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (l *local) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := nacre.SandboxID(r.Header.Get("E2b-Sandbox-Id"))
	if id == "" && r.URL.Query().Has("signature") {
		id = l.signer(r)
	}
	if id == "" {
		l.dialect.ServeHTTP(w, r)
		return
	}
	s, err := l.service.Get(r.Context(), l.team, id)
	if err != nil || s.State != nacre.StateRunning {
		w.WriteHeader(http.StatusBadGateway)
		fmt.Fprintf(w, `{"sandboxId":%q,"message":"The sandbox was not found","code":502}`, id)
		return
	}
	l.agent(s).ServeHTTP(w, r)
}

// signer finds the sandbox whose token signed a file URL.
func (l *local) signer(r *http.Request) nacre.SandboxID {
	q := r.URL.Query()
	op := envd.OpRead
	if r.Method == http.MethodPost {
		op = envd.OpWrite
	}
	expires, _ := strconv.ParseInt(q.Get("signature_expiration"), 10, 64)
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.agents {
		if envd.CheckSignature(q.Get("signature"), q.Get("path"), op, q.Get("username"), l.tokens.AccessToken(id, 0), expires) {
			return id
		}
	}
	return ""
}

// agent makes the sandbox's agent at the first request. Its only users are
// whoever runs the test.
func (l *local) agent(s nacre.Sandbox) *agent.Agent {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.agents[s.ID]; a != nil {
		return a
	}
	home := l.t.TempDir()
	passwd, group := filepath.Join(home, ".passwd"), filepath.Join(home, ".group")
	me := strconv.Itoa(os.Getuid()) + ":" + strconv.Itoa(os.Getgid())
	l.write(passwd, "user:x:"+me+"::"+home+":/bin/bash\nroot:x:"+me+"::"+home+":/bin/bash\n")
	l.write(group, "user:x:"+strconv.Itoa(os.Getgid())+":\n")
	a := agent.New(agent.Config{PasswdPath: passwd, GroupPath: group})
	srv := httptest.NewServer(a)
	defer srv.Close()
	err := envd.New(envd.Options{HTTPClient: srv.Client(), BaseURL: srv.URL}).Init(l.t.Context(), nacre.AgentInit{
		Env: s.Env, AccessToken: l.tokens.AccessToken(s.ID, 0), HostToken: "host", Time: time.Now(), Entropy: make([]byte, 32),
	})
	if err != nil {
		l.t.Errorf("init the agent: %v", err)
	}
	l.agents[s.ID] = a
	return a
}

func (l *local) write(path, content string) {
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		l.t.Error(err)
	}
}

// target is what the suite runs against: the server that NACRE_API_URL and
// NACRE_API_KEY name, or a local one.
func target(t *testing.T) (c *client.Client, live bool) {
	t.Helper()
	if os.Getenv("NACRE_API_URL") == "" || os.Getenv("NACRE_API_KEY") == "" {
		return newLocal(t), false
	}
	c, err := client.New()
	if err != nil {
		t.Fatal(err)
	}
	return c, true
}

// needLive skips what only a server with machines can show.
func needLive(t *testing.T, live bool) {
	t.Helper()
	if !live {
		t.Skip("NACRE_API_URL and NACRE_API_KEY name no server, and this needs real machines")
	}
}

// sandbox makes one that ends with the test.
func sandbox(t *testing.T, c *client.Client, opts ...client.CreateOption) *client.Sandbox {
	t.Helper()
	sb, err := c.Create(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sb.Kill(noContext) }) // the test may have ended it
	return sb
}

// drain reads a body to its end.
func drain(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
