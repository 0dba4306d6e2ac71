package server

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// AdminSocket is the unix socket in the data directory that the command on the
// server's own host talks to. Its mode, 0600, is its authentication.
const AdminSocket = "admin.sock"

// Status is what GET /status of the admin socket answers.
type Status struct {
	Ready   bool   `json:"ready"`
	Step    string `json:"step"` // what it is doing while it is not ready
	Version string `json:"version"`
	PID     int    `json:"pid"`
	HTTP    string `json:"http,omitempty"`
	HTTPS   string `json:"https,omitempty"`

	Capacity *nacre.Capacity `json:"capacity,omitempty"`
	Findings []Finding       `json:"findings,omitempty"` // what the running server has to tell of its host
}

// adminKey is a key in the admin socket's answers.
type adminKey struct {
	ID        string     `json:"id"`
	Team      string     `json:"team"`
	Name      string     `json:"name,omitempty"`
	Key       string     `json:"key,omitempty"` // only in the answer that made it
	Hint      string     `json:"hint,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	UsedAt    *time.Time `json:"used_at,omitempty"` // a minute coarse
	RevokedAt *time.Time `json:"revoked_at,omitempty"`
}

// admin serves the admin socket. It answers /status from the first moment and
// the rest once the store is open.
type admin struct {
	log   *slog.Logger
	clock nacre.Clock

	mu     sync.Mutex
	status Status
	teams  nacre.TeamStore
	node   nacre.Node
	told   func() []Finding
}

func (a *admin) step(text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.Step = text
}

func (a *admin) open(teams nacre.TeamStore) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.teams = teams
}

func (a *admin) ready(node nacre.Node, told func() []Finding, http, https string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.node, a.told = node, told
	a.status.Ready, a.status.Step = true, "ready"
	a.status.HTTP, a.status.HTTPS = http, https
}

// serve listens on the socket until ctx ends.
func (a *admin) serve(ctx context.Context, dir string) (stop func(), err error) {
	path := filepath.Join(dir, AdminSocket)
	// The data directory's lock is held: a socket that is there is a dead one's.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	srv := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.log.Error("admin socket", "err", err)
		}
	}()
	return func() { srv.Close(); <-done }, nil
}

func (a *admin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", replying(http.StatusOK, a.getStatus))
	mux.HandleFunc("POST /keys", replying(http.StatusCreated, a.createKey))
	mux.HandleFunc("GET /keys", replying(http.StatusOK, a.listKeys))
	mux.HandleFunc("DELETE /keys/{id}", replying(http.StatusNoContent, a.revokeKey))
	return mux
}

// replying answers with what do returns, if anything, and the status, or with its error.
func replying(status int, do func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 1<<16)
		body, err := do(r)
		switch {
		case err != nil:
			fail(w, err)
		case body == nil:
			w.WriteHeader(status)
		default:
			answer(w, status, body)
		}
	}
}

func (a *admin) getStatus(r *http.Request) (any, error) {
	a.mu.Lock()
	s, node, told := a.status, a.node, a.told
	a.mu.Unlock()
	if told != nil {
		s.Findings = told()
	}
	if node != nil {
		if c, err := node.Capacity(r.Context()); err == nil {
			s.Capacity = &c
		}
	}
	return s, nil
}

func (a *admin) createKey(r *http.Request) (any, error) {
	var in struct{ Team, Name string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return nil, nacre.Invalidf("body", "the body is not a JSON object: %v", err)
	}
	teams, err := a.teamStore()
	if err != nil {
		return nil, err
	}
	team, err := teams.EnsureTeam(r.Context(), in.Team)
	if err != nil {
		return nil, err
	}
	secret, key := nacre.NewKey(team.ID, in.Name, a.clock())
	if err := teams.InsertKey(r.Context(), key); err != nil {
		return nil, err
	}
	return adminKey{ID: key.ID, Team: team.Name, Name: key.Name, Key: secret, CreatedAt: key.CreatedAt}, nil
}

func (a *admin) listKeys(r *http.Request) (any, error) {
	teams, all, err := a.allTeams(r)
	if err != nil {
		return nil, err
	}
	out := []adminKey{}
	want := r.URL.Query().Get("team")
	for _, t := range all {
		if want != "" && t.Name != want {
			continue
		}
		keys, err := teams.Keys(r.Context(), t.ID)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			ak := adminKey{ID: k.ID, Team: t.Name, Name: k.Name, Hint: k.Hint, CreatedAt: k.CreatedAt}
			if !k.UsedAt.IsZero() {
				ak.UsedAt = &k.UsedAt
			}
			if !k.RevokedAt.IsZero() {
				ak.RevokedAt = &k.RevokedAt
			}
			out = append(out, ak)
		}
	}
	return out, nil
}

func (a *admin) revokeKey(r *http.Request) (any, error) {
	teams, all, err := a.allTeams(r)
	if err != nil {
		return nil, err
	}
	name := r.URL.Query().Get("team")
	for _, t := range all {
		if t.Name == name {
			return nil, teams.RevokeKey(r.Context(), t.ID, r.PathValue("id"))
		}
	}
	return nil, nacre.Errorf(nacre.CodeNotFound, "there is no team %q; `nacre key list` shows them", name)
}

func (a *admin) allTeams(r *http.Request) (nacre.TeamStore, []nacre.Team, error) {
	teams, err := a.teamStore()
	if err != nil {
		return nil, nil, err
	}
	all, err := teams.Teams(r.Context())
	return teams, all, err
}

func (a *admin) teamStore() (nacre.TeamStore, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.teams == nil {
		return nil, nacre.Errorf(nacre.CodeUnavailable, "the server is starting (%s); try again in a moment", a.status.Step)
	}
	return a.teams, nil
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the reader has gone; nobody to tell
}

// fail is for the owner of the host: it shows causes too.
func fail(w http.ResponseWriter, err error) {
	status, message := http.StatusInternalServerError, err.Error()
	switch nacre.ErrorCode(err) {
	case nacre.CodeInvalid:
		status, message = http.StatusBadRequest, nacre.ErrorMessage(err)
	case nacre.CodeNotFound:
		status, message = http.StatusNotFound, nacre.ErrorMessage(err)
	case nacre.CodeUnavailable:
		status = http.StatusServiceUnavailable
	}
	answer(w, status, map[string]any{"code": status, "message": message})
}
