package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"time"

	"github.com/nacrehq/nacre"
)

// Client makes sandboxes and finds them again. New makes one; it is safe for
// concurrent use and holds nothing but idle connections.
type Client struct {
	cfg config
}

// New returns a client. It makes no request: a wrong key or address shows at the
// first call.
func New(opts ...Option) (*Client, error) {
	c := &Client{cfg: config{userAgent: "nacre-go/" + version(), requestTimeout: time.Minute}}
	for _, o := range opts {
		if err := o(&c.cfg); err != nil {
			return nil, fmt.Errorf("nacre client: %w", err)
		}
	}
	if err := c.cfg.resolve(); err != nil {
		return nil, fmt.Errorf("nacre client: %w", err)
	}
	return c, nil
}

// version is the module's, as the program that uses it was built.
func version() string {
	const module = "github.com/nacrehq/nacre"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == module && m.Version != "" && m.Version != "(devel)" {
			return m.Version
		}
	}
	return "devel"
}

// request is one call of the control plane.
type request struct {
	method, path string
	query        url.Values
	in, out      any // JSON; nil for none
	long         bool
}

// longRequest is how long a request may take that writes or reads a sandbox's
// memory.
const longRequest = 15 * time.Minute

// retryPauses are the waits before the repeats of a GET that got no answer, or
// one that says "later".
var retryPauses = [...]time.Duration{50 * time.Millisecond, 250 * time.Millisecond}

// do performs r and returns the answer's headers. It gives up after a minute, or
// after longRequest, even when ctx does not.
func (c *Client) do(ctx context.Context, r request) (http.Header, error) {
	limit := c.cfg.requestTimeout
	if r.long {
		limit = longRequest
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var body []byte
	if r.in != nil {
		var err error
		if body, err = json.Marshal(r.in); err != nil {
			return nil, &Error{Code: nacre.CodeInvalid, Message: err.Error(), cause: err}
		}
	}
	for attempt := 0; ; attempt++ {
		header, err := c.once(ctx, r, body)
		if err == nil || r.method != http.MethodGet || !errors.Is(err, ErrUnavailable) || attempt == len(retryPauses) {
			return header, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(retryPauses[attempt]):
		}
	}
}

func (c *Client) once(ctx context.Context, r request, body []byte) (http.Header, error) {
	u := c.cfg.apiURL + r.path
	if len(r.query) > 0 {
		u += "?" + r.query.Encode()
	}
	var reader io.Reader
	if r.in != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u, reader)
	if err != nil {
		return nil, &Error{Code: nacre.CodeInvalid, Message: err.Error(), cause: err}
	}
	if r.in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("X-API-Key", c.cfg.apiKey)
	req.Header.Set("User-Agent", c.cfg.userAgent)
	resp, err := c.cfg.httpClient.Do(req)
	if err != nil {
		return nil, callError(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return nil, errorOf(resp)
	}
	if r.out == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorBody)) // keeps the connection
		return resp.Header, nil
	}
	if err := json.NewDecoder(resp.Body).Decode(r.out); err != nil {
		if ctx.Err() != nil {
			return nil, contextError(ctx.Err())
		}
		return nil, &Error{Code: nacre.CodeUnavailable, Status: resp.StatusCode, cause: err,
			Message: fmt.Sprintf("the answer of %s is not what this client understands: %v", u, err)}
	}
	return resp.Header, nil
}

// sandboxPath returns "/sandboxes/<id>" and what follows it.
func sandboxPath(id, rest string) string { return "/sandboxes/" + url.PathEscape(id) + rest }
