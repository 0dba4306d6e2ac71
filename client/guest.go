package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
)

// guest is one sandbox's daemon, reached through the edge.
type guest struct {
	id    string
	base  string
	agent *envd.Client
	procs nacre.Processes
	files nacre.Files
}

func newGuest(cfg config, base, id, token string) *guest {
	through := cfg.httpClient.Transport
	if through == nil {
		through = http.DefaultTransport
	}
	agent := envd.New(envd.Options{
		HTTPClient:  &http.Client{Transport: &guestTransport{next: through, id: id}},
		BaseURL:     base,
		AccessToken: token,
		Header: func(h http.Header) {
			h.Set("E2b-Sandbox-Id", id)
			h.Set("E2b-Sandbox-Port", strconv.Itoa(nacre.AgentPort))
			h.Set("User-Agent", cfg.userAgent)
		},
	})
	return &guest{id: id, base: base, agent: agent, procs: agent.Processes(), files: agent.Files()}
}

// health returns nil when the guest answers.
func (g *guest) health(ctx context.Context) error { return guestError(ctx, g.agent.Healthy(ctx)) }

// guestTransport turns the edge's own answer for a sandbox that is not there
// into an error.
type guestTransport struct {
	next http.RoundTripper
	id   string
}

func (t *guestTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusBadGateway {
		return resp, err
	}
	defer resp.Body.Close()
	return nil, badGateway(t.id, resp)
}

// badGateway reads the edge's answer: a port that nobody listens on is named in
// it, and any other 502 is a sandbox that is not running.
func badGateway(id string, resp *http.Response) *Error {
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var body struct {
		Message string `json:"message"`
		Port    int    `json:"port"`
	}
	if json.Unmarshal(raw, &body) == nil && body.Port != 0 {
		return &Error{Code: nacre.CodeUnavailable, Status: resp.StatusCode, Message: body.Message}
	}
	e := goneError(id, nil)
	if body.Message != "" && body.Message != messageNotFound {
		e.Message = body.Message // it is paused, and why it did not wake
	}
	return e
}

// messageNotFound is the edge's for a sandbox that does not run.
const messageNotFound = "The sandbox was not found"

func goneError(id string, cause error) *Error {
	return &Error{Code: nacre.CodeUnavailable, Status: http.StatusBadGateway, gone: true, cause: cause,
		Message: "sandbox " + id + " is not running: it has ended (its time-out may have passed) or is paused"}
}

// streamError is guestError for a stream that broke off: when that is because
// the sandbox went away, it says so.
func (g *guest) streamError(ctx context.Context, err error) error {
	err = guestError(ctx, err)
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotRunning) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if herr := g.health(ctx); errors.Is(herr, ErrNotRunning) {
		return goneError(g.id, err)
	}
	return err
}
