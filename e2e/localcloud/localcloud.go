// Package localcloud is a server without machines, for tests: the real dialect
// over records in memory, and for each sandbox a real agent that works on the
// host of the test. It isolates nothing.
package localcloud

import (
	"fmt"
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
	"github.com/nacrehq/nacre/nacretest/fakeservice"
)

// Cloud is one server. It ends with its test.
type Cloud struct {
	URL string // of the API and, by routing header, of the sandboxes
	Key string
	// Service holds the records; a test may add logs and metrics to them.
	Service *fakeservice.Service

	t       *testing.T
	dialect http.Handler
	tokens  nacre.TokenKey
	team    nacre.TeamID

	mu     sync.Mutex
	agents map[nacre.SandboxID]*agent.Agent
}

// New starts a server on a port of the loopback address.
func New(t *testing.T) *Cloud {
	t.Helper()
	c := &Cloud{t: t, Service: fakeservice.New(time.Now), tokens: nacre.TokenKey{1}, agents: map[nacre.SandboxID]*agent.Agent{}}
	teams := &fakeservice.Teams{}
	c.team, c.Key = teams.NewTeam("default")
	c.dialect = moru.New(moru.Config{Service: c.Service, Snapshots: c.Service, Auth: api.NewAuth(teams, time.Now), Teams: teams, TokenKey: c.tokens})
	srv := httptest.NewServer(c)
	c.URL = srv.URL
	t.Cleanup(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, a := range c.agents {
			a.Close()
		}
		srv.Close()
	})
	return c
}

// ServeHTTP is the API and the edge.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := nacre.SandboxID(r.Header.Get("E2b-Sandbox-Id"))
	if id == "" && r.URL.Query().Has("signature") {
		id = c.signer(r)
	}
	if id == "" {
		c.dialect.ServeHTTP(w, r)
		return
	}
	s, err := c.Service.Get(r.Context(), c.team, id)
	if err != nil || s.State != nacre.StateRunning {
		w.WriteHeader(http.StatusBadGateway)
		fmt.Fprintf(w, `{"sandboxId":%q,"message":"The sandbox was not found","code":502}`, id)
		return
	}
	c.agent(s).ServeHTTP(w, r)
}

// signer finds the sandbox whose token signed a file URL.
func (c *Cloud) signer(r *http.Request) nacre.SandboxID {
	q := r.URL.Query()
	op := envd.OpRead
	if r.Method == http.MethodPost {
		op = envd.OpWrite
	}
	expires, _ := strconv.ParseInt(q.Get("signature_expiration"), 10, 64)
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.agents {
		if envd.CheckSignature(q.Get("signature"), q.Get("path"), op, q.Get("username"), c.tokens.AccessToken(id, 0), expires) {
			return id
		}
	}
	return ""
}

// agent makes the sandbox's agent at the first request. Its only users are
// whoever runs the test.
func (c *Cloud) agent(s nacre.Sandbox) *agent.Agent {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.agents[s.ID]; a != nil {
		return a
	}
	home := c.t.TempDir()
	passwd, group := filepath.Join(home, ".passwd"), filepath.Join(home, ".group")
	me := strconv.Itoa(os.Getuid()) + ":" + strconv.Itoa(os.Getgid())
	c.write(passwd, "user:x:"+me+"::"+home+":/bin/bash\nroot:x:"+me+"::"+home+":/bin/bash\n")
	c.write(group, "user:x:"+strconv.Itoa(os.Getgid())+":\n")
	a := agent.New(agent.Config{PasswdPath: passwd, GroupPath: group})
	srv := httptest.NewServer(a)
	defer srv.Close()
	err := envd.New(envd.Options{HTTPClient: srv.Client(), BaseURL: srv.URL}).Init(c.t.Context(), nacre.AgentInit{
		Env: s.Env, AccessToken: c.tokens.AccessToken(s.ID, 0), HostToken: "host", Time: time.Now(), Entropy: make([]byte, 32),
	})
	if err != nil {
		c.t.Errorf("init the agent: %v", err)
	}
	c.agents[s.ID] = a
	return a
}

func (c *Cloud) write(path, content string) {
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		c.t.Error(err)
	}
}
