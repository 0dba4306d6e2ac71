package client_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

var noContext = context.Background()

// TestConformance covers every operation of the SDK, against the server that the
// environment names or a local one without machines.
func TestConformance(t *testing.T) {
	c, live := target(t)
	t.Run("lifecycle", func(t *testing.T) { conformLifecycle(t, c) })
	t.Run("list", func(t *testing.T) { conformList(t, c) })
	t.Run("wrong key", func(t *testing.T) { conformWrongKey(t, live) })
	t.Run("not there", func(t *testing.T) { conformNotThere(t, c) })
	t.Run("commands", func(t *testing.T) { conformCommands(t, c) })
	t.Run("ends of commands", func(t *testing.T) { conformEnds(t, c) })
	t.Run("background", func(t *testing.T) { conformBackground(t, c) })
	t.Run("files", func(t *testing.T) { conformFiles(t, c) })
	t.Run("large files", func(t *testing.T) { conformLargeFiles(t, c) })
	t.Run("signed URLs", func(t *testing.T) { conformSignedURLs(t, c) })
	t.Run("watch", func(t *testing.T) { conformWatch(t, c) })
	t.Run("terminal", func(t *testing.T) { conformTerminal(t, c) })
	t.Run("logs", func(t *testing.T) { needLive(t, live); conformLogs(t, c) })
	t.Run("metrics", func(t *testing.T) { needLive(t, live); conformMetrics(t, c) })
	t.Run("network", func(t *testing.T) { needLive(t, live); conformNetwork(t, c) })
	t.Run("time-out", func(t *testing.T) { needLive(t, live); conformTimeout(t, c) })
	t.Run("pause", func(t *testing.T) { needLive(t, live); conformPause(t, c) })
}

func conformLifecycle(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c, client.Timeout(2*time.Minute), client.Metadata(map[string]string{"suite": "a b&c=é"}), client.Env(map[string]string{"GREETING": "hello"}))
	info, err := sb.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if info.ID != sb.ID || info.State != nacre.StateRunning || info.Metadata["suite"] != "a b&c=é" || len(info.Metadata) != 1 || info.CPUCount < 1 {
		t.Errorf("%+v", info)
	}
	if left := time.Until(info.EndAt); left < time.Minute || left > 2*time.Minute+5*time.Second {
		t.Errorf("it ends in %s", left)
	}
	if up, err := sb.IsRunning(ctx); !up || err != nil {
		t.Errorf("running %v, %v", up, err)
	}
	if err := sb.SetTimeout(ctx, 10*time.Minute); err != nil {
		t.Error(err)
	}
	longer, _ := sb.Info(ctx)
	if !longer.EndAt.After(info.EndAt) {
		t.Errorf("the deadline stayed at %s", longer.EndAt)
	}
	again, err := c.Connect(ctx, sb.ID, client.Timeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if now, _ := c.Info(ctx, sb.ID); !now.EndAt.Equal(longer.EndAt) {
		t.Error("Connect shortened the deadline")
	}
	same, err := c.Sandbox(ctx, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, handle := range []*client.Sandbox{sb, again, same} {
		if res, err := handle.Run(ctx, "echo $GREETING"); err != nil || res.Stdout != "hello\n" {
			t.Errorf("%+v %v", res, err)
		}
	}
	if err := sb.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	conformDead(t, c, sb)
}

// conformDead: what a sandbox answers that was killed.
func conformDead(t *testing.T, c *client.Client, sb *client.Sandbox) {
	t.Helper()
	ctx := t.Context()
	if up, err := sb.IsRunning(ctx); up || err != nil {
		t.Errorf("running %v, %v after Kill", up, err)
	}
	if _, err := sb.Run(ctx, "true"); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("Run: %v", err)
	}
	_, infoErr := sb.Info(ctx)
	_, connectErr := c.Connect(ctx, sb.ID)
	for what, err := range map[string]error{"Kill": sb.Kill(ctx), "Info": infoErr, "Connect": connectErr, "SetTimeout": sb.SetTimeout(ctx, time.Minute)} {
		if !errors.Is(err, client.ErrNotFound) {
			t.Errorf("%s after Kill: %v", what, err)
		}
	}
	for run, err := range c.Runs(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if run.ID == sb.ID {
			if run.Status != "stopped" || run.EndReason != "killed" || run.EndedAt.IsZero() {
				t.Errorf("%+v", run)
			}
			return
		}
	}
	t.Error("a killed sandbox is not among the runs")
}

func conformList(t *testing.T, c *client.Client) {
	ctx := t.Context()
	mark := map[string]string{"suite-list": rand.Text()}
	var want []string
	for range 3 {
		want = append([]string{sandbox(t, c, client.Metadata(mark)).ID}, want...)
	}
	sandbox(t, c)
	var got []string
	for info, err := range c.List(ctx, client.Metadata(mark), client.States(nacre.StateRunning)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.ID)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v: newest first", got, want)
	}
	templates, err := c.Templates(ctx)
	if err != nil || len(templates) == 0 {
		t.Errorf("%v %v", templates, err)
	}
}

func conformWrongKey(t *testing.T, live bool) {
	if !live {
		t.Skip("the local server's address is only known to its client; the table of errors covers it")
	}
	c, err := client.New(client.WithAPIKey("e2b_" + strings.Repeat("0", 40)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context()); !errors.Is(err, client.ErrUnauthenticated) {
		t.Errorf("%v", err)
	}
}

func conformNotThere(t *testing.T, c *client.Client) {
	ctx := t.Context()
	if _, err := c.Create(ctx, client.Template("no-such-template")); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("template: %v", err)
	}
	for _, id := range []string{string(nacre.NewSandboxID()), "nonsense", "../teams"} {
		if err := c.Kill(ctx, id); !errors.Is(err, client.ErrNotFound) {
			t.Errorf("Kill of %s: %v", id, err)
		}
	}
}

func conformCommands(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c, client.Env(map[string]string{"A": "sandbox", "B": "sandbox"}))
	for _, tc := range []struct {
		name, line, out, errOut string
		opts                    []client.CommandOption
	}{
		{"both streams", "echo out; echo err >&2", "out\n", "err\n", nil},
		{"the call's environment wins", "echo $A $B", "sandbox call\n", "", []client.CommandOption{client.Env(map[string]string{"B": "call"})}},
		{"directory", "pwd", "/\n", "", []client.CommandOption{client.Cwd("/")}},
		{"stdin", "cat", "typed", "", []client.CommandOption{client.Stdin(strings.NewReader("typed"))}},
		{"no stdin", "cat", "", "", nil},
		{"bytes stay what they are", `printf '\xff\xe2\x82\xac\x00z'`, "\xff€\x00z", "", nil},
		{"quoted arguments", client.Quote("printf", "%s|", "a b", "", "$A", `it's "x"`, "*"), `a b||$A|it's "x"|*|`, "", nil},
		{"user", "id -un", "root\n", "", []client.CommandOption{client.User("root")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res, err := sb.Run(ctx, tc.line, tc.opts...)
			if err != nil || res.Stdout != tc.out || res.Stderr != tc.errOut || res.ExitCode != 0 {
				t.Errorf("%+v %v", res, err)
			}
		})
	}
	t.Run("output that does not fit into memory", func(t *testing.T) {
		h := sha256.New()
		n := &counter{w: h}
		if _, err := sb.Run(ctx, "yes 0123456789abcde | head -c 100000000", client.Stdout(n)); err != nil || n.n != 100_000_000 {
			t.Errorf("%d bytes, %v", n.n, err)
		}
		want := sha256.New()
		line := []byte("0123456789abcde\n")
		for range 100_000_000 / len(line) {
			want.Write(line)
		}
		if !bytes.Equal(h.Sum(nil), want.Sum(nil)) {
			t.Error("it is not what the command wrote")
		}
	})
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) { c.n += int64(len(b)); return c.w.Write(b) }

func conformEnds(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c)
	t.Run("exit status", func(t *testing.T) {
		res, err := sb.Run(ctx, "echo partly; echo why >&2; exit 3")
		var exit *client.ExitError
		if !errors.As(err, &exit) || exit.ExitCode != 3 || exit.Stdout != "partly\n" || exit.Stderr != "why\n" {
			t.Fatalf("%#v", err)
		}
		if err.Error() != "exit status 3: why" || res.ExitCode != 3 {
			t.Errorf("%v %+v", err, res)
		}
	})
	t.Run("signal", func(t *testing.T) {
		_, err := sb.Run(ctx, "kill -9 $$")
		var exit *client.ExitError
		if !errors.As(err, &exit) || exit.ExitCode != -1 || exit.Status != "signal: killed" {
			t.Errorf("%v", err)
		}
	})
	t.Run("refusals", func(t *testing.T) {
		_, err := sb.Run(ctx, "true", client.Cwd("/does/not/exist"))
		if !errors.Is(err, client.ErrInvalid) {
			t.Errorf("cwd: %v", err)
		}
		if _, err = sb.Run(ctx, "true", client.User("nobody-of-that-name")); !errors.Is(err, client.ErrUnauthenticated) {
			t.Errorf("user: %v", err)
		}
	})
	t.Run("time-out", func(t *testing.T) {
		res, err := sb.Run(ctx, "echo begun; exec sleep 4711", client.Timeout(500*time.Millisecond))
		if !errors.Is(err, client.ErrTimeout) || res.Stdout != "begun\n" {
			t.Errorf("%+v %v", res, err)
		}
		gone(t, sb, "4711")
	})
	t.Run("the context's deadline", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		if _, err := sb.Run(ctx, "exec sleep 4712"); !errors.Is(err, client.ErrTimeout) {
			t.Errorf("%v", err)
		}
		gone(t, sb, "4712")
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		if _, err := sb.Run(ctx, "echo go; exec sleep 4713", client.Stdout(writerFunc(func([]byte) { cancel() }))); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		gone(t, sb, "4713")
	})
	t.Run("a writer that fails", func(t *testing.T) {
		full := errors.New("full")
		if _, err := sb.Run(ctx, "echo go; exec sleep 4714", client.Stdout(failingWriter{full})); !errors.Is(err, full) {
			t.Errorf("%v", err)
		}
		gone(t, sb, "4714")
	})
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// gone waits until no process has the argument.
func gone(t *testing.T, sb *client.Sandbox, arg string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		list, err := sb.Processes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, p := range list {
			found = found || strings.Contains(strings.Join(p.Args, " "), arg)
		}
		if !found {
			return
		}
	}
	t.Errorf("the process with %s still runs", arg)
}

func conformBackground(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c)
	p, err := sb.Start(ctx, "cat; echo closed >&2; exit 4", client.StdinPipe())
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	other, err := sb.Attach(ctx, p.PID, client.Stdout(&out), client.Stderr(&errOut))
	if err != nil || other.PID != p.PID {
		t.Fatalf("%v %v", other, err)
	}
	list, err := sb.Processes(ctx)
	if err != nil || len(list) == 0 || list[len(list)-1].PID != p.PID {
		t.Errorf("%+v %v", list, err)
	}
	if _, err := io.WriteString(p, "one\n"); err != nil {
		t.Error(err)
	}
	if err := p.CloseInput(); err != nil {
		t.Error(err)
	}
	for _, follower := range []*client.Process{p, other} {
		var exit *client.ExitError
		if _, err := follower.Wait(); !errors.As(err, &exit) || exit.ExitCode != 4 {
			t.Errorf("%v", err)
		}
	}
	if out.String() != "one\n" || errOut.String() != "closed\n" {
		t.Errorf("%q %q", &out, &errOut)
	}

	long, err := sb.Start(ctx, "exec sleep 4715")
	if err != nil {
		t.Fatal(err)
	}
	if err := long.Close(); err != nil {
		t.Error(err)
	}
	if _, err := long.Wait(); err == nil {
		t.Error("Wait after Close says that the process has ended")
	}
	back, err := sb.Attach(ctx, long.PID)
	if err != nil {
		t.Fatalf("Close ended the process: %v", err)
	}
	if err := back.Signal(ctx, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	var exit *client.ExitError
	if _, err := back.Wait(); !errors.As(err, &exit) || exit.Status != "signal: terminated" {
		t.Errorf("%v", err)
	}
	if err := sb.Signal(ctx, 999999, syscall.SIGKILL); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("unknown PID: %v", err)
	}
	if err := sb.Signal(ctx, long.PID, syscall.SIGINT); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("SIGINT: %v", err)
	}
	if _, err := sb.Attach(ctx, 999999); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("unknown PID: %v", err)
	}
}

func conformFiles(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c)
	f := sb.Files
	if err := f.WriteFile(ctx, "a/b/hello.txt", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	data, err := f.ReadFile(ctx, "a/b/hello.txt")
	if err != nil || string(data) != "hello" {
		t.Errorf("%q %v", data, err)
	}
	if res, err := sb.Run(ctx, "cat a/b/hello.txt"); err != nil || res.Stdout != "hello" {
		t.Errorf("relative paths and commands do not meet: %+v %v", res, err)
	}
	info, err := f.Stat(ctx, "a/b/hello.txt")
	if err != nil || info.Name != "hello.txt" || info.Dir || info.Size != 5 || info.Mode != 0o644 || time.Since(info.ModTime) > time.Hour {
		t.Errorf("%+v %v", info, err)
	}
	many, err := f.WriteMany(ctx, client.File{Path: "a/1", Data: strings.NewReader("1")}, client.File{Path: "a/2", Data: strings.NewReader("")},
		client.File{Path: "a/ü ?#%&+", Data: strings.NewReader("odd")})
	if err != nil || len(many) != 3 || many[1].Name != "2" || many[2].Size != 3 {
		t.Errorf("%+v %v", many, err)
	}
	list, err := f.List(ctx, "a", 1)
	if err != nil || names(list) != "1 2 b ü ?#%&+" {
		t.Errorf("%s %v", names(list), err)
	}
	if list, err = f.List(ctx, "a", 2); err != nil || names(list) != "1 2 b hello.txt ü ?#%&+" {
		t.Errorf("%s %v", names(list), err)
	}
	if data, err := f.ReadFile(ctx, "a/ü ?#%&+"); err != nil || string(data) != "odd" {
		t.Errorf("%q %v", data, err)
	}
	if data, err := f.ReadFile(ctx, "a/2"); err != nil || len(data) != 0 {
		t.Errorf("%q %v", data, err)
	}
	if moved, err := f.Rename(ctx, "a/1", "c/d/one"); err != nil || moved.Name != "one" {
		t.Errorf("%+v %v", moved, err)
	}
	for path, want := range map[string]bool{"a/1": false, "c/d/one": true, "c": true, "/no/such/place": false} {
		if got, err := f.Exists(ctx, path); got != want || err != nil {
			t.Errorf("%s exists: %v %v", path, got, err)
		}
	}
	for i, want := range []bool{true, false} {
		if created, err := f.MakeDir(ctx, "new/dir"); created != want || err != nil {
			t.Errorf("MakeDir %d: %v %v", i, created, err)
		}
	}
	for range 2 {
		if err := f.Remove(ctx, "a"); err != nil {
			t.Error(err)
		}
	}
	conformFileErrors(t, sb)
}

func names(list []client.FileInfo) string {
	out := make([]string, len(list))
	for i, info := range list {
		out[i] = info.Name
	}
	return strings.Join(out, " ")
}

func conformFileErrors(t *testing.T, sb *client.Sandbox) {
	ctx, f := t.Context(), sb.Files
	_, readErr := f.ReadFile(ctx, "missing")
	_, statErr := f.Stat(ctx, "missing")
	_, listErr := f.List(ctx, "missing", 1)
	_, moveErr := f.Rename(ctx, "missing", "elsewhere")
	_, watchErr := f.Watch(ctx, "missing", false)
	for what, err := range map[string]error{"read": readErr, "stat": statErr, "list": listErr, "move": moveErr, "watch": watchErr} {
		if !errors.Is(err, client.ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a missing file: %v", what, err)
		}
	}
	_, dirErr := f.ReadFile(ctx, "/")
	_, fileErr := f.List(ctx, "c/d/one", 1)
	_, makeErr := f.MakeDir(ctx, "c/d/one")
	for what, err := range map[string]error{"read of a directory": dirErr, "list of a file": fileErr, "directory over a file": makeErr} {
		if !errors.Is(err, client.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := f.As("nobody-of-that-name").ReadFile(ctx, "x"); !errors.Is(err, client.ErrUnauthenticated) {
		t.Errorf("unknown user: %v", err)
	}
	broken := errors.New("the source broke")
	if _, err := f.Write(ctx, "half", io.MultiReader(strings.NewReader("half"), failingReader{broken})); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

func conformLargeFiles(t *testing.T, c *client.Client) {
	const size = 64 << 20
	ctx := t.Context()
	sb := sandbox(t, c)
	up := sha256.New()
	if _, err := sb.Files.Write(ctx, "large", io.TeeReader(io.LimitReader(rand.Reader, size), up)); err != nil {
		t.Fatal(err)
	}
	r, err := sb.Files.Open(ctx, "large")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	down := sha256.New()
	if n, err := io.Copy(down, r); n != size || err != nil || !bytes.Equal(up.Sum(nil), down.Sum(nil)) {
		t.Errorf("%d bytes, %v, equal %v", n, err, bytes.Equal(up.Sum(nil), down.Sum(nil)))
	}
}

func conformSignedURLs(t *testing.T, c *client.Client) {
	sb := sandbox(t, c)
	if up, err := sb.IsRunning(t.Context()); !up {
		t.Fatal(err)
	}
	var form bytes.Buffer
	mw := multipart.NewWriter(&form)
	part, err := mw.CreateFormFile("file", "anything")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(part, "posted")
	mw.Close()
	resp, err := http.Post(sb.Files.UploadURL("dir/posted.txt", time.Minute), mw.FormDataContentType(), &form)
	if err != nil {
		t.Fatal(err)
	}
	if body := drain(t, resp); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	for name, tc := range map[string]struct {
		url  string
		want int
	}{
		"for ever":     {sb.Files.DownloadURL("dir/posted.txt", 0), 200},
		"for a minute": {sb.Files.DownloadURL("dir/posted.txt", time.Minute), 200},
		"as root":      {sb.Files.As("root").DownloadURL("/etc/passwd", time.Minute), 200},
		"expired":      {sb.Files.DownloadURL("dir/posted.txt", -time.Minute), 401},
	} {
		resp, err := http.Get(tc.url)
		if err != nil {
			t.Fatal(err)
		}
		if body := drain(t, resp); resp.StatusCode != tc.want {
			t.Errorf("%s: %d %.200s", name, resp.StatusCode, body)
		}
	}
}

func conformWatch(t *testing.T, c *client.Client) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	sb := sandbox(t, c)
	if _, err := sb.Files.MakeDir(ctx, "watched/below"); err != nil {
		t.Fatal(err)
	}
	w, err := sb.Files.Watch(ctx, "watched", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Files.WriteFile(ctx, "watched/below/x", []byte("y")); err != nil {
		t.Fatal(err)
	}
	if err := sb.Files.Remove(ctx, "watched/below/x"); err != nil {
		t.Fatal(err)
	}
	var ops []string
	for e, err := range w.Events() {
		if err != nil {
			t.Fatal(err)
		}
		if e.Name != "below/x" {
			t.Errorf("%+v", e)
		}
		ops = append(ops, string(e.Op))
		if e.Op == client.FileRemove {
			break
		}
	}
	if strings.Join(ops, " ") != "create chmod write remove" {
		t.Errorf("%v", ops)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	for e, err := range w.Events() {
		t.Errorf("after Close: %+v %v", e, err)
	}
}

func conformTerminal(t *testing.T, c *client.Client) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sb := sandbox(t, c)
	term, err := sb.Terminal(ctx, client.Size{Cols: 90, Rows: 25}, client.Env(map[string]string{"MARK": "m1"}))
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	say(t, term, "stty size; echo $MARK$TERM", "m1xterm-256color")
	if err := term.Resize(ctx, client.Size{Cols: 123, Rows: 45}); err != nil {
		t.Error(err)
	}
	say(t, term, "stty size", "45 123")
	if err := term.Close(); err != nil {
		t.Error(err)
	}

	back, err := sb.AttachTerminal(ctx, term.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	say(t, back, "echo again$((40+2))", "again42")
	if _, err := io.WriteString(back, "exit 5\n"); err != nil {
		t.Error(err)
	}
	if code, err := back.Wait(); code != 5 || err != nil {
		t.Errorf("%d %v", code, err)
	}
	one, err := sb.Terminal(ctx, client.Size{Cols: 80, Rows: 24}, client.Command("test -t 0 && echo on a terminal"))
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	if out, err := io.ReadAll(one); err != nil || !strings.Contains(string(out), "on a terminal\r\n") {
		t.Errorf("%q %v", out, err)
	}
}

// say types a line and reads until the answer shows.
func say(t *testing.T, term *client.Terminal, line, answer string) {
	t.Helper()
	if _, err := io.WriteString(term, line+"\n"); err != nil {
		t.Fatal(err)
	}
	var shown strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(shown.String(), answer) {
		n, err := term.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, shown.String())
		}
		shown.Write(buf[:n])
	}
}

func conformLogs(t *testing.T, c *client.Client) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sb := sandbox(t, c)
	if _, err := sb.Run(ctx, "for i in 1 2 3; do echo line $i; done; echo oops >&2"); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for e, err := range c.Logs(ctx, sb.ID, client.Follow(), client.LogsOf(nacre.LogStdout)) {
		if err != nil {
			t.Fatal(err)
		}
		if lines = append(lines, e.Message); len(lines) == 3 {
			go sb.Kill(ctx) // the end of the sandbox ends the loop
		}
	}
	if fmt.Sprint(lines) != "[line 1 line 2 line 3]" {
		t.Errorf("%q", lines)
	}
	kinds := map[nacre.LogType]int{}
	for e, err := range c.Logs(ctx, sb.ID) {
		if err != nil {
			t.Fatal(err)
		}
		kinds[e.Type]++
	}
	if kinds[nacre.LogStdout] != 3 || kinds[nacre.LogStderr] != 1 || kinds[nacre.LogProcessStart] != 1 || kinds[nacre.LogProcessEnd] != 1 {
		t.Errorf("%v after the end", kinds)
	}
}

func conformMetrics(t *testing.T, c *client.Client) {
	sb := sandbox(t, c)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-tick.C {
		metrics, err := sb.Metrics(t.Context(), time.Time{}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		if len(metrics) > 0 {
			m := metrics[0]
			if m.CPUCount < 1 || m.MemTotal < 1<<20 || m.MemUsed <= 0 || m.DiskTotal <= 0 || time.Since(m.Time) > time.Minute {
				t.Errorf("%+v", m)
			}
			return
		}
	}
	t.Error("no metric within 20 seconds")
}

// conformNetwork looks at routes only: the tests dial nothing outside.
func conformNetwork(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c, client.Internet(false), client.AllowOut("192.0.2.1"), client.PrivateTraffic(), client.MaskRequestHost("x.test:${PORT}"))
	if sb.TrafficToken == "" {
		t.Error("PrivateTraffic gave no token")
	}
	if err := sb.SetNetwork(ctx, client.DenyOut("198.51.100.0/24")); err != nil {
		t.Error(err)
	}
	if err := sb.SetNetwork(ctx, client.DenyOut("not an address")); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if host := sb.Host(8080); host != "" && !strings.HasPrefix(host, "8080-"+sb.ID+".") {
		t.Error(host)
	}
}

func conformTimeout(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c, client.Timeout(time.Minute))
	p, err := sb.Start(ctx, "exec sleep "+strconv.Itoa(4716))
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.SetTimeout(ctx, time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("a command that its sandbox's time-out ended: %v", err)
	}
	if err := sb.SetTimeout(ctx, 0); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func conformPause(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c)
	p, err := sb.Start(ctx, "exec sleep 4717")
	if err != nil {
		t.Fatal(err)
	}
	err = sb.Pause(ctx)
	if errors.Is(err, client.ErrUnsupported) {
		t.Skip("this server does not pause: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if up, err := sb.IsRunning(ctx); up || err != nil {
		t.Errorf("running %v, %v while it is paused", up, err)
	}
	if err := sb.Pause(ctx); !errors.Is(err, client.ErrConflict) {
		t.Errorf("a second Pause: %v", err)
	}
	again, err := c.Connect(ctx, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Attach(ctx, p.PID); err != nil {
		t.Errorf("the process is gone: %v", err)
	}
}
