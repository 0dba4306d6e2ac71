package e2e

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	_ "modernc.org/sqlite"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

// js runs a command with --json and decodes what it prints.
func js[T any](d *daemon, args ...string) (v T) {
	d.t.Helper()
	out := d.cli(append([]string{"--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		d.t.Fatalf("nacre %s: %v in %q", strings.Join(args, " "), err, out)
	}
	return v
}

// code is a command's exit status.
func code(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// TestCLI walks a user through the commands, on the real server.
func TestCLI(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "1")
	t.Run("run, exec, ps, kill, logs", d.sub(cliLifecycle))
	t.Run("cp", d.sub(cliCopy))
	t.Run("shell", d.sub(cliShell))
	t.Run("env, doctor, config, templates", d.sub(cliServer))
}

// sub runs a part of a test with the server of the whole.
func (d *daemon) sub(fn func(*daemon)) func(*testing.T) {
	return func(t *testing.T) {
		whole := d.t
		defer func() { d.t = whole }()
		d.t = t
		fn(d)
	}
}

func cliLifecycle(d *daemon) {
	t := d.t
	if out := d.cli("run", "--rm", "-e", "WHO=you", "--", "echo hello $WHO"); out != "hello you\n" {
		t.Errorf("run --rm: %q", out)
	}
	if _, err := d.try("run", "--rm", "--", "exit 7"); code(err) != 7 {
		t.Errorf("an exit status: %v", err)
	}
	// A reader that goes early ends the command and, with --rm, its sandbox.
	early := exec.CommandContext(t.Context(), "bash", "-c", `"$0" run --rm --data-dir "$1" -- 'trap "" PIPE; while :; do echo y || sleep 1; done' | head -1; exit ${PIPESTATUS[0]}`, d.bin, d.dir)
	if out, err := early.CombinedOutput(); code(err) != 141 || string(out) != "y\n" {
		t.Errorf("run | head: %v, %q", err, out)
	}
	if left := d.cli("ps", "-q"); left != "" {
		t.Errorf("run --rm | head left %q", left)
	}
	made := js[struct{ ID string }](d, "run", "--timeout", "10m", "--metadata", "user=7")
	if !nacre.SandboxID(made.ID).Valid() {
		t.Fatalf("run --json: %+v", made)
	}
	res := js[struct {
		ID, Stdout, Stderr string
		ExitCode           int `json:"exit_code"`
	}](d, "exec", made.ID, "--", "echo out; echo err >&2")
	if res.ID != made.ID || res.Stdout != "out\n" || res.Stderr != "err\n" || res.ExitCode != 0 {
		t.Errorf("exec --json: %+v", res)
	}
	if _, err := d.try("exec", "--timeout", "300ms", made.ID, "--", "sleep", "60"); code(err) != 124 {
		t.Errorf("exec --timeout: %v", err)
	}
	if _, err := d.try("exec", made.ID, "kill -9 $$"); code(err) != 137 {
		t.Errorf("a command that a signal ended: %v", err)
	}
	type listed struct {
		ID, State, Template string
		Metadata            map[string]string
		EndAt               time.Time `json:"end_at"`
	}
	d.eventually(patience, func() error { // what was made of the template and by which key is written behind the deed
		keys := js[[]struct {
			UsedAt time.Time `json:"used_at"`
		}](d, "key", "list")
		var made []struct {
			SpawnCount    int
			LastSpawnedAt time.Time
		}
		if err := d.call(d.note().APIKey, http.MethodGet, "/templates", nil).decode(&made); err != nil {
			return err
		}
		if len(keys) != 1 || time.Since(keys[0].UsedAt) > 2*time.Minute || made[0].SpawnCount != 4 || time.Since(made[0].LastSpawnedAt) > time.Minute {
			return fmt.Errorf("keys %+v, templates %+v", keys, made)
		}
		return nil
	})
	if list := js[[]listed](d, "ps", "--metadata", "user=7"); len(list) != 1 || list[0].ID != made.ID || list[0].State != "running" ||
		list[0].Template != "base" || list[0].Metadata["user"] != "7" || time.Until(list[0].EndAt) < 9*time.Minute {
		t.Errorf("ps --json: %+v", list)
	}
	if out := d.cli("ps"); !strings.Contains(out, made.ID) || !strings.Contains(out, "user=7") {
		t.Errorf("ps: %s", out)
	}
	if out := d.cli("kill", made.ID); out != made.ID+"\n" {
		t.Errorf("kill: %q", out)
	}
	if _, err := d.try("exec", made.ID, "--", "true"); code(err) != 125 || !strings.Contains(err.Error(), "has ended (killed): it was killed by a request") {
		t.Errorf("exec of a killed one: %v", err)
	}
	for _, call := range [][2]string{{"GET", ""}, {"POST", "/connect"}, {"POST", "/timeout"}, {"POST", "/pause"}, {"DELETE", ""}} {
		a := d.call(d.note().APIKey, call[0], "/sandboxes/"+made.ID+call[1], map[string]int{"timeout": 60})
		if a.Status != 404 || !strings.Contains(a.Body, "has ended (killed, 20") || !strings.Contains(a.Body, "Z): it was killed by a request") {
			t.Errorf("%s %s of a killed one: %s", call[0], call[1], a)
		}
	}
	runs := js[[]struct {
		ID, Status, Reason string
		EndReason          string `json:"end_reason"`
	}](d, "ps", "-a")
	if i := slices.IndexFunc(runs, func(r struct {
		ID, Status, Reason string
		EndReason          string `json:"end_reason"`
	}) bool {
		return r.ID == made.ID
	}); i < 0 || runs[i].Status != "stopped" || runs[i].EndReason != "killed" || runs[i].Reason != "killed" {
		t.Errorf("ps -a --json: %+v", runs)
	}
}

// TestLogsOutliveTheSandbox: what a sandbox's commands wrote is there after its
// end, and after the server's.
func TestLogsOutliveTheSandbox(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0")
	id := strings.TrimSpace(d.cli("run"))
	d.cli("exec", id, "--", "echo one; echo two >&2; seq 3 5")
	d.cli("kill", id)
	complete := func() error {
		if out := d.cli("logs", id); out != "one\n3\n4\n5\n" {
			return fmt.Errorf("logs: %q", out)
		}
		entries := js[[]struct{ ID, Type, Message string }](d, "logs", id)
		var kinds []string
		for _, e := range entries {
			kinds = append(kinds, e.Type)
		}
		if got := strings.Join(kinds, " "); strings.Count(got, "stdout") != 4 || !strings.Contains(got, "stderr") ||
			!strings.HasPrefix(got, "process_start") || !strings.HasSuffix(got, "process_end") || entries[0].ID != id {
			return fmt.Errorf("logs --json: %+v", entries)
		}
		return nil
	}
	if err := complete(); err != nil {
		t.Errorf("after kill: %v", err)
	}
	d.kill9()
	d.up()
	if err := complete(); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// logged waits until a sandbox's log, which is copied to the host behind what is written,
// has the text there.
func (d *daemon) logged(id, text string) {
	d.t.Helper()
	d.eventually(patience, func() error {
		if out := d.cli("logs", id); !strings.Contains(out, text) {
			return fmt.Errorf("the log of %s: %q", id, out)
		}
		return nil
	})
}

func cliCopy(d *daemon) {
	t := d.t
	id := strings.TrimSpace(d.cli("run"))
	dir := t.TempDir()
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	for name, data := range map[string][]byte{"tree/a/large": large, "tree/b.sh": []byte("#!/bin/sh\necho ran\n"), "tree/empty": nil} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("b.sh", filepath.Join(dir, "tree/link")); err != nil {
		t.Fatal(err)
	}
	d.cli("cp", filepath.Join(dir, "tree"), id+":")
	if out := d.cli("exec", id, "--", "cd tree && ./link && stat -c %s a/large empty"); out != fmt.Sprintf("ran\n%d\n0\n", len(large)) {
		t.Errorf("a tree copied in: %q", out)
	}
	d.cli("cp", id+":tree", filepath.Join(dir, "back"))
	back, err := os.ReadFile(filepath.Join(dir, "back/a/large"))
	if err != nil || !bytes.Equal(back, large) {
		t.Errorf("a tree copied back: %d bytes, %v", len(back), err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "back/link")); err != nil || to != "b.sh" {
		t.Errorf("a link copied back: %q %v", to, err)
	}
	if out := d.cli("cp", id+":/etc/hostname", "-"); strings.TrimSpace(out) == "" {
		t.Errorf("to standard output: %q", out)
	}
	files := js[[]struct {
		ID, Path string
		Bytes    int64
	}](d, "cp", filepath.Join(dir, "tree/b.sh"), id+":x.sh")
	if len(files) != 1 || files[0].ID != id || files[0].Bytes == 0 {
		t.Errorf("cp --json: %+v", files)
	}
}

// screen is a person's terminal with a command on it.
type screen struct {
	t    testing.TB
	tty  *os.File
	cmd  *exec.Cmd
	mu   sync.Mutex
	text strings.Builder
	read chan struct{} // closed when all that was printed is in text
}

func (d *daemon) screen(args ...string) *screen {
	d.t.Helper()
	s := &screen{t: d.t, cmd: exec.Command(d.bin, append([]string{"--data-dir", d.dir}, args...)...), read: make(chan struct{})}
	var err error
	if s.tty, err = pty.StartWithSize(s.cmd, &pty.Winsize{Rows: 30, Cols: 100}); err != nil {
		d.t.Fatal(err)
	}
	go func() {
		defer close(s.read)
		buf := make([]byte, 4096)
		for {
			n, err := s.tty.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

// types a line and waits until the answer is on the screen.
func (s *screen) types(line, answer string) {
	s.t.Helper()
	if _, err := io.WriteString(s.tty, line+"\r"); err != nil {
		s.t.Fatal(err)
	}
	for end := time.Now().Add(slow(patience)); ; time.Sleep(20 * time.Millisecond) {
		s.mu.Lock()
		text := s.text.String()
		s.mu.Unlock()
		if regexp.MustCompile(answer).MatchString(text) {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("%q does not bring %q:\n%s", line, answer, text)
		}
	}
}

func (s *screen) end() int {
	s.t.Helper()
	err := s.cmd.Wait()
	<-s.read // the terminal has an end when nobody has it open but us
	s.tty.Close()
	return code(err)
}

func cliShell(d *daemon) {
	t := d.t
	id := strings.TrimSpace(d.cli("run"))
	s := d.screen("shell", id)
	s.types("stty size; id -un", `30 100\r\nuser\r`)
	s.types("tty >/dev/null && echo on a $((40+2)) terminal", "on a 42 terminal")
	if err := pty.Setsize(s.tty, &pty.Winsize{Rows: 44, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	s.types(`until [ "$(stty size)" = "44 132" ]; do sleep 0.05; done; echo a $((40+4)) lines terminal`, "a 44 lines terminal") // it is told behind what is typed
	// Once it has spoken it is what the terminal is for; before, Ctrl-C is the shell's.
	s.types("sh -c 'echo asleep for $((900+100)); exec sleep 1000'", "asleep for 1000")
	s.types("\x03echo $((30+3)) again", "33 again") // Ctrl-C ends the sleep
	s.types("exit 5", "exit")
	if got := s.end(); got != 5 {
		t.Errorf("the shell's exit status is %d", got)
	}
	s = d.screen("exec", "-t", "-u", "root", id, "--", "id -un; stty size")
	if got := s.end(); got != 0 || !strings.Contains(s.text.String(), "root\r\n30 100") {
		t.Errorf("exec -t: %d %q", got, s.text.String())
	}
}

func cliServer(d *daemon) {
	t := d.t
	vars := js[map[string]string](d, "env", "--tls")
	for _, name := range []string{"MORU_API_KEY", "E2B_API_KEY", "MORU_DOMAIN", "E2B_DOMAIN", "E2B_API_URL", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"} {
		if vars[name] == "" {
			t.Errorf("env --tls: no %s in %v", name, vars)
		}
	}
	// What env prints is for a shell.
	sh := exec.Command("sh", "-c", `eval "$("$0" env --data-dir "$1")" && echo "$E2B_API_URL $E2B_API_KEY"`, d.bin, d.dir)
	if out, err := sh.Output(); err != nil || string(out) != d.note().APIURL+" "+d.note().APIKey+"\n" {
		t.Errorf("eval: %q %v", out, err)
	}
	curl := exec.Command("curl", "-sS", "--max-time", "10", "--cacert", vars["SSL_CERT_FILE"],
		"-H", "X-API-Key: "+vars["E2B_API_KEY"], vars["E2B_API_URL"]+"/v2/sandboxes")
	if out, err := curl.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "[") {
		t.Errorf("the API over TLS: %s %v", out, err)
	}
	findings := js[[]struct{ ID, Level, What, Advice string }](d, "doctor", "--data-dir", d.dir)
	for _, f := range findings {
		if f.ID == "" || f.What == "" || f.Level == "fail" || f.Level != "ok" && f.Advice == "" {
			t.Errorf("doctor: %+v", f)
		}
	}
	if len(findings) < 5 {
		t.Errorf("doctor: %+v", findings)
	}
	if out := d.cli("config"); !strings.Contains(out, "# memory_mib = 4096") {
		t.Errorf("config: %s", out)
	}
	if list := js[[]struct {
		ID    string
		Names []string
	}](d, "templates"); len(list) < 3 || !slices.ContainsFunc(list, func(e struct {
		ID    string
		Names []string
	}) bool {
		return slices.Contains(e.Names, "base")
	}) {
		t.Errorf("templates: %+v", list)
	}
}

// TestStandbyAnswer: with standbys the next create is answered by a machine that
// ran before, and two such have nothing in common.
func TestStandbyAnswer(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "2")
	d.settled(d.instance(), 2)
	c := d.client()
	var seen []string
	for range 2 {
		begin := time.Now()
		sb, err := c.Create(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		created := time.Since(begin)
		res, err := sb.Run(t.Context(), "hostname; head -c 8 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; hostname -I; date +%s")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("created in %s, the first command answered after %s, by %s", created.Round(100*time.Microsecond),
			time.Since(begin).Round(100*time.Microsecond), d.bootPath(sb.ID))
		if got := d.bootPath(sb.ID); got != "standby" {
			t.Errorf("it was made by %q", got)
		}
		if a := d.call(d.note().APIKey, http.MethodGet, "/sandboxes/"+string(sb.ID), nil); !strings.Contains(a.Body, `"bootPath":"standby"`) {
			t.Errorf("the answer does not say how it was made: %s", a)
		}
		for e, err := range c.Logs(t.Context(), sb.ID, client.Follow()) { // of what the host ran before it tells nothing
			if err != nil || !strings.Contains(e.Fields["command"], "hostname;") {
				t.Errorf("its log begins with %+v, %v", e, err)
			}
			break
		}
		seen = append(seen, res.Stdout)
	}
	a, b := strings.Split(seen[0], "\n"), strings.Split(seen[1], "\n")
	for i := range 4 {
		if len(a) < 5 || len(b) < 5 || a[i] == b[i] {
			t.Fatalf("two sandboxes have something in common: %q %q", a, b)
		}
	}
	many(t, c, 6) // faster than standbys are made
	cold := 0
	for id := range d.handles() {
		if d.bootPath(id) == "cold" {
			cold++
		}
	}
	t.Logf("of six more at once %d were cold", cold)
	if a := d.call(d.note().APIKey, http.MethodGet, "/v2/sandboxes", nil); strings.Count(a.Body, "sandboxID") != 8 {
		t.Errorf("%s", a)
	}
}

// bootPath reads from the event log how a sandbox's machine came to be; no
// answer of the API tells.
func (d *daemon) bootPath(id string) string {
	d.t.Helper()
	db, err := sql.Open("sqlite", "file:"+d.path("nacre.db")+"?mode=ro")
	if err != nil {
		d.t.Fatal(err)
	}
	defer db.Close()
	var text string
	if err := db.QueryRow("SELECT data FROM events WHERE sandbox_id = ? AND kind = ?", id, string(nacre.EventRunning)).Scan(&text); err != nil {
		d.t.Fatal(err)
	}
	var data map[string]string
	if err := json.Unmarshal([]byte(text), &data); err != nil {
		d.t.Fatalf("%v in %q", err, text)
	}
	return data["boot_path"]
}
