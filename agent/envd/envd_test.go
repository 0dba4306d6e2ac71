package envd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nacrehq/nacre"
)

// TestWire2_2_Signature is the check vector of the protocol's users.
func TestWire2_2_Signature(t *testing.T) {
	const token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"
	if got := Signature("hello.txt", OpRead, "user", token, 0); got != "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E" {
		t.Errorf("got %s", got)
	}
	if !CheckSignature(Signature("a", OpWrite, "", token, 5), "a", OpWrite, "", token, 5) ||
		CheckSignature(Signature("a", OpWrite, "", token, 5), "a", OpWrite, "", token, 6) {
		t.Error("CheckSignature")
	}
}

// TestWire2_3_VersionGates: the version promises all that Moru's clients ask a
// version for, the last of it in 0.4, and none of what E2B's ask 0.5 for.
func TestWire2_3_VersionGates(t *testing.T) {
	var major, minor, patch int
	if n, err := fmt.Sscanf(Version, "%d.%d.%d", &major, &minor, &patch); n != 3 || err != nil || major != 0 || minor != 4 {
		t.Errorf("the version is %s", Version)
	}
}

// hostile serves handler as if it were a guest.
func hostile(t *testing.T, handler http.HandlerFunc) *Client {
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	c := New(Options{BaseURL: srv.URL, HTTPClient: srv.Client(), HostToken: "h", AccessToken: "a"})
	t.Cleanup(c.Close)
	return c
}

// TestStatusCodes is the client's half of the table.
func TestStatusCodes(t *testing.T) {
	for status, code := range map[int]nacre.Code{
		400: nacre.CodeInvalid, 401: nacre.CodeUnauthenticated, 403: nacre.CodeForbidden, 404: nacre.CodeNotFound,
		409: nacre.CodeConflict, 429: nacre.CodeExhausted, 500: nacre.CodeInternal, 502: nacre.CodeUnavailable, 507: nacre.CodeNoSpace,
	} {
		c := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"code":%d,"message":"the reason"}`, status)
		})
		_, _, err := c.Files().Read(context.Background(), "", "x")
		if nacre.ErrorCode(err) != code || nacre.ErrorMessage(err) != "the reason" {
			t.Errorf("%d: %v, want %s", status, err, code)
		}
	}
}

// TestVisitor: a visitor speaks as the published SDKs do, says that it is the host's,
// and leaves the host's connections alone.
func TestVisitor(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]string{} // the content type of a token, by where it came from
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen[r.RemoteAddr] = r.Header.Get("Content-Type") + " " + r.Header.Get(HeaderHostToken) + r.Header.Get(HeaderAccessToken)
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
	}))
	t.Cleanup(srv.Close)
	c := New(Options{HostToken: "h", AccessToken: "a", Dial: func(ctx context.Context, _ int) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", srv.Listener.Addr().String())
	}})
	t.Cleanup(c.Close)
	v := c.Visitor()
	t.Cleanup(v.(*Client).Close)
	for _, agent := range []nacre.Agent{c, v} {
		s, err := agent.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "true"})
		if err == nil { // else the answer's lack of a message is what it tells
			_ = s.Close()
		}
	}
	mu.Lock()
	defer mu.Unlock()
	got := slices.Sorted(maps.Values(seen))
	if want := []string{"application/connect+json ha", "application/connect+proto ha"}; !slices.Equal(got, want) {
		t.Errorf("connections: %q, want %q", got, want)
	}
}

// TestHostileGuest: a guest's answers are bounded and never believed.
func TestHostileGuest(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	endless := func(w http.ResponseWriter, text string) {
		for {
			if _, err := io.WriteString(w, text); err != nil {
				return
			}
		}
	}
	c := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case PathMetrics, PathLogs:
			endless(w, strings.Repeat("9", 4096))
		case PathInit:
			http.Redirect(w, r, "http://192.0.2.1/elsewhere", http.StatusTemporaryRedirect)
		case "/process.Process/Start":
			w.Header().Set("Content-Type", "application/connect+proto")
			_, _ = w.Write(binary.BigEndian.AppendUint32([]byte{0}, 1<<31))
			endless(w, strings.Repeat("x", 4096))
		case "/process.Process/Connect":
			w.Header().Set("Content-Type", "application/connect+proto")
			_, _ = w.Write([]byte{0, 0, 0, 0, 0, 2, 0, 0, 0, 2, '{', '}'}) // no pid, and the end
		default:
			w.WriteHeader(http.StatusBadRequest)
			endless(w, "<html>")
		}
	})
	if _, err := c.Stats(ctx); !nacre.IsCode(err, nacre.CodeUnavailable) {
		t.Errorf("Stats: %v", err)
	}
	if err := c.Logs(ctx, 0, func(nacre.LogEntry) error { return nil }); !nacre.IsCode(err, nacre.CodeUnavailable) {
		t.Errorf("Logs: %v", err)
	}
	if err := c.Init(ctx, nacre.AgentInit{}); err == nil {
		t.Error("Init followed a redirect")
	}
	if _, err := c.Processes().Start(ctx, nacre.ProcessSpec{Cmd: "x"}); err == nil || len(err.Error()) > 1000 {
		t.Errorf("Start: %v", err)
	}
	if _, err := c.Processes().Connect(ctx, 1); !nacre.IsCode(err, nacre.CodeUnavailable) {
		t.Errorf("Connect: %v", err)
	}
	if _, err := c.Files().List(ctx, "", "x", 1); err == nil || len(err.Error()) > 2*maxErrorText {
		t.Errorf("List: %d bytes of error", len(fmt.Sprint(err)))
	}
	if ctx.Err() != nil {
		t.Error("a hostile guest kept its host busy")
	}
}

// TestMessagesWithoutEnd: of a message that is too long no more is read than one may
// have, whatever length the guest says.
func TestMessagesWithoutEnd(t *testing.T) {
	const enough = 8 * maxMessage
	for _, kind := range []string{"stream", "answer"} {
		sent := make(chan int, 1)
		c := hostile(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
			if kind == "stream" {
				_, _ = w.Write(binary.BigEndian.AppendUint32([]byte{0}, enough))
			}
			n, text := 0, []byte(strings.Repeat("x", 64<<10))
			for n < enough {
				m, err := w.Write(text)
				if n += m; err != nil {
					break
				}
			}
			sent <- n
		})
		var err error
		if kind == "stream" {
			_, err = c.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "x"})
		} else {
			_, err = c.Files().List(t.Context(), "", "x", 1)
		}
		if err == nil {
			t.Errorf("%s: it was taken", kind)
		}
		if n := <-sent; n > 2*maxMessage {
			t.Errorf("%s: %d bytes were read of a message that is refused", kind, n)
		}
	}
}

// TestEnvelopesArePassedOn however the guest's bytes are cut.
func TestEnvelopesArePassedOn(t *testing.T) {
	var body []byte
	for _, size := range []int{0, 1, 5, 3000, 0, 70000} {
		body = binary.BigEndian.AppendUint32(append(body, 0), uint32(size))
		body = append(body, bytes.Repeat([]byte{255}, size)...)
	}
	for name, r := range map[string]io.Reader{
		"as they are": bytes.NewReader(body), "by bytes": iotest.OneByteReader(bytes.NewReader(body)), "by halves": iotest.HalfReader(bytes.NewReader(body)),
	} {
		if got, err := io.ReadAll(&envelopes{ReadCloser: io.NopCloser(r)}); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(body), err)
		}
		long := io.MultiReader(r, bytes.NewReader(append(body, 0, 255, 255, 255, 255, 'x')))
		if got, err := io.ReadAll(&envelopes{ReadCloser: io.NopCloser(long)}); err != errTooLong || len(got) != len(body)+5 {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// TestGuestGoesAway: every call ends, and says that it may be tried again.
func TestGuestGoesAway(t *testing.T) {
	c := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == PathFiles && r.Method == http.MethodGet {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
			w.(http.Flusher).Flush()
		}
		panic(http.ErrAbortHandler)
	})
	ctx := context.Background()
	_, start := c.Processes().Start(ctx, nacre.ProcessSpec{Cmd: "x"})
	_, list := c.Processes().List(ctx)
	_, stat := c.Files().Stat(ctx, "", "x")
	_, stats := c.Stats(ctx)
	r, _, err := c.Files().Read(ctx, "", "x")
	if err == nil {
		_, err = io.ReadAll(r)
	}
	for what, err := range map[string]error{
		"Start": start, "List": list, "Stat": stat, "Stats": stats, "Healthy": c.Healthy(ctx), "Read": err,
		"Logs":  c.Logs(ctx, 0, func(nacre.LogEntry) error { return nil }),
		"Watch": c.Files().Watch(ctx, "", "x", false, nil, nil),
	} {
		if !nacre.IsCode(err, nacre.CodeUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if errors.Is(err, io.EOF) {
		t.Error("a broken transfer looks like a finished one")
	}
}

// TestHeaders: what the Go SDK adds goes with every kind of request, and our own
// deadline is not taken for the process's.
func TestHeaders(t *testing.T) {
	seen := map[string]http.Header{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen[r.URL.Path] = r.Header.Clone()
		w.WriteHeader(http.StatusTeapot)
	}))
	defer srv.Close()
	c := New(Options{
		BaseURL: srv.URL + "/", HTTPClient: srv.Client(), AccessToken: "access", HostToken: "host",
		Header: func(h http.Header) { h.Set("Moru-Sandbox-Id", "i1") },
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = c.Healthy(ctx)
	_, _ = c.Processes().Start(ctx, nacre.ProcessSpec{Cmd: "x", User: "root", Timeout: 2 * time.Second})
	_, _ = c.Processes().Connect(ctx, 1)
	_, _ = c.Files().Stat(ctx, "ann", "x")
	for path, want := range map[string]map[string]string{
		PathHealth:                    {},
		"/process.Process/Start":      {HeaderTimeout: "2000", "Authorization": "Basic cm9vdDo="},
		"/process.Process/Connect":    {HeaderTimeout: "", "Authorization": ""},
		"/filesystem.Filesystem/Stat": {"Authorization": "Basic YW5uOg=="},
	} {
		want[HeaderAccessToken], want[HeaderHostToken], want["Moru-Sandbox-Id"] = "access", "host", "i1"
		for k, v := range want {
			if got := seen[path].Get(k); got != v {
				t.Errorf("%s: %s is %q, want %q", path, k, got, v)
			}
		}
	}
}

// TestWithTokens: the client with other tokens speaks over the connection that is
// there, and each sends its own.
func TestWithTokens(t *testing.T) {
	var mu sync.Mutex
	var tokens []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		tokens = append(tokens, r.Header.Get(HeaderAccessToken)+"/"+r.Header.Get(HeaderHostToken))
	}))
	defer srv.Close()
	dials := 0
	first := New(Options{AccessToken: "first", HostToken: "host", Dial: func(ctx context.Context, _ int) (net.Conn, error) {
		dials++
		return new(net.Dialer).DialContext(ctx, "tcp", srv.Listener.Addr().String())
	}})
	defer first.Close()
	for _, a := range []nacre.Agent{first, first.WithTokens("new", "second"), first} {
		if err := a.Healthy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"first/host", "second/new", "first/host"}; !slices.Equal(tokens, want) || dials != 1 {
		t.Errorf("tokens %q over %d connections, want %q over one", tokens, dials, want)
	}
}

// TestGreet: a greeted connection takes the next request, and one whose other end is
// no agent, or says nothing, is of no use.
func TestGreet(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		good   bool
	}{
		"an agent":      {"HTTP/1.1 204 No Content\r\nCache-Control: no-store\r\n\r\n", true},
		"it hangs up":   {"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", false},
		"something":     {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", false},
		"more than one": {"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", false},
		"no HTTP":       {"220 hello\r\n\r\n", false},
		"nothing":       {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer func() { _ = ours.Close() }()
			var wg sync.WaitGroup
			wg.Go(func() {
				defer func() { _ = theirs.Close() }()
				br := bufio.NewReader(theirs)
				for {
					if _, err := http.ReadRequest(br); err != nil {
						return
					}
					if c.answer != "" {
						_, _ = io.WriteString(theirs, c.answer)
					}
				}
			})
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			client := New(Options{Dial: func(context.Context, int) (net.Conn, error) { return ours, nil }})
			defer client.Close()
			if err := client.Greet(ctx, ours); (err == nil) != c.good {
				t.Fatalf("greet: %v", err)
			}
			if c.good {
				cancel() // which no longer matters to the connection
				if err := client.Healthy(t.Context()); err != nil {
					t.Errorf("the next request: %v", err)
				}
			}
			_ = ours.Close()
			wg.Wait()
		})
	}
}

// TestInitOver: a guest is told who it is over a connection that was used before and is
// used again; one that refuses, or has nobody at its other end, says so. It is woken
// before its host is ready to tell it, and told nothing until then.
func TestInitOver(t *testing.T) {
	in := nacre.AgentInit{Hostname: "box", HostToken: "new", AccessToken: "access", Env: map[string]string{"A": "1"}}
	for name, c := range map[string]struct {
		status  int
		unready error
		good    bool
	}{
		"told":      {status: http.StatusNoContent, good: true},
		"refused":   {status: http.StatusUnauthorized},
		"gone":      {},
		"not ready": {status: http.StatusNoContent, unready: errors.New("the disk is full")},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer func() { _ = ours.Close() }()
			var got InitRequest
			var token string
			woken := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				defer func() { _ = theirs.Close() }()
				br := bufio.NewReader(theirs)
				for {
					req, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					if req.Method == http.MethodPost {
						close(woken)
						if c.status == 0 {
							return
						}
					}
					status := http.StatusNoContent
					if req.Method == http.MethodPost && req.URL.Path == PathInit {
						token, status = req.Header.Get(HeaderHostToken), c.status
						_ = json.NewDecoder(req.Body).Decode(&got)
					}
					_ = (&http.Response{StatusCode: status, ProtoMajor: 1, ProtoMinor: 1}).Write(theirs)
				}
			})
			client := New(Options{HostToken: "old", Dial: func(context.Context, int) (net.Conn, error) { return ours, nil }})
			defer client.Close()
			if err := client.Greet(t.Context(), ours); err != nil {
				t.Fatal(err)
			}
			ready := func() error {
				select {
				case <-woken:
				case <-time.After(30 * time.Second):
					t.Error("the guest was not woken before")
				}
				return c.unready
			}
			if err := client.InitOver(t.Context(), ours, in, ready); (err == nil) != c.good || c.unready != nil && !errors.Is(err, c.unready) {
				t.Fatalf("told: %v", err)
			}
			if c.good {
				if err := client.Healthy(t.Context()); err != nil {
					t.Errorf("the next request: %v", err)
				}
			}
			_ = ours.Close()
			wg.Wait()
			if c.unready != nil && got.HostToken != "" {
				t.Errorf("the guest was told %+v before its host was ready", got)
			}
			if c.good && (token != "old" || got.HostToken != "new" || got.AccessToken != "access" || got.EnvVars["A"] != "1" || got.Hostname != "box") {
				t.Errorf("with the token %q the guest was told %+v", token, got)
			}
		})
	}
}
