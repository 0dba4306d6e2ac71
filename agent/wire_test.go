package agent_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent"
	"github.com/nacrehq/nacre/agent/envd"
)

// The requests of this file have the shape of the real SDKs' ones.

// request sends body with headers given as "Name: value".
func (g *guest) request(t testing.TB, method, path string, body io.Reader, headers ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+g.addr+path, body)
	must(t, err)
	for _, h := range headers {
		if name, value, ok := strings.Cut(h, ": "); ok {
			req.Header.Set(name, value)
		}
	}
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(b), resp.Header
}

// unary makes a JSON RPC.
func (g *guest) unary(t testing.TB, method, body string, headers ...string) (int, string) {
	t.Helper()
	status, answer, _ := g.request(t, "POST", method, strings.NewReader(body),
		append([]string{"Content-Type: application/json", "Connect-Protocol-Version: 1"}, headers...)...)
	return status, compact(t, answer)
}

// compact takes out the white space that the JSON codec puts in at random.
func compact(t testing.TB, s string) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(s)); err != nil {
		t.Fatalf("%q is no JSON: %v", s, err)
	}
	return b.String()
}

// frame is one message of a Connect stream.
type frame struct {
	flags byte
	json  string
}

func envelope(body string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
}

// stream makes a JSON streaming RPC and passes each frame to fn until it returns false.
func (g *guest) stream(t testing.TB, method, body string, fn func(frame) bool, headers ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", "http://"+g.addr+method, bytes.NewReader(envelope(body)))
	must(t, err)
	req.Header.Set("Content-Type", "application/connect+json")
	req.Header.Set("Connect-Protocol-Version", "1")
	req.Header.Set("Content-Encoding", "identity")
	req.Header.Set("Connect-Content-Encoding", "identity")
	req.Header.Set("Accept-Encoding", "gzip, deflate")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != 200 {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("status %d: %s", resp.StatusCode, b)
	}
	if ce := resp.Header.Get("Connect-Content-Encoding"); ce != "" && ce != "identity" {
		t.Errorf("the stream is compressed: %s", ce)
	}
	for {
		var head [5]byte
		if _, err := io.ReadFull(resp.Body, head[:]); err == io.EOF {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		msg := make([]byte, binary.BigEndian.Uint32(head[1:]))
		_, err := io.ReadFull(resp.Body, msg)
		must(t, err)
		if head[0]&1 != 0 {
			t.Fatal("a frame is compressed")
		}
		if !fn(frame{head[0], compact(t, string(msg))}) {
			return
		}
	}
}

// frames collects a whole stream, with pids and keepalives as they come.
func (g *guest) frames(t testing.TB, method, body string, headers ...string) []string {
	t.Helper()
	var out []string
	g.stream(t, method, body, func(f frame) bool {
		out = append(out, fmt.Sprintf("%d %s", f.flags, f.json))
		return true
	}, headers...)
	return out
}

func startBody(script string, more string) string {
	arg, _ := json.Marshal(script)
	return `{"process":{"cmd":"/bin/bash","args":["-l","-c",` + string(arg) + `]}` + more + `}`
}

const (
	startRPC   = "/process.Process/Start"
	connectRPC = "/process.Process/Connect"
)

func asUser(name string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"))
}

// TestWire2_5_StartStream is a command run, frame by frame.
func TestWire2_5_StartStream(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	got := g.frames(t, startRPC, startBody("printf out; exit 3", `,"stdin":false`), "Connect-Timeout-Ms: 60000", "Keepalive-Ping-Interval: 50")
	if len(got) != 4 || !strings.HasPrefix(got[0], `0 {"event":{"start":{"pid":`) {
		t.Fatalf("frames %q", got)
	}
	want := []string{
		`0 {"event":{"data":{"stdout":"b3V0"}}}`,
		`0 {"event":{"end":{"exitCode":3,"exited":true,"status":"exit status 3","error":"exit status 3"}}}`,
		`2 {}`,
	}
	for i, w := range want {
		if got[i+1] != w {
			t.Errorf("frame %d: %s, want %s", i+1, got[i+1], w)
		}
	}
	got = g.frames(t, startRPC, startBody("kill -9 $$", ""))
	if w := `0 {"event":{"end":{"exitCode":-1,"status":"signal: killed","error":"signal: killed"}}}`; got[1] != w {
		t.Errorf("killed: %s, want %s", got[1], w)
	}
	got = g.frames(t, startRPC, startBody("true", ""))
	if w := `0 {"event":{"end":{"exited":true,"status":"exit status 0"}}}`; got[1] != w {
		t.Errorf("success: %s, want %s", got[1], w)
	}
}

// TestWire2_4_ErrorsOfStreams: HTTP 200, and the error in the end frame.
func TestWire2_4_ErrorsOfStreams(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	for _, c := range []struct {
		what, method, body, want string
		headers                  []string
	}{
		{"cwd", startRPC, `{"process":{"cmd":"/bin/bash","cwd":"/missing"}}`, `2 {"error":{"code":"invalid_argument","message":"cwd '/missing' does not exist"}}`, nil},
		{"cwd that is a file", startRPC, `{"process":{"cmd":"/bin/bash","cwd":"/etc/passwd"}}`, `2 {"error":{"code":"invalid_argument","message":"cwd '/etc/passwd' is not a directory"}}`, nil},
		{"long argument", startRPC, `{"process":{"cmd":"/bin/bash","args":["` + strings.Repeat("x", 131072) + `"]}}`, `2 {"error":{"code":"invalid_argument","message":"the command or an argument has 131072 bytes, and the kernel passes at most 131071; put it into a file or send it as input"}}`, nil},
		{"long variable", startRPC, `{"process":{"cmd":"/bin/bash","envs":{"A":"` + strings.Repeat("x", 131070) + `"}}}`, `2 {"error":{"code":"invalid_argument","message":"the variable 'A' has 131072 bytes with its name, and the kernel passes at most 131071; put it into a file"}}`, nil},
		{"user", startRPC, startBody("true", ""), `2 {"error":{"code":"unauthenticated","message":"invalid username: 'ghost'"}}`, []string{asUser("ghost")}},
		{"pid", connectRPC, `{"process":{"pid":999999}}`, `2 {"error":{"code":"not_found","message":"process with pid 999999 not found"}}`, nil},
	} {
		got := g.frames(t, c.method, c.body, c.headers...)
		if len(got) != 1 || got[0] != c.want {
			t.Errorf("%s: %q, want %s", c.what, got, c.want)
		}
	}
}

// TestTrap07_FloatTimeout: Python sends "500.0".
func TestTrap07_FloatTimeout(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	began := time.Now()
	got := g.frames(t, startRPC, startBody("sleep 1000", ""), "Connect-Timeout-Ms: 500.0")
	if len(got) != 2 || !strings.HasPrefix(got[1], `2 {"error":{"code":"deadline_exceeded"`) {
		t.Errorf("frames %q", got)
	}
	if d := time.Since(began); d < 450*time.Millisecond || d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
	if status, answer := g.unary(t, "/process.Process/List", "{}", "Connect-Timeout-Ms: 60000.0"); status != 200 || answer != "{}" {
		t.Errorf("unary: %d %s; the process must be gone", status, answer)
	}
}

// TestWire2_4_KeepaliveEvents: a silent stream shows that it lives.
func TestWire2_4_KeepaliveEvents(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	got := g.frames(t, startRPC, startBody("sleep 1.4", ""), "Keepalive-Ping-Interval: 1")
	if len(got) != 4 || got[1] != `0 {"event":{"keepalive":{}}}` {
		t.Errorf("frames %q", got)
	}
}

// TestWire4_03_SplitCharacter: half a character is held back, and is one event
// of its own at the end.
func TestWire4_03_SplitCharacter(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	var text strings.Builder
	for _, script := range []string{`head -c 8191 /dev/zero | tr '\0' a; printf '\xe2'`, `printf '\xe2'; sleep 0.3; printf '\x82\xac'`} {
		text.Reset()
		g.stream(t, startRPC, startBody(script, ""), func(f frame) bool {
			var m struct {
				Event struct{ Data struct{ Stdout []byte } }
			}
			must(t, json.Unmarshal([]byte(f.json), &m))
			text.WriteString(strings.ToValidUTF8(string(m.Event.Data.Stdout), "\uFFFD"))
			return true
		})
		if want := strings.Repeat("a", 8191) + "\uFFFD"; text.String() != want && text.String() != "€" {
			t.Errorf("%s gave %d bytes ending in %q", script, text.Len(), text.String()[max(0, text.Len()-8):])
		}
	}
}

// TestWire2_5_UnaryCalls: what the SDKs send and read.
func TestWire2_5_UnaryCalls(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	var pid int
	g.stream(t, startRPC, `{"process":{"cmd":"/bin/bash","args":["-c","read x; exit 9"],"envs":{"A":"b"}},"stdin":true,"tag":"t"}`, func(f frame) bool {
		_, err := fmt.Sscanf(f.json, `{"event":{"start":{"pid":%d}}}`, &pid)
		must(t, err)
		return false // closing the connection must not end the process
	})
	for _, c := range []struct{ method, body, want string }{
		{"List", `{}`, fmt.Sprintf(`{"processes":[{"config":{"cmd":"/bin/bash","args":["-c","read x; exit 9"],"envs":{"A":"b"}},"pid":%d,"tag":"t"}]}`, pid)},
		{"SendInput", fmt.Sprintf(`{"process":{"pid":%d},"input":{"stdin":""}}`, pid), `{}`},
		{"SendInput", `{"process":{"tag":"t"},"input":{"stdin":"Cg=="}}`, `{}`},
	} {
		if status, got := g.unary(t, "/process.Process/"+c.method, c.body); status != 200 || got != c.want {
			t.Errorf("%s: %d %s, want %s", c.method, status, got, c.want)
		}
	}
	got := g.frames(t, connectRPC, fmt.Sprintf(`{"process":{"pid":%d}}`, pid))
	if len(got) != 3 || !strings.Contains(got[1], `"exitCode":9`) {
		t.Errorf("connect: %q", got)
	}
	status, answer := g.unary(t, "/process.Process/SendSignal", `{"process":{"pid":999999},"signal":"SIGNAL_SIGKILL"}`)
	if want := `{"code":"not_found","message":"process with pid 999999 not found"}`; status != 404 || answer != want {
		t.Errorf("signal: %d %s", status, answer)
	}
}

// TestWire2_2_Auth: who needs what.
func TestWire2_2_Auth(t *testing.T) {
	g := newGuest(t)
	if status, _, _ := g.request(t, "GET", "/health", nil); status != 204 {
		t.Errorf("health before init: %d", status)
	}
	if status, _ := g.unary(t, "/process.Process/List", "{}"); status != 401 {
		t.Errorf("a call before init: %d", status)
	}
	g.initialised(t, "secret")
	const good = "X-Access-Token: secret"
	for _, c := range []struct {
		method, path string
		header       string
		status       int
	}{
		{"GET", "/health", "", 204},
		{"GET", "/health", "X-Access-Token: wrong", 204},
		{"GET", "/files?path=/etc/hostname", "", 401},
		{"GET", "/files?path=/etc/hostname", "X-Access-Token: wrong", 401},
		{"GET", "/files?path=/etc/passwd", good, 200},
		{"HEAD", "/files?path=/etc/passwd", good, 200},
		{"DELETE", "/files?path=/etc/passwd", good, 405},
		{"GET", "/files?path=/etc/passwd&username=ghost", good, 401},
		{"POST", "/process.Process/List", "X-Access-Token: wrong", 401},
		{"GET", "/nothing", good, 404},
	} {
		var body io.Reader
		headers := []string{c.header}
		if c.method == "POST" {
			body, headers = strings.NewReader("{}"), append(headers, "Content-Type: application/json")
		}
		status, answer, _ := g.request(t, c.method, c.path, body, headers...)
		if status != c.status {
			t.Errorf("%s %s with %q: %d, want %d", c.method, c.path, c.header, status, c.status)
		}
		if status >= 400 && status != 404 && c.method == "GET" {
			var e envd.ErrorBody
			if json.Unmarshal([]byte(answer), &e) != nil || e.Code != status || e.Message == "" {
				t.Errorf("%s: body %q", c.path, answer)
			}
		}
	}
}

// TestTrap01_CallsThatAreNone: what is no call has a body in the form of a call's error.
func TestTrap01_CallsThatAreNone(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	for _, c := range []struct {
		method, path, media string
		status              int
		code                string
	}{
		{"GET", "/process.Process/List", "", 405, "unimplemented"},
		{"DELETE", "/filesystem.Filesystem/Stat", "application/json", 405, "unimplemented"},
		{"POST", "/process.Process/Nope", "application/json", 404, "unimplemented"},
		{"POST", "/filesystem.Filesystem/", "application/json", 404, "unimplemented"},
		{"POST", "/process.Process/List", "text/plain", 415, "invalid_argument"},
		{"POST", "/process.Process/List", "", 415, "invalid_argument"},
		{"POST", "/process.Process/List", "application/connect+json", 415, "invalid_argument"},
		{"POST", "/process.Process/Start", "application/json", 415, "invalid_argument"},
		{"POST", "/process.Process/List", "Application/JSON; charset=utf-8", 200, ""},
	} {
		status, body, _ := g.request(t, c.method, c.path, strings.NewReader("{}"), "Content-Type: "+c.media)
		var e struct{ Code, Message string }
		if status != c.status || json.Unmarshal([]byte(body), &e) != nil || e.Code != c.code || (e.Message == "") != (c.code == "") {
			t.Errorf("%s %s %q: %d %q, want %d %s", c.method, c.path, c.media, status, body, c.status, c.code)
		}
	}
}

// TestEmptyPathLosesNothing: an empty path means the home where something is read; to
// remove or move that by a name left out would lose everything in it.
func TestEmptyPathLosesNothing(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	for _, c := range []struct{ method, body string }{
		{"Remove", `{}`}, {"Remove", `{"path":""}`}, {"Move", `{"destination":"x"}`}, {"Move", `{"source":"x"}`},
	} {
		status, body := g.unary(t, "/filesystem.Filesystem/"+c.method, c.body)
		if status != 400 || !strings.Contains(body, "invalid_argument") {
			t.Errorf("%s %s: %d %s", c.method, c.body, status, body)
		}
	}
	if _, err := os.Stat(g.home); err != nil {
		t.Error(err)
	}
}

// TestFault35_HostRoutesFromOutside: whoever comes without the host token finds
// nothing, by any method.
func TestFault35_HostRoutesFromOutside(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "secret")
	for _, path := range []string{"/init", "/metrics", "/logs", "/envs", "/tunnel?port=22"} {
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"} {
			status, _, _ := g.request(t, method, path, nil, "X-Access-Token: secret")
			if status != 404 {
				t.Errorf("%s %s: %d", method, path, status)
			}
			if status, _, _ := g.request(t, method, path, nil, "X-Host-Token: wrong"); status != 401 && status != 404 {
				t.Errorf("%s %s with a wrong host token: %d", method, path, status)
			}
		}
	}
	if status, body, _ := g.request(t, "GET", "/envs", nil, "X-Host-Token: host"); status != 200 || body != "{}" {
		t.Errorf("envs for the host: %d %s", status, body)
	}
}

// TestFault37_SignedURLs: forged, tampered and expired ones.
// form is a multipart body of one file, the way clients without a library write it.
// TestTrap05_UploadAnswer: exactly name, type and path, in order.
// TestWire2_1_Downloads: lengths, ranges, kernel files and what is no file.
// TestFault29_OddFiles: what would block or never end is refused at once.
// TestFault15_DiskFull: 507, and what was there before is still there.
// TestWire6_ChunkedBodies: newer clients send no Content-Length, for calls neither.
func TestWire6_ChunkedBodies(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	status, body, _ := g.request(t, "POST", "/filesystem.Filesystem/Stat", struct{ io.Reader }{strings.NewReader(`{"path":"/"}`)},
		"Content-Type: application/json", "Connect-Timeout-Ms: 30000")
	if status != 200 || !strings.Contains(body, "FILE_TYPE_DIRECTORY") {
		t.Errorf("%d %s", status, body)
	}
}

// TestFault32_LyingFrames: lengths that are not true, garbage and deep nesting
// are refused, and the agent goes on.
func TestFault32_LyingFrames(t *testing.T) {
	g := newGuest(t)
	c := g.initialised(t, "")
	deep := strings.Repeat(`{"process":`, 100_000)
	for what, body := range map[string][]byte{
		"4 GiB announced":  {0, 0xff, 0xff, 0xff, 0xff, 'x'},
		"longer than sent": {0, 0, 0, 1, 0, '{', '}'},
		"shorter":          append([]byte{0, 0, 0, 0, 1}, `{"process":{}}`...),
		"no header":        {0, 0},
		"garbage":          envelope("\x00\xff{{{{"),
		"deep":             envelope(deep),
		"compressed":       {1, 0, 0, 0, 2, '{', '}'},
		"empty":            {},
	} {
		status, answer, _ := g.request(t, "POST", startRPC, bytes.NewReader(body), "Content-Type: application/connect+json")
		if status != 200 || !strings.Contains(answer, `"error"`) {
			t.Errorf("%s: %d %.100q", what, status, answer)
		}
	}
	if status, _ := g.unary(t, "/filesystem.Filesystem/Stat", `{"path":`+strings.Repeat("[", 200_000)); status != 400 {
		t.Errorf("nested arrays: %d", status)
	}
	must(t, c.Healthy(context.Background()))
}

// TestTunnel reaches what listens on the guest's loopback only.
func TestTunnel(t *testing.T) {
	g := newGuest(t)
	c := g.initialised(t, "")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = ln.Close() }()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		b, _ := io.ReadAll(conn) // until our side is closed for writing
		_, _ = conn.Write(bytes.ToUpper(b))
		_ = conn.Close()
	}()
	port := ln.Addr().(*net.TCPAddr).Port
	conn, err := c.Tunnel(context.Background(), port)
	must(t, err)
	_, err = io.WriteString(conn, "through")
	must(t, err)
	must(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	b, err := io.ReadAll(conn)
	must(t, err)
	if string(b) != "THROUGH" {
		t.Errorf("got %q", b)
	}
	_ = conn.Close()
	_ = ln.Close()
	if _, err := c.Tunnel(context.Background(), port); !nacre.IsCode(err, nacre.CodeUnavailable) {
		t.Errorf("a closed port: %v", err)
	}
	if status, _, _ := g.request(t, "GET", "/tunnel?port=99999", nil, "X-Host-Token: host"); status != 400 {
		t.Errorf("a bad port: %d", status)
	}
}

// FuzzRPC throws bytes at the calls that change nothing, in both codecs: each
// gets an answer, and the agent lives.
func FuzzRPC(f *testing.F) {
	a := agent.New(agent.Config{})
	f.Cleanup(a.Close)
	init := httptest.NewRequest("POST", "/init", strings.NewReader(`{"hostToken":"host"}`))
	a.ServeHTTP(httptest.NewRecorder(), init)
	f.Add(byte(0), "1.5", envelope(`{"process":{"pid":1}}`))
	f.Add(byte(1), "", []byte(`{"path":"~/../x"}`))
	f.Add(byte(6), "-1", []byte{0, 0xff, 0xff, 0xff, 0xff})
	f.Add(byte(12), "NaN", []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, which byte, timeout string, body []byte) {
		methods := []string{connectRPC, "/filesystem.Filesystem/Stat", "/process.Process/SendInput", "/process.Process/Update", "/process.Process/StreamInput", "/filesystem.Filesystem/GetWatcherEvents"}
		types := []string{"application/connect+json", "application/json", "application/connect+proto", "application/proto"}
		r := httptest.NewRequest("POST", methods[int(which)%len(methods)], bytes.NewReader(body))
		r.Header.Set("Content-Type", types[int(which)/len(methods)%len(types)])
		r.Header.Set("Connect-Timeout-Ms", timeout)
		r.Header.Set("Authorization", "Basic "+timeout)
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError {
			t.Errorf("%s: %d %s", r.URL.Path, w.Code, w.Body)
		}
	})
}

// TestInitNeedsAHostToken: without one the next caller could take the guest over.
func TestInitNeedsAHostToken(t *testing.T) {
	g := newGuest(t)
	if status, body, _ := g.request(t, "POST", "/init", strings.NewReader(`{"accessToken":"x"}`)); status != 400 {
		t.Errorf("%d %s", status, body)
	}
	g.initialised(t, "")
}
