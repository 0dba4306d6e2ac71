package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
)

// forAgent addresses a sandbox's agent by routing headers.
func (d *daemon) forAgent(id string) func(*http.Request) {
	return as("E2b-Sandbox-Id", id, "E2b-Sandbox-Port", fmt.Sprint(nacre.AgentPort), "X-Access-Token", d.accessToken(id))
}

func TestFault29_HostilePaths(t *testing.T) {
	d := start(t, "--memory-mib", "512", "--standby", "0")
	sb := many(t, d.client(), 1)[0]
	shape := d.forAgent(sb.ID)
	secret := d.path("host-secret")
	if err := os.WriteFile(secret, []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Run(t.Context(), "ln -s loop loop; ln -s / root; ln -s "+secret+" there; mkfifo fifo; mkdir dir"); err != nil {
		t.Fatal(err)
	}
	ask := func(method, path string, body []byte) answer {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		a, err := d.ask(ctx, method, "/files?path="+url.QueryEscape(path), body, shape, as("Content-Type", "application/octet-stream"))
		if err != nil {
			t.Fatalf("%s %.80q: %v", method, path, err)
		}
		return a
	}
	up := strings.Repeat("../", 40)
	for _, path := range []string{
		secret, up + secret[1:], "/" + up + secret, "root" + secret, "there", "/proc/1/root" + secret, "/proc/self/root" + secret, "/proc/self/cwd/" + up + secret,
		"/proc/1/cwd" + secret, "/proc/self/fd/0", "/proc/self/fd/7", "//" + secret, "/./" + secret, "file://" + secret, "\\..\\.." + secret,
		"/dev/mem", "/dev/kmem", "/dev/vda", "/dev/zero", "/dev/random", "/dev/tty", "/proc/kcore", "/proc/self/mem", "/dev/fd/0",
		"loop", "loop/x", "fifo", "dir", "/", "", ".", "..", "dir/", "\x00", "a\x00b", "/etc/passwd\x00.txt", "\xff\xfe", "a\nb\r\nX-A: b",
		strings.Repeat("a", 256), strings.Repeat("a/", 2047), strings.Repeat("a", 4096), strings.Repeat("/x", 20000), "~", "~root/x", "~/../../" + secret,
	} {
		if a := ask("GET", path, nil); strings.Contains(a.Body, "of the host") || a.Status >= 500 && a.Status != 507 {
			t.Errorf("GET %.80q: %s", path, a)
		}
		a := ask("POST", path, []byte("written"))
		if a.Status >= 500 && a.Status != 507 {
			t.Errorf("POST %.80q: %s", path, a)
		}
	}
	// The same names beside a file: the parts of a form.
	for _, name := range []string{secret, up + secret, "..", "a\x00b", strings.Repeat("n", 5000)} {
		var form bytes.Buffer
		w := multipart.NewWriter(&form)
		part, err := w.CreateFormFile("file", name)
		if err == nil {
			_, err = io.WriteString(part, "written")
		}
		if err != nil || w.Close() != nil {
			t.Fatal(err)
		}
		a, err := d.ask(t.Context(), "POST", "/files", form.Bytes(), shape, as("Content-Type", w.FormDataContentType()))
		if err != nil || a.Status >= 500 {
			t.Errorf("a part named %.80q: %s %v", name, a, err)
		}
	}
	if text, err := os.ReadFile(secret); err != nil || string(text) != "of the host" {
		t.Errorf("the host's file is %q now: %v", text, err)
	}
	if res, err := sb.Run(t.Context(), "echo fine"); err != nil || res.Stdout != "fine\n" {
		t.Errorf("the sandbox afterwards: %v", err)
	}
}

// hostileIDs are no ids of anything.
var hostileIDs = []string{
	"..", ".", "../..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "a%2Fb", "%00", "i%00", "i%0d%0ainjected%3a%20yes", "%0ainjected", "'%20OR%201=1--",
	"%27;DROP%20TABLE%20sandboxes;--", "$(reboot)", "%60reboot%60", "%7C%20reboot", "*", "%25", "%ff%fe", "%F0%9F%92%A3", "İ", "i%CC%81",
	"I" + strings.Repeat("A", 20), "i" + strings.Repeat("0", 19), "i" + strings.Repeat("0", 21), "i" + strings.Repeat("-", 20), strings.Repeat("i", 8000), "null", "-1", "0", "{}", "[]",
	"i" + strings.Repeat("0", 20) + "%20", "i" + strings.Repeat("0", 20) + ".", "i" + strings.Repeat("0", 20) + "/..",
}

func TestFault30_HostileIDs(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0", "--log-level", "debug")
	key := d.note().APIKey
	ok := func(what string, a answer, err error, codes ...int) {
		t.Helper()
		var body struct {
			Code    int
			Message string
		}
		switch {
		case err != nil:
			t.Errorf("%.100s: %v", what, err)
		case !slices.Contains(codes, a.Status):
			t.Errorf("%.100s: %.200s", what, a)
		case a.Status >= 400 && (a.decode(&body) != nil || body.Code != a.Status || body.Message == ""):
			t.Errorf("%.100s: the body says nothing: %.200s", what, a)
		}
	}
	for _, id := range hostileIDs {
		for _, route := range [][2]string{
			{"GET", "/sandboxes/%s"}, {"DELETE", "/sandboxes/%s"}, {"POST", "/sandboxes/%s/timeout"}, {"POST", "/sandboxes/%s/connect"},
			{"GET", "/sandboxes/%s/logs"}, {"GET", "/v2/sandboxes/%s/logs"}, {"GET", "/sandboxes/%s/metrics"}, {"PUT", "/sandboxes/%s/network"},
			{"GET", "/templates/%s"}, {"GET", "/templates/aliases/%s"}, {"DELETE", "/api-keys/%s"},
		} {
			a, err := d.ask(t.Context(), route[0], fmt.Sprintf(route[1], id), []byte(`{"timeout":60}`), as("X-API-Key", key, "Content-Type", "application/json"))
			// "." and ".." change which route it is.
			ok(route[0]+" "+fmt.Sprintf(route[1], id), a, err, 400, 404, 405, 301, 307)
		}
		plainID, err := url.PathUnescape(id)
		if err != nil {
			t.Fatal(err)
		}
		a := d.call(key, "POST", "/sandboxes", map[string]any{"templateID": plainID})
		ok("a template "+id, a, nil, 400, 404)
		if !strings.ContainsAny(plainID, "\x00\r\n") {
			a, err := d.ask(t.Context(), "GET", "/health", nil, as("E2b-Sandbox-Id", plainID, "E2b-Sandbox-Port", "49983"))
			ok("a routing header "+id, a, err, 400, 404, 502, 401)
			if _, err := d.try("kill", "--", plainID); err == nil {
				t.Errorf("nacre kill %.50q did not fail", plainID)
			}
		}
	}
	// What no client library sends.
	for _, text := range []string{
		"GET /sandboxes/../../x HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /sandboxes/a\x00b HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: 80-../..\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: 80-i\x01.nacre.localhost\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: 80-" + strings.Repeat("i", 300) + ".nacre.localhost\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: 99999-i" + strings.Repeat("0", 20) + ".nacre.localhost\r\n\r\n",
		"GET http://80-i" + strings.Repeat("0", 20) + ".nacre.localhost/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\r\n\r\n\r\n",
	} {
		if status := d.rawStatus(text); status >= 500 && status != 502 {
			t.Errorf("%.60q: %d", text, status)
		}
	}
	for line := range strings.Lines(d.log.String()) {
		if strings.HasPrefix(line, "injected") {
			t.Errorf("a client wrote a line of the log: %s", line)
		}
	}
	if _, err := d.client().Create(t.Context()); err != nil {
		t.Errorf("the server afterwards: %v", err)
	}
}

// rawStatus sends bytes and returns the status of what comes back, 0 for none.
func (d *daemon) rawStatus(text string) int {
	d.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(d.note().APIURL, "http://"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		d.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return 0
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestFault35_AgentsOwnRoutes: what the host alone may ask of a guest's agent
// does not exist for anybody else, by whatever way and method.
func TestFault35_AgentsOwnRoutes(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0")
	sb := many(t, d.client(), 1)[0]
	token := d.accessToken(sb.ID)
	host := fmt.Sprintf("%d-%s.%s", nacre.AgentPort, sb.ID, d.note().Domain)
	ways := map[string]func(*http.Request){
		"host name":       as("Host", host),
		"host name, key":  as("Host", host, "X-API-Key", d.note().APIKey),
		"routing headers": as("E2b-Sandbox-Id", sb.ID, "E2b-Sandbox-Port", "49983"),
		"Moru's headers":  as("Moru-Sandbox-Id", sb.ID, "Moru-Sandbox-Port", "49983"),
	}
	paths := []string{envd.PathInit, envd.PathMetrics, envd.PathLogs, envd.PathEnvs, envd.PathTunnel, envd.PathTunnel + "?port=22", "/upgrade", "/freeze", "/snapshot", "/debug/pprof/"}
	for _, p := range []string{"//init", "/./init", "/%69nit", "/init/", "/x/../init", "/health/../init", "/files/../init", "/INIT", "/init%2f", "/init;x", "/init%00", "/process.Process/../init", "/process.Process/%2e%2e/init"} {
		paths = append(paths, p)
	}
	body := []byte(`{"accessToken":"","envVars":{"STOLEN":"1"},"hostname":"stolen"}`)
	for name, way := range ways {
		for _, path := range paths {
			for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "FOO"} {
				for _, extra := range []func(*http.Request){
					as("X-Access-Token", token), as("X-Access-Token", token, "X-Host-Token", token),
					as("X-Access-Token", token, "Connection", "Upgrade", "Upgrade", "tcp"),
				} {
					a, err := d.ask(t.Context(), method, path, body, way, extra, as("Content-Type", "application/json"))
					if err != nil || a.Status != 404 {
						t.Errorf("%s %s by %s: %s %v", method, path, name, a, err)
					}
				}
			}
		}
	}
	// From the inside there is no token to be had either.
	for _, line := range []string{
		`curl -s -o /dev/null -w %{http_code} -X POST -d '{"accessToken":""}' http://127.0.0.1:49983/init`,
		`curl -s -o /dev/null -w %{http_code} http://127.0.0.1:49983/envs`,
		`curl -s -o /dev/null -w %{http_code} -H 'X-Host-Token: x' http://127.0.0.1:49983/logs`,
	} {
		res, err := sb.Run(t.Context(), line)
		if err != nil || res.Stdout != "401" && res.Stdout != "404" {
			t.Errorf("%s: %+v %v", line, res, err)
		}
	}
	if res, err := sb.Run(t.Context(), "echo [$STOLEN] $(hostname)"); err != nil || strings.Contains(res.Stdout, "stolen") || !strings.HasPrefix(res.Stdout, "[]") {
		t.Errorf("the sandbox afterwards: %+v %v", res, err)
	}
}
