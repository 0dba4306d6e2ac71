package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// miosa is raw HTTP to the MIOSA dialect.
type miosa struct {
	t    testing.TB
	base string
	key  string
}

func (d *daemon) miosa() *miosa {
	d.t.Helper()
	var vars map[string]string
	if err := json.Unmarshal([]byte(d.cli("env", "--json")), &vars); err != nil {
		d.t.Fatal(err)
	}
	return &miosa{d.t, vars["MIOSA_BASE_URL"], vars["MIOSA_API_KEY"]}
}

// call sends a request and decodes the answer, which must have the status.
func (m *miosa) call(want int, method, path, body string, header ...string) map[string]any {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), method, m.base+path, strings.NewReader(body))
	if err != nil {
		m.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+m.key)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		m.t.Fatalf("%s %s: %d %s %v, want %d", method, path, resp.StatusCode, text, err, want)
	}
	out := map[string]any{}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &out); err != nil {
			m.t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
	return out
}

// TestMiosaOverRestart: after a kill -9 what ran runs, what ended is still told of,
// a terminal goes on, and a key means the sandbox that it made.
func TestMiosaOverRestart(t *testing.T) {
	d := start(t)
	m := d.miosa()
	made := m.call(201, "POST", "/sandboxes", `{"timeout_sec":300}`, "Idempotency-Key", "k")
	box := "/sandboxes/" + made["id"].(string)
	ended := m.call(201, "POST", box+"/processes", `{"command":"echo last words; exit 4","name":"short"}`)["pid"].(string)
	runs := m.call(201, "POST", box+"/processes", `{"command":"i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.1; done","name":"long"}`)["pid"].(string)
	term := m.call(201, "POST", box+"/terminal", `{}`)
	m.typeInto(term["ws_url"].(string), "MARK=still; echo o''k\n", "ok")
	eventually(t, func() bool {
		return strings.Contains(m.call(200, "GET", box+"/processes/"+ended+"/logs", "")["data"].(string), "last words") &&
			strings.Contains(m.call(200, "GET", box+"/logs", "")["logs"].(string), "last words") &&
			strings.Contains(m.call(200, "GET", box+"/logs", "")["logs"].(string), "exit status 4")
	})

	d.kill9()
	d.up()

	if again := m.call(201, "POST", "/sandboxes", `{"timeout_sec":300}`, "Idempotency-Key", "k"); again["id"] != made["id"] {
		t.Errorf("the key made another sandbox: %v", again["id"])
	}
	got := m.call(200, "GET", box+"/processes/"+ended, "")
	if got["status"] != "exited" || got["exit_code"] != 4.0 || got["name"] != "short" {
		t.Errorf("the ended process: %v", got)
	}
	if text := m.call(200, "GET", box+"/processes/"+ended+"/logs", "")["data"]; text != "last words\n" {
		t.Errorf("its output: %q", text)
	}
	if got := m.call(200, "GET", box+"/processes/"+runs, ""); got["status"] != "running" || got["name"] != "long" {
		t.Errorf("the running process: %v", got)
	}
	lines := func() int {
		return strings.Count(m.call(200, "GET", box+"/processes/"+runs+"/logs?tail=10000", "")["data"].(string), "\n")
	}
	before := lines()
	eventually(t, func() bool { return lines() > before+3 })
	m.typeInto(term["ws_url"].(string), "echo $MARK\n", "still")
	m.call(204, "DELETE", box+"/processes/"+runs, "")
	if got := m.call(200, "GET", box+"/processes/"+runs, ""); got["status"] != "killed" {
		t.Errorf("the stopped process: %v", got)
	}
}

// TestMiosaJobsMissNothing: what a job says while its sandbox is paused and goes on,
// and while the server is away, is in its output, each line once and in its place; a
// terminal shows what it showed.
func TestMiosaJobsMissNothing(t *testing.T) {
	d := start(t)
	m := d.miosa()
	box := "/sandboxes/" + m.call(201, "POST", "/sandboxes", `{"timeout_sec":300}`)["id"].(string)
	pid := m.call(201, "POST", box+"/processes", `{"command":"i=0; while true; do echo tick $i; echo tock $i >&2; i=$((i+1)); sleep 0.005; done"}`)["pid"].(string)
	term := m.call(201, "POST", box+"/terminal", `{}`)
	m.typeInto(term["ws_url"].(string), "echo sho''wn\n", "shown")
	lines := func() (n int) {
		t.Helper()
		var next [2]int
		for line := range strings.Lines(m.call(200, "GET", box+"/processes/"+pid+"/logs?tail=100000", "")["data"].(string)) {
			kind := 0
			if strings.HasPrefix(line, "tock") {
				kind = 1
			}
			if want := fmt.Sprintf("%s %d\n", [2]string{"tick", "tock"}[kind], next[kind]); line != want {
				t.Fatalf("after %d lines comes %q, want %q", n, line, want)
			}
			next[kind]++
			n++
		}
		return n
	}
	more := func() {
		t.Helper()
		before := lines()
		eventually(t, func() bool { return lines() > before+100 })
	}
	more()
	for range 4 {
		m.call(200, "POST", box+"/pause", "")
		m.call(200, "POST", box+"/resume", "")
		more()
	}
	d.kill9()
	d.up()
	more()
	m.typeInto(term["ws_url"].(string), "", "shown")
}

func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(slow(patience)); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come to that in time")
		}
	}
}

// typeInto types into a terminal until it shows the text.
func (m *miosa) typeInto(url, text, want string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), slow(patience))
	defer cancel()
	conn, _, err := websocket.Dial(ctx, url, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.CloseNow()
	if err := conn.Write(ctx, websocket.MessageBinary, []byte(text)); err != nil {
		m.t.Fatal(err)
	}
	var shown bytes.Buffer
	for !strings.Contains(shown.String(), want) {
		_, data, err := conn.Read(ctx)
		if err != nil {
			m.t.Fatalf("%v; it showed %q", err, &shown)
		}
		shown.Write(data)
	}
}

// TestMiosaExecSpeed: a command through the API costs at most twice one through the
// edge.
func TestMiosaExecSpeed(t *testing.T) {
	d := start(t)
	m := d.miosa()
	id := m.call(201, "POST", "/sandboxes", `{"timeout_sec":300}`)["id"].(string)
	box, err := d.client().Connect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	ways := [...]func(){
		func() {
			if _, err := box.Run(t.Context(), "true"); err != nil {
				t.Fatal(err)
			}
		},
		func() { m.call(200, "POST", "/sandboxes/"+id+"/exec", `{"command":"true"}`) },
	}
	// In turns, so that what else the host does hits both alike.
	best := [...]time.Duration{time.Hour, time.Hour}
	for range 41 {
		for i, run := range ways {
			begin := time.Now()
			run()
			best[i] = min(best[i], time.Since(begin))
		}
	}
	direct, through := best[0], best[1]
	t.Logf("through the API %v, through the edge %v", through, direct)
	if through > 2*direct {
		t.Errorf("a command takes %v through the API, %v through the edge", through, direct)
	}
}
