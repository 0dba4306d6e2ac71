package miosa

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// workspace is where commands start. An image of another's may have neither it nor
// nacre.GuestUser; then the template's own default directory and user count.
const workspace = "/workspace"

const codeStarting = "SANDBOX_STARTING"

// guest is a running sandbox of the caller's.
type guest struct {
	api   *API
	id    nacre.SandboxID
	team  nacre.TeamID
	agent nacre.Agent
}

// sandboxID returns the path's id. One that cannot exist is as unknown as one that
// does not.
func sandboxID(c *api.Call) (nacre.SandboxID, error) {
	id := nacre.SandboxID(c.R.PathValue("id"))
	if !id.Valid() {
		return "", as("SANDBOX_NOT_FOUND", nacre.Errorf(nacre.CodeNotFound, "there is no sandbox with this id"))
	}
	return id, nil
}

// guest returns the path's sandbox. It asks the node's memory, not the store, while
// the sandbox runs; one that is paused and persistent is resumed.
func (a *API) guest(c *api.Call) (*guest, error) {
	id, err := sandboxID(c)
	if err != nil {
		return nil, err
	}
	route, ok := a.Traffic.Route(id)
	if !ok {
		if err := a.awake(c, id); err != nil {
			return nil, err
		}
		route, ok = a.Traffic.Route(id)
	}
	if !ok || route.Team != c.Team {
		return nil, as("SANDBOX_NOT_FOUND", nacre.Errorf(nacre.CodeNotFound, "sandbox %s not found", id))
	}
	agent, err := a.Traffic.Agent(c.R.Context(), id)
	if err != nil {
		return nil, starting(id)
	}
	return &guest{api: a, id: id, team: c.Team, agent: agent}, nil
}

// awake says why a sandbox without a machine cannot be used, or wakes it.
func (a *API) awake(c *api.Call, id nacre.SandboxID) error {
	s, err := a.Service.Get(c.R.Context(), c.Team, id)
	if err != nil {
		return as("SANDBOX_NOT_FOUND", err)
	}
	switch {
	case !s.Alive():
		return errEnded(s)
	case (s.State == nacre.StatePaused || s.State == nacre.StateResuming) && (s.AutoResume || s.Metadata[keyPersistent] != ""):
		_, _, err := a.Snapshots.Resume(c.R.Context(), c.Team, id, nacre.ResumeRequest{})
		return err
	case s.State == nacre.StatePaused:
		return nacre.Errorf(nacre.CodeConflict, "sandbox %s is paused; resume it first", id)
	}
	return starting(id)
}

func starting(id nacre.SandboxID) error {
	return as(codeStarting, nacre.Errorf(nacre.CodeConflict, "sandbox %s is not ready yet; try again in a moment", id))
}

func errEnded(s nacre.Sandbox) error {
	err := nacre.Errorf(nacre.CodeNotFound, "sandbox %s is %s", s.ID, stateOf(s))
	if s.EndReason != "" {
		err.Message += " (" + lastError(s) + ")"
	}
	return as("SANDBOX_NOT_FOUND", err)
}

// asUser does something as the guest's user, or as the image's default one where
// there is no such user.
func asUser(do func(user string) error) error {
	err := do(nacre.GuestUser)
	if nacre.IsCode(err, nacre.CodeUnauthenticated) {
		err = do("")
	}
	return err
}

// start runs a program as the guest's user in its directory.
func (g *guest) start(ctx context.Context, spec nacre.ProcessSpec) (nacre.ProcessStream, error) {
	if !spec.Unlogged {
		spec.Env = g.api.bound.add(ctx, g, spec.Env)
	}
	chosen := spec.Cwd != ""
	if !chosen {
		spec.Cwd = workspace
	}
	if spec.User == "" {
		spec.User = nacre.GuestUser
	}
	stream, err := g.agent.Processes().Start(ctx, spec)
	if nacre.IsCode(err, nacre.CodeUnauthenticated) && spec.User == nacre.GuestUser {
		spec.User = ""
		stream, err = g.agent.Processes().Start(ctx, spec)
	}
	if nacre.IsCode(err, nacre.CodeInvalid) && !chosen {
		spec.Cwd = ""
		stream, err = g.agent.Processes().Start(ctx, spec)
	}
	return stream, err
}

// tool runs a program of the guest's for a file operation. What it says on failure
// becomes the error.
func (g *guest) tool(ctx context.Context, name string, args ...string) error {
	stream, err := g.start(ctx, nacre.ProcessSpec{Cmd: name, Args: args, Cwd: "/", Unlogged: true, Env: map[string]string{"LC_ALL": "C"}})
	if err != nil {
		return err
	}
	defer stream.Close()
	said := &bounded{max: 4 << 10}
	for {
		e, err := stream.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		said.add(e.Stderr)
		if e.Exit != nil && e.Exit.Code != 0 {
			return toolError(name, said.String())
		}
	}
}

func toolError(name, said string) error {
	text := strings.TrimSpace(strings.ToValidUTF8(said, "\uFFFD"))
	code := nacre.CodeInvalid
	switch {
	case strings.Contains(text, "No such file or directory"):
		code = nacre.CodeNotFound
	case strings.Contains(text, "Permission denied"), strings.Contains(text, "Operation not permitted"):
		code = nacre.CodeForbidden
	case strings.Contains(text, "No space left"):
		code = nacre.CodeNoSpace
	}
	if text == "" {
		text = name + " failed"
	}
	return nacre.Errorf(code, "%s", text)
}

// bounded keeps the first max bytes of what is added, or fewer when the budget that
// it shares with others is used up.
type bounded struct {
	max   int
	share *budget // nil: none
	buf   []byte
	more  bool
}

func (b *bounded) add(p []byte) {
	room := min(len(p), b.max-len(b.buf))
	if b.share != nil && room > 0 && !b.share.take(int64(room)) {
		room = 0
	}
	b.buf = append(b.buf, p[:room]...)
	b.more = b.more || room < len(p)
}

// release gives back what was taken of the budget.
func (b *bounded) release() {
	if b.share != nil {
		b.share.used.Add(-int64(len(b.buf)))
	}
}

func (b *bounded) String() string { return string(b.buf) }

// budget is memory that requests share.
type budget struct {
	max  int64
	used atomic.Int64
}

func (b *budget) take(n int64) bool {
	if b.used.Add(n) <= b.max {
		return true
	}
	b.used.Add(-n)
	return false
}

// went turns the loss of a guest in the middle of something into an error that no
// client repeats by itself: part of it may have happened.
func went(err error) error {
	if nacre.IsCode(err, nacre.CodeUnavailable) {
		return &spelled{error: err, code: "RESOURCE_STATE", status: http.StatusConflict}
	}
	return err
}
