package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/nacrehq/nacre/runtime/firecracker"
)

// TestMain lets the test binary be the command, for what needs a terminal of
// its own.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == firecracker.ProbeArg {
		os.Exit(firecracker.ProbeMain())
	}
	if os.Getenv("NACRE_TEST_COMMAND") == "" {
		os.Exit(m.Run())
	}
	err := commandLine().ExecuteContext(context.Background())
	var code exitCode
	switch {
	case errors.As(err, &code):
		os.Exit(int(code))
	case err != nil:
		fmt.Fprintln(os.Stderr, "nacre:", errorText(err))
		os.Exit(1)
	}
}

func (s *shell) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	s.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], append([]string{"--data-dir", s.dir}, args...)...)
	cmd.Env = append(os.Environ(), "NACRE_TEST_COMMAND=1")
	return cmd
}

func TestShellOnATerminal(t *testing.T) {
	s := newShell(t)
	id := strings.TrimSpace(s.ok("run"))
	cmd := s.command("shell", "-e", "MARK=m", id)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: 91, Rows: 31})
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	screen := &screen{t: t, r: tty}
	screen.say("echo $((40+2))$MARK", "42m")
	screen.say("stty size", "31 91")
	if err := pty.Setsize(tty, &pty.Winsize{Cols: 120, Rows: 40}); err != nil {
		t.Fatal(err)
	}
	screen.say("until [ \"$(stty size)\" = '40 120' ]; do :; done; echo resi''zed", "resized")
	screen.say("trap 'echo inter''rupted' INT; echo rea''dy", "ready")
	screen.say("\x03", "interrupted") // raw: Ctrl-C is the program's
	if _, err := io.WriteString(tty, "exit 6\n"); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, tty)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 6 {
		t.Errorf("it ended with %v", err)
	}
}

// screen reads what a terminal shows.
type screen struct {
	t     *testing.T
	r     io.ReadWriter
	shown string
}

// say types a line and reads until the answer shows.
func (s *screen) say(line, answer string) {
	s.t.Helper()
	if _, err := io.WriteString(s.r, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for !strings.Contains(s.shown, answer) {
		n, err := s.r.Read(buf)
		if err != nil {
			s.t.Fatalf("%v; it shows %q", err, s.shown)
		}
		s.shown += string(buf[:n])
	}
	_, s.shown, _ = strings.Cut(s.shown, answer)
}

func TestShellInAScript(t *testing.T) {
	s := newShell(t)
	id := strings.TrimSpace(s.ok("run"))
	cmd := s.command("shell", id)
	cmd.Stdin = strings.NewReader("echo $((40+2))\nexit 5\n")
	out, err := cmd.Output()
	if cmd.ProcessState.ExitCode() != 5 || !strings.Contains(string(out), "42") {
		t.Errorf("%v %q", err, out)
	}
	// Nothing to type: the shell is told so though it was not listening yet.
	out, err = s.command("shell", id).Output()
	if err != nil {
		t.Errorf("a shell without input: %v %q", err, out)
	}
	cmd = s.command("run", "--rm", "-t", "--", "tty >/dev/null && cat && exit 4")
	cmd.Stdin = strings.NewReader("typed\n") // its end is Ctrl-D
	out, err = cmd.Output()
	if cmd.ProcessState.ExitCode() != 4 || !strings.Contains(string(out), "typed\r\n") {
		t.Errorf("%v %q", err, out)
	}
	cmd = s.command("exec", "-i", id, "--", "wc", "-c")
	cmd.Stdin = strings.NewReader(strings.Repeat("x", 100_000))
	if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != "100000" {
		t.Errorf("%v %q", err, out)
	}
}
