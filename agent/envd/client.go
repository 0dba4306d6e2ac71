package envd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd/filesystempb/filesystempbconnect"
	"github.com/nacrehq/nacre/agent/envd/processpb/processpbconnect"
)

// What is read of a guest's answer at most: the guest is not trusted.
const (
	maxMessage   = 64 << 20 // one RPC message
	maxBody      = 1 << 20  // one JSON body outside of RPC
	maxLogLine   = 256 << 10
	maxErrorText = 4 << 10
	maxHeaders   = 64 << 10
)

// Options say how a Client reaches its guest.
type Options struct {
	// Dial connects to a TCP port of the guest. One of Dial and HTTPClient is needed.
	Dial func(ctx context.Context, port int) (net.Conn, error)
	// HTTPClient reaches the guest through something else, as the edge. It must
	// have no Timeout: streams last.
	HTTPClient *http.Client
	// BaseURL is where the agent's routes begin; "" means the agent's port of
	// whatever Dial reaches.
	BaseURL string
	// Header, when set, adds headers to every request.
	Header func(http.Header)
	// AccessToken and HostToken are sent when set.
	AccessToken, HostToken string
	// JSON has calls of processes and directories speak JSON, as the published SDKs
	// do, and not protobuf.
	JSON bool
}

// Client is the host's side of one agent. All methods may run at once. At rest
// it keeps at most two connections for half a minute; Close ends them.
type Client struct {
	opts  Options
	base  string
	inner http.RoundTripper // what the connections belong to
	http  *http.Client

	// Made when they are first called: they are a hundred times what the rest of a client
	// is, and a create makes one that it asks for nothing by them.
	procs func() processpbconnect.ProcessClient
	files func() filesystempbconnect.FilesystemClient
}

var _ nacre.Agent = (*Client)(nil)

// New returns a client. It does not connect.
func New(opts Options) *Client {
	if opts.HTTPClient == nil {
		return newClient(opts, &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return opts.Dial(ctx, nacre.AgentPort)
			},
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: maxHeaders,
			DisableCompression:     true,
			WriteBufferSize:        64 << 10, // used while a request runs only
			ReadBufferSize:         16 << 10,
		})
	}
	inner := opts.HTTPClient.Transport
	if inner == nil {
		inner = http.DefaultTransport
	}
	return newClient(opts, inner)
}

// WithTokens returns a client that sends other tokens, over the connections that c
// has: Close of either ends the idle ones of both.
func (c *Client) WithTokens(hostToken, accessToken string) nacre.Agent {
	opts := c.opts
	opts.HostToken, opts.AccessToken = hostToken, accessToken
	return newClient(opts, c.inner)
}

// Visitor returns a client that does as the published SDKs do: in JSON, over
// connections of its own, which its Close ends. It keeps the host's token, without
// which no process stays out of the guest's log.
func (c *Client) Visitor() nacre.Agent {
	opts := c.opts
	opts.JSON = true
	return New(opts)
}

func newClient(opts Options, inner http.RoundTripper) *Client {
	c := &Client{opts: opts, base: strings.TrimRight(opts.BaseURL, "/"), inner: inner}
	if c.base == "" {
		c.base = "http://guest:" + strconv.Itoa(nacre.AgentPort)
	}
	c.http = &http.Client{
		Transport:     &transport{c: c, next: inner},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	rpc := []connect.ClientOption{
		connect.WithReadMaxBytes(maxMessage),
		connect.WithAcceptCompression("gzip", nil, nil),
	}
	if opts.JSON {
		rpc = append(rpc, connect.WithProtoJSON())
	}
	c.procs = sync.OnceValue(func() processpbconnect.ProcessClient {
		return processpbconnect.NewProcessClient(c.http, c.base, rpc...)
	})
	c.files = sync.OnceValue(func() filesystempbconnect.FilesystemClient {
		return filesystempbconnect.NewFilesystemClient(c.http, c.base, rpc...)
	})
	return c
}

// Close ends idle connections. Calls under way go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Processes is the guest's processes.
func (c *Client) Processes() nacre.Processes { return &processes{c} }

// Files is the guest's file system.
func (c *Client) Files() nacre.Files { return &files{c} }

// callKey carries what a call says in headers past connect, which keeps its own
// names for itself.
type callKey struct{}

type callHeaders struct {
	user    string
	timeout time.Duration

	unlogged, kept bool
	seen           *nacre.OutputSeen
}

func withCall(ctx context.Context, h callHeaders) context.Context {
	return context.WithValue(ctx, callKey{}, h)
}

// transport adds credentials and the headers of the call.
type transport struct {
	c    *Client
	next http.RoundTripper
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	opts := &t.c.opts
	if opts.AccessToken != "" {
		r.Header.Set(HeaderAccessToken, opts.AccessToken)
	}
	if opts.HostToken != "" {
		r.Header.Set(HeaderHostToken, opts.HostToken)
	}
	if h, ok := r.Context().Value(callKey{}).(callHeaders); ok {
		if h.user != "" {
			r.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(h.user+":")))
		}
		r.Header.Del(HeaderTimeout) // connect's: our context's, not the process's
		if h.timeout > 0 {
			r.Header.Set(HeaderTimeout, strconv.FormatInt(max(1, h.timeout.Milliseconds()), 10))
		}
		if h.unlogged {
			r.Header.Set(HeaderUnlogged, "1")
		}
		if h.kept {
			r.Header.Set(HeaderKept, "1")
		}
		if h.seen != nil {
			r.Header.Set(HeaderSeen, FormatSeen(*h.seen))
		}
	}
	if opts.Header != nil {
		opts.Header(r.Header)
	}
	resp, err := t.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	guard(r, resp)
	return resp, nil
}

func (t *transport) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// Init tells the guest who it is. The first one sets the host token, so c must
// have been made with in.HostToken to repeat it.
func (c *Client) Init(ctx context.Context, in nacre.AgentInit) error {
	body, err := initBody(in)
	if err != nil {
		return err
	}
	resp, err := c.do(ctx, http.MethodPost, PathInit, nil, bytes.NewReader(body))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// InitOver is Init over an idle connection to the agent, which stays the caller's and
// is of no use after an error. The head of the request goes out before ready is called,
// and wakes the guest meanwhile; the body, which tells it something, when ready has
// returned nil.
func (c *Client) InitOver(ctx context.Context, conn net.Conn, in nacre.AgentInit, ready func() error) error {
	body, err := initBody(in)
	if err != nil {
		return err
	}
	return c.exchange(ctx, conn, func() error {
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: guest\r\n%s: %s\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n",
			PathInit, HeaderHostToken, c.opts.HostToken, len(body)); err != nil {
			return err
		}
		if err := ready(); err != nil {
			return err
		}
		_, err := conn.Write(body)
		return err
	})
}

func initBody(in nacre.AgentInit) ([]byte, error) {
	body, err := json.Marshal(InitRequest{
		EnvVars: in.Env, AccessToken: in.AccessToken, HostToken: in.HostToken, Timestamp: in.Time, Entropy: in.Entropy,
		Hostname: in.Hostname, DNS: in.DNS, DefaultUser: in.DefaultUser, DefaultWorkdir: in.DefaultCwd,
		NewIdentity: in.NewIdentity,
	})
	if err != nil {
		return nil, nacre.Wrap(nacre.CodeInvalid, err, "the guest's identity cannot be encoded")
	}
	return body, nil
}

// Healthy returns nil when the agent answers.
func (c *Client) Healthy(ctx context.Context) error {
	resp, err := c.do(ctx, http.MethodGet, PathHealth, nil, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Greet makes a first request on a new connection to the agent, which is then as an
// idle one that was used before: the first answer on one takes longer than the next.
// The connection stays the caller's, and is of no use after an error.
func (c *Client) Greet(ctx context.Context, conn net.Conn) error {
	return c.exchange(ctx, conn, func() error {
		_, err := io.WriteString(conn, "GET "+PathHealth+" HTTP/1.1\r\nHost: guest\r\n\r\n")
		return err
	})
}

// exchange makes a request, which write sends, that is answered without a body, over a
// connection that goes on.
func (c *Client) exchange(ctx context.Context, conn net.Conn, write func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := write()
	if err == nil {
		err = readEmpty(conn)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return transportError(ctx, err)
	}
	return nil
}

// readEmpty reads an answer without a body.
func readEmpty(conn net.Conn) error {
	br := bufio.NewReader(&io.LimitedReader{R: conn, N: maxHeaders})
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusNoContent || resp.Close || br.Buffered() > 0 {
		return errors.New("the agent's answer is not one of an agent")
	}
	return nil
}

// Stats reads what only the guest knows.
func (c *Client) Stats(ctx context.Context) (nacre.GuestStats, error) {
	resp, err := c.do(ctx, http.MethodGet, PathMetrics, nil, nil)
	if err != nil {
		return nacre.GuestStats{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	var m MetricsResponse
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&m); err != nil {
		return nacre.GuestStats{}, badAnswer(ctx, err)
	}
	return nacre.GuestStats{
		CPUCount: m.CPUCount, CPUUsedPct: m.CPUUsedPct,
		MemTotal: m.MemTotal, MemUsed: m.MemUsed, MemCache: m.MemCache,
		DiskUsed: m.DiskUsed, DiskTotal: m.DiskTotal,
		At: time.Unix(m.Timestamp, 0).UTC(),
	}, nil
}

// Logs streams the guest's log.
func (c *Client) Logs(ctx context.Context, after int64, fn func(nacre.LogEntry) error) error {
	err := c.log(ctx, url.Values{"after": {strconv.FormatInt(after, 10)}}, fn)
	if err == nil {
		err = badAnswer(ctx, io.ErrUnexpectedEOF) // the guest never ends it
	}
	return err
}

// LogsSoFar reads the log's end. A guest of an older version, which goes on with
// what comes, is heard until ctx ends.
func (c *Client) LogsSoFar(ctx context.Context, after int64, fn func(nacre.LogEntry) error) error {
	return c.log(ctx, url.Values{"after": {strconv.FormatInt(after, 10)}, "until": {"now"}}, fn)
}

// log reads entries until the guest ends them, or fn.
func (c *Client) log(ctx context.Context, which url.Values, fn func(nacre.LogEntry) error) error {
	resp, err := c.do(ctx, http.MethodGet, PathLogs, which, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, maxLogLine)
	for sc.Scan() {
		if len(sc.Bytes()) == 0 {
			continue
		}
		var e nacre.LogEntry
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			return badAnswer(ctx, err)
		}
		if err := fn(e); err != nil {
			return err
		}
	}
	if err := sc.Err(); err != nil {
		return badAnswer(ctx, err)
	}
	return nil
}

// do makes one request outside of RPC; a status of 300 and more is an error.
func (c *Client) do(ctx context.Context, method, path string, q url.Values, body io.Reader) (*http.Response, error) {
	u := c.base + path
	if len(q) > 0 {
		u += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, nacre.Wrap(nacre.CodeInvalid, err, "the request to the guest cannot be made")
	}
	if src, ok := body.(*source); ok {
		req.ContentLength = src.size
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, transportError(ctx, err)
	}
	if resp.StatusCode >= 300 {
		defer func() { _ = resp.Body.Close() }()
		return nil, statusError(resp)
	}
	return resp, nil
}
