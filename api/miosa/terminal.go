package miosa

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

const (
	terminalTime  = 24 * time.Hour // how long a session's token opens its socket
	maxTermInput  = 1 << 20        // bytes of one frame
	terminalWrite = 30 * time.Second
	pingEvery     = 20 * time.Second
)

// createTerminal starts a shell on a terminal. The session is the guest's: it outlives
// its sockets and this process.
func (a *API) createTerminal(c *api.Call) error {
	var in terminalBody
	if err := read(c, &in); err != nil {
		return err
	}
	size, err := in.size()
	if err != nil {
		return err
	}
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	if in.Shell == "" {
		in.Shell = "/bin/bash"
	}
	session := random(8)
	spec := nacre.ProcessSpec{Cmd: in.Shell, Args: []string{"-l"}, Env: in.Env, Cwd: in.Cwd, Term: &size}
	j, err := a.jobs.start(c.R.Context(), g, startJob{name: session, command: in.Shell, tag: terminalTag, spec: spec})
	if err != nil {
		return err
	}
	expires := a.Clock().Add(terminalTime)
	token := a.terminalToken(g.id, session, expires)
	path := Prefix + "/sandboxes/" + string(g.id) + "/terminal/" + session + "/ws"
	url := strings.Replace(baseURL(c.R), "http", "ws", 1) + path
	return one(c, http.StatusCreated, terminalSession{
		SessionID: session, ID: session, WSURL: url + "?token=" + token, URL: url + "?token=" + token, Token: token,
		ExpiresAt: *timestamp(expires), Cols: size.Cols, Rows: size.Rows, Shell: in.Shell, PID: strconv.Itoa(j.pid),
	})
}

// terminalToken opens one session's socket until it expires: "<unix>.<mac>".
func (a *API) terminalToken(id nacre.SandboxID, session string, expires time.Time) string {
	until := strconv.FormatInt(expires.Unix(), 10)
	m := hmac.New(sha256.New, a.TokenKey[:])
	m.Write([]byte("miosa-terminal\x00" + string(id) + "\x00" + session + "\x00" + until))
	return until + "." + hex.EncodeToString(m.Sum(nil)[:20])
}

func (a *API) goodTerminalToken(id nacre.SandboxID, session, token string) bool {
	until, _, _ := strings.Cut(token, ".")
	n, err := strconv.ParseInt(until, 10, 64)
	return err == nil && n > a.Clock().Unix() &&
		hmac.Equal([]byte(token), []byte(a.terminalToken(id, session, time.Unix(n, 0))))
}

// session finds the path's terminal.
func (a *API) session(c *api.Call) (*guest, *job, error) {
	g, err := a.guest(c)
	if err != nil {
		return nil, nil, err
	}
	name := c.R.PathValue("session")
	all, err := a.jobs.list(c.R.Context(), g, terminalTag)
	if err != nil {
		return nil, nil, err
	}
	for _, j := range all {
		if j.tag == terminalTag+name {
			return g, j, nil
		}
	}
	return nil, nil, nacre.Errorf(nacre.CodeNotFound, "sandbox %s has no terminal %.40q", g.id, name)
}

func (a *API) deleteTerminal(c *api.Call) error {
	g, j, err := a.session(c)
	if err != nil {
		return err
	}
	// A shell on a terminal ignores SIGTERM.
	if err := g.agent.Processes().Signal(c.R.Context(), j.pid, 9); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
		return err
	}
	j.wait(c.R.Context(), stopGrace)
	return c.NoContent()
}

func (a *API) resizeTerminal(c *api.Call) error {
	var in terminalBody
	if err := read(c, &in); err != nil {
		return err
	}
	g, j, err := a.session(c)
	if err != nil {
		return err
	}
	if err := g.resize(c.R.Context(), j, in); err != nil {
		return err
	}
	return c.NoContent()
}

func (g *guest) resize(ctx context.Context, j *job, in terminalBody) error {
	size, err := in.size()
	if err != nil {
		return err
	}
	return g.agent.Processes().Resize(ctx, j.pid, size)
}

func (in terminalBody) size() (nacre.TermSize, error) {
	cols, err := number("cols", in.Cols, 80, 1, 1000)
	if err != nil {
		return nacre.TermSize{}, err
	}
	rows, err := number("rows", in.Rows, 24, 1, 1000)
	return nacre.TermSize{Cols: cols, Rows: rows}, err
}

// terminalSocket is a public route: a browser's socket has no header, so a token in
// the query will do.
func (a *API) terminalSocket(c *api.Call) error {
	if c.Team == "" {
		if err := a.socketTeam(c); err != nil {
			return err
		}
	}
	g, j, err := a.session(c)
	if err != nil {
		return err
	}
	conn, err := websocket.Accept(c.W, c.R, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // the token is what counts, not the page's origin
	})
	if err != nil {
		return nil // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(maxTermInput)
	ctx, cancel := context.WithCancel(c.R.Context())
	defer cancel()
	input := make(chan struct{})
	go func() {
		defer close(input)
		defer cancel()
		newTyping(g, j, conn).run(ctx)
	}()
	err = g.shown(ctx, j, conn)
	if err == nil {
		_ = conn.Close(websocket.StatusNormalClosure, "the shell has ended")
	}
	cancel()
	<-input
	return nil
}

// socketTeam lets a session's token in, else the API key.
func (a *API) socketTeam(c *api.Call) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	token := c.R.URL.Query().Get("token")
	if a.goodTerminalToken(id, c.R.PathValue("session"), token) {
		if route, ok := a.Traffic.Route(id); ok {
			c.Team = route.Team
			return nil
		}
		return as("SANDBOX_NOT_FOUND", nacre.Errorf(nacre.CodeNotFound, "sandbox %s is not running", id))
	}
	credential := api.Credential(c.R)
	if credential == "" {
		credential = token
	}
	key, err := a.Auth.Key(c.R.Context(), credential)
	c.Key, c.Team = key, key.TeamID
	return err
}

// shown sends what the terminal showed lately and what it shows, as binary frames,
// then one text frame with the exit.
func (g *guest) shown(ctx context.Context, j *job, conn *websocket.Conn) error {
	send := func(kind websocket.MessageType, data []byte) error {
		ctx, cancel := context.WithTimeout(ctx, terminalWrite)
		defer cancel()
		return conn.Write(ctx, kind, data)
	}
	pings := make(chan struct{})
	pctx, stop := context.WithCancel(ctx)
	go func() {
		defer close(pings)
		tick := time.NewTicker(pingEvery)
		defer tick.Stop()
		for {
			select {
			case <-pctx.Done():
				return
			case <-tick.C:
				_ = conn.Ping(pctx) // a dead peer ends the reader
			}
		}
	}()
	defer func() { stop(); <-pings }()
	err := j.replayTo(ctx, func(e jobEntry) error { return send(websocket.MessageBinary, []byte(e.text)) })
	if err != nil {
		return err
	}
	return send(websocket.MessageText, encode(streamEvent{Type: "exit", ExitCode: j.object().ExitCode}))
}

// tell sends an error as a text frame.
func tell(ctx context.Context, conn *websocket.Conn, err error) error {
	ctx, cancel := context.WithTimeout(ctx, terminalWrite)
	defer cancel()
	return conn.Write(ctx, websocket.MessageText, encode(streamEvent{Type: "error", Message: nacre.ErrorMessage(err)}))
}

// refuse ends a socket whose input may be lost. The terminal goes on: who connects
// again sees what came of it.
func refuse(ctx context.Context, conn *websocket.Conn, err error) {
	if tell(ctx, conn, err) == nil {
		_ = conn.Close(websocket.StatusTryAgainLater, "what was typed last may be lost; connect again")
	}
}
