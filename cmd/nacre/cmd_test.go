package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
	"github.com/nacrehq/nacre/e2e/localcloud"
	"github.com/nacrehq/nacre/internal/clientfile"
	"github.com/nacrehq/nacre/server"
)

// shell is a user at a prompt on the host of a server.
type shell struct {
	t     *testing.T
	cloud *localcloud.Cloud
	dir   string
	stdin string
}

func newShell(t *testing.T) *shell {
	t.Helper()
	for _, brand := range []string{"NACRE_", "MORU_", "E2B_"} {
		for _, name := range []string{"API_KEY", "API_URL", "SANDBOX_URL", "DOMAIN", "DATA_DIR"} {
			t.Setenv(brand+name, "")
		}
	}
	s := &shell{t: t, cloud: localcloud.New(t), dir: t.TempDir()}
	if err := clientfile.Write(s.dir, clientfile.File{APIKey: s.cloud.Key, APIURL: s.cloud.URL}); err != nil {
		t.Fatal(err)
	}
	return s
}

// commandLine is the root command with the commands of this file's subject only.
func commandLine() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{Use: "nacre", SilenceUsage: true, SilenceErrors: true}
	g.flags(root)
	root.AddCommand(newKeyCommand(g), newRunCommand(g), newExecCommand(g), newShellCommand(g), newCpCommand(g),
		newPsCommand(g), newLogsCommand(g), newPauseCommand(g), newResumeCommand(g), newSnapshotCommand(g), newRestoreCommand(g),
		newForkCommand(g), newSnapshotsCommand(g), newKillCommand(g), newTemplatesCommand(g))
	sayUsage(root)
	return root
}

func (s *shell) run(args ...string) (stdout, stderr string, err error) {
	s.t.Helper()
	var out, errOut bytes.Buffer
	_, err = s.execute(&out, &errOut, args...)
	return out.String(), errOut.String(), err
}

// execute runs a command and returns which it was.
func (s *shell) execute(stdout, stderr io.Writer, args ...string) (*cobra.Command, error) {
	s.t.Helper()
	root := commandLine()
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetIn(strings.NewReader(s.stdin))
	root.SetArgs(append([]string{"--data-dir", s.dir}, args...))
	return root.ExecuteContextC(s.t.Context())
}

// ok runs a command that must succeed and returns what it prints.
func (s *shell) ok(args ...string) string {
	s.t.Helper()
	out, errOut, err := s.run(args...)
	if err != nil {
		s.t.Fatalf("nacre %s: %v\n%s", strings.Join(args, " "), err, errOut)
	}
	return out
}

// fails runs a command that must fail and returns what the user reads.
func (s *shell) fails(args ...string) string {
	s.t.Helper()
	_, errOut, err := s.run(args...)
	if err == nil {
		s.t.Fatalf("nacre %s did not fail", strings.Join(args, " "))
	}
	return errOut + errorText(err)
}

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}

func TestSandboxFromMakingToEnd(t *testing.T) {
	s := newShell(t)
	id := strings.TrimSpace(s.ok("run", "--metadata", "user=7", "--timeout", "10m"))
	if !nacre.SandboxID(id).Valid() {
		t.Fatalf("run without a command prints %q, want the id", id)
	}
	other := strings.TrimSpace(s.ok("run"))
	if got := s.ok("ps", "-q"); got != other+"\n"+id+"\n" {
		t.Errorf("ps -q: %q", got)
	}
	if got := s.ok("ps", "-q", "--metadata", "user=7"); got != id+"\n" {
		t.Errorf("ps --metadata: %q", got)
	}
	if got := s.ok("ps"); !strings.Contains(got, "user=7") || !strings.Contains(got, "running") || !strings.Contains(got, "in 9m") {
		t.Errorf("ps: %s", got)
	}
	list := decode[[]struct{ ID, State, Status string }](t, s.ok("ps", "--json"))
	if len(list) != 2 || list[1].ID != id || list[1].State != "running" || list[1].Status != "running" {
		t.Errorf("ps --json: %+v", list)
	}
	if got := s.ok("exec", id, "--", "echo", "a  b"); got != "a  b\n" {
		t.Errorf("exec: %q", got)
	}
	if got := s.ok("kill", id); got != id+"\n" {
		t.Errorf("kill: %q", got)
	}
	if got := s.fails("kill", id); !strings.Contains(got, "ps -a") {
		t.Errorf("a second kill: %s", got)
	}
	if got := s.fails("exec", id, "--", "true"); !strings.Contains(got, "has ended (killed)") {
		t.Errorf("exec of a killed one: %s", got)
	}
	if _, errOut, err := s.run("logs", id); err != nil || !strings.HasSuffix(errOut, "# sandbox "+id+" has ended (killed)\n") {
		t.Errorf("logs of a killed one: %q %v", errOut, err)
	}
	if got := s.ok("ps", "-a"); !strings.Contains(got, "killed") {
		t.Errorf("ps -a: %s", got)
	}
	ended := decode[[]struct{ ID, State, Status, Reason string }](t, s.ok("ps", "-a", "--json"))
	if i := slices.IndexFunc(ended, func(r struct{ ID, State, Status, Reason string }) bool { return r.ID == id }); i < 0 ||
		ended[i].State != "stopped" || ended[i].Status != "stopped" || ended[i].Reason != "killed" {
		t.Errorf("ps -a --json: %+v", ended)
	}
	if got := s.ok("kill", "--all", "--json"); !strings.Contains(got, other) || strings.Contains(got, id) {
		t.Errorf("kill --all: %s", got)
	}
	if got := decode[[]struct{ ID string }](t, s.ok("ps", "--json")); got == nil || len(got) != 0 {
		t.Errorf("an empty list in JSON is %v", got)
	}
	if got := decode[[]struct{ ID string }](t, s.ok("templates", "--json")); len(got) != 1 || got[0].ID == "" {
		t.Errorf("templates: %v", got)
	}
}

func TestRunPassesEverythingThrough(t *testing.T) {
	s := newShell(t)
	out, errOut, err := s.run("run", "--rm", "-e", "WHO=you", "--", "echo hello $WHO; echo oops >&2; exit 7")
	var code exitCode
	if out != "hello you\n" || errOut != "oops\n" || !errors.As(err, &code) || code != 7 {
		t.Errorf("%q %q %v", out, errOut, err)
	}
	if left := s.ok("ps", "-q"); left != "" {
		t.Errorf("--rm left %q", left)
	}
	out, errOut, err = s.run("run", "--json", "--", "sh", "-c", "echo out; exit 3")
	if !errors.As(err, &code) || code != 3 {
		t.Errorf("%v", err)
	}
	res := decode[runResult](t, out)
	if res.ExitCode != 3 || res.Stdout != "out\n" || errOut != "sandbox "+res.ID+"\n" {
		t.Errorf("%+v %q", res, errOut)
	}
	if _, _, err = s.run("exec", res.ID, "kill -9 $$"); !errors.As(err, &code) || code != 137 {
		t.Errorf("a killed command: %v", err)
	}
	if _, _, err = s.run("exec", "--timeout", "200ms", res.ID, "--", "sleep", "60"); !errors.As(err, &code) || code != 124 {
		t.Errorf("--timeout: %v", err)
	}
	if got := s.ok("exec", "-w", "/", "-u", "root", res.ID, "--", "sh", "-c", "pwd; id -un"); got != "/\nroot\n" {
		t.Errorf("%q", got)
	}
	// Flags may stand behind the sandbox, those of every command too.
	got := decode[runResult](t, s.ok("exec", res.ID, "--json", "-w", "/", "-u=root", "--", "sh", "-c", "pwd; id -un; echo --json"))
	if got.ID != res.ID || got.Stdout != "/\nroot\n--json\n" {
		t.Errorf("flags behind the sandbox: %+v", got)
	}
	if got := s.ok("exec", res.ID, "-w", "/", "ls", "-d", "/"); got != "/\n" {
		t.Errorf("flags behind the sandbox, and no dashes: %q", got)
	}
	if got := s.fails("exec", res.ID, "--no-such", "--", "true"); !strings.Contains(got, "--no-such") {
		t.Errorf("an unknown flag behind the sandbox: %s", got)
	}
	id := strings.TrimSpace(s.ok("run", "-d", "--", "sleep 4720"))
	if got := s.ok("exec", id, "--", "pgrep -f '[s]leep 4720' >/dev/null && echo runs"); got != "runs\n" {
		t.Errorf("-d: %q", got)
	}
	s.ok("exec", id, "--", "pkill -f '[s]leep 4720'")
}

func TestMistakesSayWhatToDo(t *testing.T) {
	s := newShell(t)
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"exec", "nonsense", "--", "true"}, "nacre ps"},
		{[]string{"exec", string(nacre.NewSandboxID()), "--", "true"}, "nacre ps -a"},
		{[]string{"exec", string(nacre.NewSandboxID()), "--"}, "nacre shell"},
		{[]string{"run", "--template", "no-such", "--", "true"}, "nacre templates"},
		{[]string{"run", "--rm"}, "--rm -t"},
		{[]string{"run", "-e", "novalue", "--", "true"}, "NAME=VALUE"},
		{[]string{"exec", "nonsense"}, "usage: nacre exec [flags] ID -- COMMAND"},
		{[]string{"key", "revoke"}, "usage: nacre key revoke KEY-ID"},
		{[]string{"ps", "--bogus"}, "`nacre ps --help`"},
		{[]string{"kill"}, "--all"},
		{[]string{"kill", "--all", "i1"}, "--all"},
		{[]string{"cp", "a", "b"}, "ID:PATH"},
		{[]string{"logs", string(nacre.NewSandboxID())}, "nacre ps -a"},
		{[]string{"key", "create"}, "nacre up"},
		{[]string{"ps", "--data-dir", t.TempDir()}, "nacre up"},
		{[]string{"ps", "--api-url", s.cloud.URL}, "nacre key create"},
	} {
		if got := s.fails(tc.args...); !strings.Contains(got, tc.want) {
			t.Errorf("nacre %s: %q does not say %q", strings.Join(tc.args, " "), got, tc.want)
		}
	}
	t.Setenv("NACRE_API_KEY", "e2b_"+strings.Repeat("0", 40))
	if got := s.fails("ps", "--api-url", s.cloud.URL); !strings.Contains(got, "key create") {
		t.Errorf("a wrong key: %s", got)
	}
	id := strings.TrimSpace(s.ok("run"))
	if got := s.fails("exec", "-u", "nobody-here", id, "--", "true"); !strings.Contains(got, "invalid username") || strings.Contains(got, "key create") {
		t.Errorf("an unknown user: %s", got)
	}
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	if got := s.fails("ps", "--api-url", "http://"+dead.Addr().String()); !strings.Contains(got, "nacre up") {
		t.Errorf("no server: %s", got)
	}
}

func TestWhereTheServerIsFound(t *testing.T) {
	s := newShell(t)
	empty := t.TempDir()
	run := func(args ...string) error {
		root := commandLine()
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		root.SetArgs(args)
		return root.ExecuteContext(t.Context())
	}
	t.Setenv("NACRE_DATA_DIR", s.dir)
	if err := run("ps"); err != nil {
		t.Errorf("NACRE_DATA_DIR: %v", err)
	}
	t.Setenv("NACRE_DATA_DIR", empty)
	t.Setenv("MORU_API_URL", s.cloud.URL)
	t.Setenv("MORU_API_KEY", s.cloud.Key)
	if err := run("ps"); err != nil {
		t.Errorf("the SDKs' variables: %v", err)
	}
	if err := run("ps", "--data-dir", empty); err == nil {
		t.Error("a directory that was named was passed over")
	}
	t.Setenv("MORU_API_URL", "http://192.0.2.1:1")
	t.Setenv("NACRE_API_URL", s.cloud.URL)
	t.Setenv("NACRE_API_KEY", s.cloud.Key)
	if err := run("ps"); err != nil {
		t.Errorf("NACRE_API_URL: %v", err)
	}
	// Its sandboxes are there too, and not where another server's would be.
	t.Setenv("MORU_SANDBOX_URL", "http://192.0.2.1:1")
	for _, args := range [][]string{{"run", "--rm", "--", "true"}, {"--api-url", s.cloud.URL, "run", "--rm", "--", "true"}} {
		if err := run(args...); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// TestEnvOfTLSAfterPlain: the address for plain HTTP, which would win, goes.
func TestEnvOfTLSAfterPlain(t *testing.T) {
	f := clientfile.File{APIKey: "e2b_0", APIURL: "http://127.0.0.1:3000", TLSDomain: "nacre.localhost:8443"}
	shell := map[string]string{}
	for _, tls := range []bool{false, true} {
		vars, err := environment(f, tls)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range vars {
			shell[v[0]] = v[1]
		}
	}
	for _, brand := range []string{"MORU", "E2B"} {
		if got := shell[brand+"_SANDBOX_URL"]; got != "" || shell[brand+"_API_URL"] != "https://api.nacre.localhost:8443" {
			t.Errorf("%s: sandboxes at %q, %v", brand, got, shell)
		}
	}
}

func TestLogs(t *testing.T) {
	s := newShell(t)
	id := strings.TrimSpace(s.ok("run"))
	at := time.Now().Add(-time.Minute)
	for i, e := range []nacre.LogEntry{
		{Type: nacre.LogProcessStart, Fields: map[string]string{"pid": "7", "command": "make\x1b[2J"}},
		{Type: nacre.LogStdout, Message: "building"},
		{Type: nacre.LogStderr, Message: "warning"},
		{Type: nacre.LogProcessEnd, Fields: map[string]string{"pid": "7", "process_result": `{"exit_code":2,"error":"exit status 2"}`}},
	} {
		e.Time = at.Add(time.Duration(i) * time.Second)
		s.cloud.Service.AddLog(nacre.SandboxID(id), e)
	}
	out, errOut, err := s.run("logs", id)
	if err != nil || out != "building\n" || errOut != "# started 7: make?[2J\nwarning\n# ended 7: exit status 2\n" {
		t.Errorf("%q %q %v", out, errOut, err)
	}
	text := s.ok("logs", "--json", id)
	if strings.Contains(text, `"seq"`) {
		t.Errorf("logs --json has a number that nobody gave: %s", text)
	}
	list := decode[[]struct{ ID, Type, Message string }](t, text)
	if len(list) != 4 || list[1].ID != id || list[1].Message != "building" {
		t.Errorf("%+v", list)
	}
	if got := s.ok("logs", "-t", "--since", "59s500ms", id); !strings.HasSuffix(got, "  building\n") || len(got) < 24 {
		t.Errorf("%q", got)
	}
	s.ok("kill", id)
	if got := s.ok("logs", "-f", id); got != "building\n" {
		t.Errorf("after the end: %q", got)
	}
}

// TestKeys runs against a socket as the server's, since the store is the
// server's own.
func TestKeys(t *testing.T) {
	s := newShell(t)
	l, err := net.Listen("unix", filepath.Join(s.dir, server.AdminSocket))
	if err != nil {
		t.Fatal(err)
	}
	var requests []string
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		requests = append(requests, r.Method+" "+r.URL.RequestURI()+" "+string(raw))
		switch r.Method {
		case http.MethodPost:
			w.WriteHeader(201)
			fmt.Fprint(w, `{"id":"key_1","team":"a","key":"e2b_secret","created_at":"2026-11-22T10:00:00Z"}`)
		case http.MethodGet:
			fmt.Fprint(w, `[{"id":"key_1","team":"a","hint":"e2b_secr","created_at":"2026-11-22T10:00:00Z"},`+
				`{"id":"key_2","team":"b","name":"ci","hint":"e2b_abcd","created_at":"2026-11-22T10:00:00Z","revoked_at":"2026-11-22T11:00:00Z"}]`)
		default:
			w.WriteHeader(204)
		}
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })

	if got := s.ok("key", "create", "--team", "a"); got != "e2b_secret\n" {
		t.Errorf("create prints %q", got)
	}
	if got := decode[struct{ Key string }](t, s.ok("key", "create", "--team", "a", "--json")); got.Key != "e2b_secret" {
		t.Errorf("%+v", got)
	}
	if got := s.ok("key", "list"); !strings.Contains(got, "e2b_secr...") || !strings.Contains(got, "ci") {
		t.Errorf("%s", got)
	}
	if got := decode[[]struct{ ID string }](t, s.ok("key", "list", "--team", "a", "--json")); len(got) != 2 {
		t.Errorf("%+v", got)
	}
	requests = nil
	if got := s.ok("key", "revoke", "key_2"); got != "key_2\n" {
		t.Errorf("%q", got)
	}
	if got := strings.Join(requests, "|"); got != "GET /keys |DELETE /keys/key_2?team=b " {
		t.Errorf("%q", got)
	}
	if got := s.fails("key", "revoke", "key_9"); !strings.Contains(got, "key list") {
		t.Errorf("%q", got)
	}
}

func TestInterruptedRunEndsItsSandbox(t *testing.T) {
	s := newShell(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	root := commandLine()
	root.SetOut(writerFunc(func([]byte) { cancel() })) // Ctrl-C once it writes
	root.SetErr(io.Discard)
	root.SetArgs([]string{"--data-dir", s.dir, "run", "--rm", "--", "echo go; exec sleep 4721"})
	err := root.ExecuteContext(ctx)
	var code exitCode
	if !errors.As(err, &code) || code != exitInterrupted {
		t.Errorf("%v", err)
	}
	if left := s.ok("ps", "-q"); left != "" {
		t.Errorf("%q is left", left)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

// write makes a file of a test.
func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// TestOwnFailure: a command that passes another one's status on has one for what went
// wrong with itself.
func TestOwnFailure(t *testing.T) {
	s := newShell(t)
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"exec", "i00000000000000000000", "--", "true"}, 125},
		{[]string{"exec", "no-id", "--", "true"}, 125},
		{[]string{"exec", "--nope"}, 125},
		{[]string{"exec"}, 125},
		{[]string{"run", "--template", "nobody", "--", "true"}, 125},
		{[]string{"run", "--env", "x", "--", "true"}, 125},
		{[]string{"shell", "no-id"}, 125},
		{[]string{"kill", "no-id"}, 1},
		{[]string{"ps", "--nope"}, 1},
		{[]string{"nope"}, 1},
	} {
		cmd, err := s.execute(io.Discard, io.Discard, c.args...)
		if err == nil || statusOf(cmd) != c.want {
			t.Errorf("%q: %v, status %d, want %d", c.args, err, statusOf(cmd), c.want)
		}
	}
}

// TestFullSaysOnce: what to do when something is full is the server's to say; the
// command does where the server does not.
func TestFullSaysOnce(t *testing.T) {
	for message, want := range map[string]string{
		"the team's snapshots occupy 80 MiB; delete some, then try again": "the team's snapshots occupy 80 MiB; delete some, then try again",
		"the host is full": "the host is full; end some sandboxes with `nacre kill`, or try again later",
	} {
		if got := errorText(&client.Error{Code: nacre.CodeExhausted, Message: message}); got != want {
			t.Errorf("%q: %q, want %q", message, got, want)
		}
	}
}
