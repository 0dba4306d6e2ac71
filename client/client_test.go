package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// noEnvironment keeps the settings of whoever runs the tests out of them.
func noEnvironment(t *testing.T) {
	t.Helper()
	for _, brand := range []string{"NACRE_", "MORU_", "E2B_"} {
		for _, name := range []string{"API_KEY", "API_URL", "SANDBOX_URL", "DOMAIN"} {
			t.Setenv(brand+name, "")
		}
	}
}

// serve returns a client of a server that answers with h.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	noEnvironment(t)
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := New(WithAPIKey("e2b_test"), WithAPIURL(srv.URL))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const created = `{"sandboxID":"iaaaaaaaaaaaaaaaaaaaa","templateID":"tbase","clientID":"x","envdVersion":"0.4.0",` +
	`"envdAccessToken":"tok","trafficAccessToken":"traffic","domain":"nacre.test:8443"}`

// TestCreateMayTakeItsTime: a create of a snapshot reads a sandbox's memory, and what it may
// take is for the server to say.
func TestCreateMayTakeItsTime(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(300 * time.Millisecond):
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, created)
		case <-r.Context().Done():
		}
	})
	c.cfg.requestTimeout = 30 * time.Millisecond
	if _, err := c.Create(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWire1_3_CreateBody(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts []CreateOption
		want string
	}{
		{"defaults", nil, `{"templateID":"base","timeout":300,"secure":true}`},
		{"template, time-out rounded up", []CreateOption{Template("python"), Timeout(1500 * time.Millisecond)},
			`{"templateID":"python","timeout":2,"secure":true}`},
		{"maps add up", []CreateOption{Metadata(map[string]string{"a": "1"}), Metadata(map[string]string{"b": "2"}), Env(map[string]string{"K": "v"})},
			`{"templateID":"base","timeout":300,"secure":true,"metadata":{"a":"1","b":"2"},"envVars":{"K":"v"}}`},
		{"no internet", []CreateOption{Internet(false)}, `{"templateID":"base","timeout":300,"secure":true,"allow_internet_access":false}`},
		{"an allow-list", []CreateOption{DenyOut("0.0.0.0/0"), AllowOut("1.1.1.1"), AllowOut("8.8.8.8/32")},
			`{"templateID":"base","timeout":300,"secure":true,"network":{"allowOut":["1.1.1.1","8.8.8.8/32"],"denyOut":["0.0.0.0/0"]}}`},
		{"previews", []CreateOption{PrivateTraffic(), MaskRequestHost("x.test:${PORT}")},
			`{"templateID":"base","timeout":300,"secure":true,"network":{"allowPublicTraffic":false,"maskRequestHost":"x.test:${PORT}"}}`},
		{"files of a pause", []CreateOption{AutoPause(), FilesOnly()}, `{"templateID":"base","timeout":300,"autoPause":true,"autoPauseMemory":false,"secure":true}`},
		{"waking", []CreateOption{AutoPause(), AutoResume()}, `{"templateID":"base","timeout":300,"autoPause":true,"autoResume":{"enabled":true},"secure":true}`},
		{"the rest", []CreateOption{Insecure(), AutoPause(), Volume("vol_1", "/workspace/data")},
			`{"templateID":"base","timeout":300,"autoPause":true,"secure":false,"volumeId":"vol_1","volumeMountPath":"/workspace/data"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var body string
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				raw, _ := io.ReadAll(r.Body)
				body = string(raw)
				if r.Method != "POST" || r.URL.Path != "/sandboxes" || r.Header.Get("X-API-Key") != "e2b_test" ||
					r.Header.Get("Content-Type") != "application/json" || !strings.HasPrefix(r.Header.Get("User-Agent"), "nacre-go/") {
					t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
				}
				w.WriteHeader(201)
				io.WriteString(w, created)
			})
			sb, err := c.Create(t.Context(), tc.opts...)
			if err != nil {
				t.Fatal(err)
			}
			if !sameJSON(t, body, tc.want) {
				t.Errorf("body %s\nwant %s", body, tc.want)
			}
			if sb.ID != "iaaaaaaaaaaaaaaaaaaaa" || sb.TrafficToken != "traffic" || sb.Host(8080) != "8080-iaaaaaaaaaaaaaaaaaaaa.nacre.test:8443" {
				t.Errorf("%+v", sb)
			}
		})
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if err := json.Unmarshal([]byte(a), &x); err != nil {
		t.Fatalf("%s: %v", a, err)
	}
	if err := json.Unmarshal([]byte(b), &y); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return reflect.DeepEqual(x, y)
}

// TestRequests: what every other call of the control plane puts on the wire.
func TestRequests(t *testing.T) {
	const id = "iaaaaaaaaaaaaaaaaaaaa"
	for _, tc := range []struct {
		name, want, answer string
		status             int
		call               func(ctx context.Context, c *Client) error
	}{
		{"connect", `POST /sandboxes/` + id + `/connect {"timeout":300}`, created, 200,
			func(ctx context.Context, c *Client) error { _, err := c.Connect(ctx, id); return err }},
		{"connect with a time-out", `POST /sandboxes/` + id + `/connect {"timeout":60}`, created, 201,
			func(ctx context.Context, c *Client) error {
				_, err := c.Connect(ctx, id, Timeout(time.Minute))
				return err
			}},
		{"an id is escaped", `GET /sandboxes/..%2Fteams `, created, 200,
			func(ctx context.Context, c *Client) error { _, err := c.Sandbox(ctx, "../teams"); return err }},
		{"time-out", `POST /sandboxes/` + id + `/timeout {"timeout":10}`, "", 204,
			func(ctx context.Context, c *Client) error { return c.SetTimeout(ctx, id, 10*time.Second) }},
		{"kill", `DELETE /sandboxes/` + id + ` `, "", 204,
			func(ctx context.Context, c *Client) error { return c.Kill(ctx, id) }},
		{"pause", `POST /sandboxes/` + id + `/pause {}`, "", 204,
			func(ctx context.Context, c *Client) error { return c.Pause(ctx, id) }},
		{"pause of the files", `POST /sandboxes/` + id + `/pause {"memory":false}`, "", 204,
			func(ctx context.Context, c *Client) error { return c.Pause(ctx, id, FilesOnly()) }},
		{"resume by booting", `POST /sandboxes/` + id + `/connect {"timeout":300,"memory":false}`, created, 201,
			func(ctx context.Context, c *Client) error { return (&Sandbox{ID: id, client: c}).Resume(ctx, Reboot()) }},
		{"snapshot", `POST /sandboxes/` + id + `/snapshots {"name":"n","comment":"c","memory":false,"expiresIn":60}`, `{"snapshotID":"x:default","names":[]}`, 201,
			func(ctx context.Context, c *Client) error {
				s, err := c.Snapshot(ctx, id, Name("n"), Comment("c"), FilesOnly(), Keep(time.Minute))
				if err == nil && s.ID != "x:default" {
					err = fmt.Errorf("of another server: %+v", s)
				}
				return err
			}},
		{"restore", `POST /sandboxes/` + id + `/restore {"snapshotID":"x"}`, created, 200,
			func(ctx context.Context, c *Client) error { return c.Restore(ctx, id, "x") }},
		{"fork", `POST /sandboxes/` + id + `/fork {"count":2,"timeout":60,"autoPause":true,"metadata":{"a":"b"},"envVars":{"C":"d"}}`,
			`[{"sandbox":` + created + `},{"error":{"code":429,"message":"full"}}]`, 201,
			func(ctx context.Context, c *Client) error {
				out, err := c.Fork(ctx, id, 2, Timeout(time.Minute), AutoPause(), Metadata(map[string]string{"a": "b"}), Env(map[string]string{"C": "d"}))
				if err == nil && (out[0].Sandbox == nil || !errors.Is(out[1].Err, ErrRateLimited)) {
					err = fmt.Errorf("%+v", out)
				}
				return err
			}},
		{"fork of nothing but its source", `POST /sandboxes/` + id + `/fork {"count":1,"inheritTimeout":true,"inheritEnv":false}`, `[{"sandbox":` + created + `}]`, 201,
			func(ctx context.Context, c *Client) error { _, err := c.Fork(ctx, id, 1, OwnEnv()); return err }},
		{"strict pause", `POST /sandboxes/` + id + `/pause {"requireHealthyGuest":true}`, "", 204,
			func(ctx context.Context, c *Client) error { return c.Pause(ctx, id, Strict()) }},
		{"fork of a snapshot", `POST /snapshots/team%2Fn:default/fork {"count":1}`, `[{"sandbox":` + created + `}]`, 201,
			func(ctx context.Context, c *Client) error { _, err := c.Fork(ctx, "team/n:default", 1); return err }},
		{"snapshots", `GET /snapshots?limit=100&name=n&sandboxID=` + id + ` `, "[]", 200,
			func(ctx context.Context, c *Client) (err error) {
				for _, err = range c.Snapshots(ctx, Name("n"), Of(id)) {
				}
				return err
			}},
		{"delete a snapshot", `DELETE /templates/team%2Fn:default `, "", 204,
			func(ctx context.Context, c *Client) error { return c.DeleteSnapshot(ctx, "team/n:default") }},
		{"network", `PUT /sandboxes/` + id + `/network {"allowOut":["1.1.1.1"],"denyOut":["0.0.0.0/0"]}`, "", 204,
			func(ctx context.Context, c *Client) error {
				sb := &Sandbox{ID: id, client: c}
				return sb.SetNetwork(ctx, Internet(false), AllowOut("1.1.1.1"))
			}},
		{"metrics", `GET /sandboxes/` + id + `/metrics?end=200&start=100 `, "[]", 200,
			func(ctx context.Context, c *Client) error {
				sb := &Sandbox{ID: id, client: c}
				_, err := sb.Metrics(ctx, time.Unix(100, 0), time.Unix(200, 0))
				return err
			}},
		{"templates", `GET /templates `, "[]", 200,
			func(ctx context.Context, c *Client) error { _, err := c.Templates(ctx); return err }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got string
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				raw, _ := io.ReadAll(r.Body)
				got = r.Method + " " + r.URL.RequestURI() + " " + string(raw)
				w.WriteHeader(tc.status)
				io.WriteString(w, tc.answer)
			})
			if err := tc.call(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestWire1_6_StatusToError(t *testing.T) {
	for status, want := range map[int]error{
		400: ErrInvalid, 401: ErrUnauthenticated, 403: ErrForbidden, 404: ErrNotFound, 409: ErrConflict, 422: ErrInvalid,
		429: ErrRateLimited, 501: ErrUnsupported, 503: ErrUnavailable, 504: ErrTimeout, 507: ErrNoSpace,
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"code":%d,"message":"why it is so"}`, status)
		})
		err := c.Kill(t.Context(), "i")
		var e *Error
		if !errors.Is(err, want) || !errors.As(err, &e) || e.Status != status || err.Error() != "why it is so" {
			t.Errorf("%d: %v", status, err)
		}
		if errors.Is(err, ErrNotRunning) {
			t.Errorf("%d of the control plane is taken for a sandbox that is not running", status)
		}
	}
}

func TestErrorWithoutABodyStillSaysSomething(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	err := c.Kill(t.Context(), "i")
	var e *Error
	if !errors.As(err, &e) || e.Code != nacre.CodeInternal || !strings.Contains(e.Message, "500") {
		t.Errorf("%#v", err)
	}
}

func TestOnlyWhatChangesNothingIsRepeated(t *testing.T) {
	var calls atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) < 3 {
			w.WriteHeader(503)
			return
		}
		io.WriteString(w, created)
	})
	if _, err := c.Sandbox(t.Context(), "i"); err != nil || calls.Load() != 3 {
		t.Errorf("a GET was tried %d times: %v", calls.Load(), err)
	}
	calls.Store(0)
	if _, err := c.Create(t.Context()); !errors.Is(err, ErrUnavailable) || calls.Load() != 1 {
		t.Errorf("a create was tried %d times: %v", calls.Load(), err)
	}
	calls.Store(0)
	if err := c.Kill(t.Context(), "i"); !errors.Is(err, ErrUnavailable) || calls.Load() != 1 {
		t.Errorf("a kill was tried %d times: %v", calls.Load(), err)
	}
}

func TestContextDeadlineIsErrTimeout(t *testing.T) {
	release := make(chan struct{})
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.Create(ctx)
	if !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := c.Create(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestAnswerOfAnotherServiceIsAnError(t *testing.T) {
	for _, answer := range []string{"<html>", "{}"} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer) })
		if _, err := c.Create(t.Context()); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

func TestSettings(t *testing.T) {
	for _, tc := range []struct {
		name            string
		env             map[string]string
		opts            []Option
		key, api, guest string
		err             string
		answer          string // the domain that the server names
	}{
		{name: "nothing", err: "NACRE_API_URL"},
		{name: "no key", env: map[string]string{"NACRE_API_URL": "http://a"}, err: "nacre key create"},
		{name: "Nacre's variables win", env: map[string]string{"NACRE_API_URL": "http://n", "MORU_API_URL": "http://m", "E2B_API_URL": "http://e",
			"NACRE_API_KEY": "n", "E2B_API_KEY": "e"}, key: "n", api: "http://n", guest: "http://n"},
		{name: "then Moru's, then E2B's", env: map[string]string{"MORU_API_URL": "http://m", "E2B_API_KEY": "e", "E2B_SANDBOX_URL": "http://s"},
			key: "e", api: "http://m", guest: "http://s"},
		{name: "an option wins", env: map[string]string{"NACRE_API_URL": "http://n", "NACRE_API_KEY": "n"},
			opts: []Option{WithAPIURL("http://o/"), WithAPIKey("o")}, key: "o", api: "http://o", guest: "http://o"},
		{name: "a domain is enough", env: map[string]string{"NACRE_DOMAIN": "d.test:8443", "NACRE_API_KEY": "n"},
			key: "n", api: "https://api.d.test:8443", guest: "https://49983-i1.d.test:8443"},
		{name: "a sandbox URL is taken as it stands", opts: []Option{WithDomain("d.test"), WithSandboxURL("http://127.0.0.1:3000"), WithAPIKey("k")},
			key: "k", api: "https://api.d.test", guest: "http://127.0.0.1:3000"},
		{name: "an API's address is enough", opts: []Option{WithAPIURL("http://10.0.0.7:3000"), WithAPIKey("k")}, answer: "d.test:8443",
			key: "k", api: "http://10.0.0.7:3000", guest: "http://10.0.0.7:3000"},
		{name: "an API at the server's domain", opts: []Option{WithAPIURL("https://api.d.test:8443"), WithAPIKey("k")}, answer: "d.test:8443",
			key: "k", api: "https://api.d.test:8443", guest: "https://49983-i1.d.test:8443"},
		{name: "the server's domain wins", opts: []Option{WithDomain("old.test"), WithAPIKey("k")}, answer: "d.test",
			key: "k", api: "https://api.old.test", guest: "https://49983-i1.d.test"},
		{name: "a CA that is missing", opts: []Option{WithCA("/does/not/exist")}, err: "no such file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noEnvironment(t)
			for k, v := range tc.env {
				t.Setenv(k, v)
			}
			c, err := New(tc.opts...)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("%v, want it to say %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			sb, err := c.handle(sandboxAnswer{SandboxID: "i1", Domain: &tc.answer})
			if err != nil {
				t.Fatal(err)
			}
			if c.cfg.apiKey != tc.key || c.cfg.apiURL != tc.api || sb.guest.base != tc.guest {
				t.Errorf("key %q, API %q, guest %q", c.cfg.apiKey, c.cfg.apiURL, sb.guest.base)
			}
		})
	}
}

func TestPrivateAuthority(t *testing.T) {
	noEnvironment(t)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, created) }))
	defer srv.Close()
	srv.Config.ErrorLog = nil
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pemOf(srv.Certificate().Raw), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := New(WithAPIKey("k"), WithAPIURL(srv.URL), WithCA(ca))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Sandbox(t.Context(), "i"); err != nil {
		t.Errorf("with the authority: %v", err)
	}
	if _, err := New(WithAPIKey("k"), WithAPIURL(srv.URL), WithCA(ca), WithHTTPClient(http.DefaultClient)); err == nil {
		t.Error("an authority that would have no effect was accepted")
	}
}
