package client

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/agent/envd"
)

func TestWire3_3_GuestRequestsCanBeRouted(t *testing.T) {
	var header http.Header
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { header = r.Header; w.WriteHeader(204) })
	token := "tok"
	sb, err := c.handle(sandboxAnswer{SandboxID: "i1", EnvdAccessToken: &token})
	if err != nil {
		t.Fatal(err)
	}
	if up, err := sb.IsRunning(t.Context()); !up || err != nil {
		t.Fatalf("%v %v", up, err)
	}
	if header.Get("E2b-Sandbox-Id") != "i1" || header.Get("E2b-Sandbox-Port") != "49983" || header.Get("X-Access-Token") != "tok" ||
		!strings.HasPrefix(header.Get("User-Agent"), "nacre-go/") {
		t.Errorf("%v", header)
	}
	if header.Get("X-API-Key") != "" {
		t.Error("the API key was sent to a guest")
	}
}

func TestWire3_2_EdgeAnswersForTheGuest(t *testing.T) {
	answer, status := "", http.StatusBadGateway
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status); io.WriteString(w, answer) })
	sb, err := c.handle(sandboxAnswer{SandboxID: "i1"})
	if err != nil {
		t.Fatal(err)
	}
	answer = `{"sandboxId":"i1","message":"The sandbox was not found","code":502}`
	if up, err := sb.IsRunning(t.Context()); up || err != nil {
		t.Errorf("gone: %v %v", up, err)
	}
	for name, call := range map[string]func() error{
		"run":    func() error { _, err := sb.Run(t.Context(), "true"); return err },
		"list":   func() error { _, err := sb.Processes(t.Context()); return err },
		"read":   func() error { _, err := sb.Files.ReadFile(t.Context(), "x"); return err },
		"write":  func() error { return sb.Files.WriteFile(t.Context(), "x", []byte("y")) },
		"exists": func() error { _, err := sb.Files.Exists(t.Context(), "x"); return err },
		"watch":  func() error { _, err := sb.Files.Watch(t.Context(), "x", false); return err },
	} {
		err := call()
		if !errors.Is(err, ErrNotRunning) || !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotFound) {
			t.Errorf("%s on a sandbox that is gone: %v", name, err)
		}
		if err != nil && !strings.Contains(err.Error(), "sandbox i1 is not running") {
			t.Errorf("%s: %v", name, err)
		}
	}
	answer = `{"sandboxId":"i1","message":"The sandbox is running but port is not open","port":49983,"code":502}`
	if up, err := sb.IsRunning(t.Context()); up || errors.Is(err, ErrNotRunning) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("port closed: %v %v", up, err)
	}
	answer, status = `{"code":401,"message":"wrong token"}`, http.StatusUnauthorized
	if up, err := sb.IsRunning(t.Context()); up || !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("unauthenticated: %v %v", up, err)
	}
}

func TestWire2_2_SignedURLs(t *testing.T) {
	c := serve(t, func(http.ResponseWriter, *http.Request) {})
	token := "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"
	sb, err := c.handle(sandboxAnswer{SandboxID: "i1", EnvdAccessToken: &token})
	if err != nil {
		t.Fatal(err)
	}
	sb.guest.base = "https://49983-i1.x.test"
	got := sb.Files.As("user").DownloadURL("hello.txt", 0)
	want := "https://49983-i1.x.test/files?path=hello.txt&signature=v1_gUtH%2Fs9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E&username=user"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	u, err := url.Parse(sb.Files.UploadURL("a b/ü", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	exp, err := time.ParseDuration(q.Get("signature_expiration") + "s")
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(time.Unix(0, 0).Add(exp)); left < 59*time.Minute || left > time.Hour+time.Second {
		t.Errorf("it expires in %s", left)
	}
	if q.Get("path") != "a b/ü" || q.Has("username") || q.Get("signature") != envd.Signature("a b/ü", "write", "", token, int64(exp.Seconds())) {
		t.Errorf("%v", q)
	}
}
