package client_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
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
	t.Run("pause", func(t *testing.T) { conformPause(t, c) })
	t.Run("snapshots", func(t *testing.T) { conformSnapshots(t, c) })
	t.Run("forks", func(t *testing.T) { conformForks(t, c) })
	t.Run("what a snapshot holds", func(t *testing.T) { needLive(t, live); conformState(t, c) })
	t.Run("stream across a pause", func(t *testing.T) { needLive(t, live); conformStreamAcrossPause(t, c) })
	t.Run("wake", func(t *testing.T) { needLive(t, live); conformWake(t, c) })
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
		res, err := sb.Run(ctx, "echo begun; exec sleep 4711", client.Timeout(2*time.Second)) // a busy guest needs a while for the echo
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
	// Bash sets the size that it read before each prompt, so that it may undo this one.
	say(t, term, `until [ "$(stty size)" = "45 123" ]; do sleep 0.05; done; echo resized$((40+2))`, "resized42")
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
