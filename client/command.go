package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/nacrehq/nacre"
)

// A CommandOption shapes a command.
type CommandOption interface{ command(*command) }

type command struct {
	spec           nacre.ProcessSpec
	stdin          io.Reader
	stdout, stderr io.Writer
}

type commandOption func(*command)

func (f commandOption) command(c *command) { f(c) }

// Cwd is the directory to run in. Default: the template's, or the user's home.
func Cwd(dir string) CommandOption { return commandOption(func(c *command) { c.spec.Cwd = dir }) }

// User is who the command runs as. Default: the template's user.
func User(name string) CommandOption { return commandOption(func(c *command) { c.spec.User = name }) }

// Stdout sends what the command writes there as it comes. A slow writer slows
// the command down.
func Stdout(w io.Writer) CommandOption { return commandOption(func(c *command) { c.stdout = w }) }

// Stderr is Stdout for the other stream. Both may be one writer: writes do not overlap.
func Stderr(w io.Writer) CommandOption { return commandOption(func(c *command) { c.stderr = w }) }

// Stdin feeds the command from r until it ends. Default: /dev/null. A Read that
// blocks is left behind when the command ends first.
func Stdin(r io.Reader) CommandOption {
	return commandOption(func(c *command) { c.stdin, c.spec.Stdin = r, true })
}

// StdinPipe keeps stdin open for Process.Write and CloseInput.
func StdinPipe() CommandOption { return commandOption(func(c *command) { c.spec.Stdin = true }) }

// Result is how a command ended.
type Result struct {
	// What it wrote, where no Stdout or Stderr option took it. Only Run collects.
	Stdout, Stderr string
	ExitCode       int // -1 for a command that a signal ended
}

// maxCollected bounds what Run keeps of each stream: what runs in a sandbox
// must not fill this program's memory.
const maxCollected = 64 << 20

// Run runs a shell line, as "bash -l -c" does, and waits for it. The Result
// comes with an error too, holding what was written until then.
//
// A command that does not end with status 0 is an *ExitError; one that outlives
// its Timeout is killed, ErrTimeout. When ctx ends first the command is killed
// too. More than 64 MiB of output need a Stdout or Stderr option; without one
// the command is killed.
func (s *Sandbox) Run(ctx context.Context, line string, opts ...CommandOption) (*Result, error) {
	var out, errOut collector
	c := shell(line, opts)
	if end, ok := ctx.Deadline(); ok && c.spec.Timeout == 0 {
		c.spec.Timeout = max(time.Millisecond, time.Until(end)) // should this program be gone by then
	}
	if c.stdout == nil {
		c.stdout = &out
	}
	if c.stderr == nil {
		c.stderr = &errOut
	}
	p, err := s.start(ctx, c, true)
	if err != nil {
		return &Result{ExitCode: -1}, err
	}
	<-p.done
	p.result.Stdout, p.result.Stderr = out.String(), errOut.String()
	return p.Wait()
}

// Start starts a shell line and returns when it has a PID. What it writes goes
// where Stdout and Stderr say, and is dropped without them.
//
// The end of ctx ends the following of the process, not the process: Kill does
// that, and it ends with its sandbox.
func (s *Sandbox) Start(ctx context.Context, line string, opts ...CommandOption) (*Process, error) {
	return s.start(ctx, shell(line, opts), false)
}

// Attach follows a process that runs already. What it wrote before is lost;
// Stdout, Stderr and Stdin are the options that count. An unknown PID is ErrNotFound.
func (s *Sandbox) Attach(ctx context.Context, pid int, opts ...CommandOption) (*Process, error) {
	var c command
	for _, o := range opts {
		o.command(&c)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stream, err := s.guest.procs.Connect(ctx, pid)
	if err != nil {
		err = guestError(ctx, err)
		cancel(nil)
		return nil, err
	}
	return s.follow(ctx, cancel, stream, c, false), nil
}

// ProcessInfo describes a running process.
type ProcessInfo = nacre.ProcessInfo

// Processes lists what was started through the guest's daemon and still runs.
func (s *Sandbox) Processes(ctx context.Context) ([]ProcessInfo, error) {
	list, err := s.guest.procs.List(ctx)
	return list, guestError(ctx, err)
}

// Signal sends SIGTERM or SIGKILL to a process and its group. An unknown PID is
// ErrNotFound, another signal ErrInvalid.
func (s *Sandbox) Signal(ctx context.Context, pid int, sig syscall.Signal) error {
	if sig != syscall.SIGTERM && sig != syscall.SIGKILL {
		return &Error{Code: nacre.CodeInvalid, Message: fmt.Sprintf("signal %d cannot be sent this way, only SIGTERM and SIGKILL; run `kill` in the sandbox", sig)}
	}
	return guestError(ctx, s.guest.procs.Signal(ctx, pid, int(sig)))
}

// Quote makes one shell line of a program and its arguments, for Run and Start.
func Quote(args ...string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if a != "" && strings.Trim(a, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+./:@%,") == "" {
			quoted[i] = a
			continue
		}
		quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}

func shell(line string, opts []CommandOption) command {
	c := command{spec: nacre.ProcessSpec{Cmd: "/bin/bash", Args: []string{"-l", "-c", line}}}
	for _, o := range opts {
		o.command(&c)
	}
	return c
}

// start starts c. An owned process is killed when nobody can wait for it any
// more: it belongs to a Run.
func (s *Sandbox) start(ctx context.Context, c command, owned bool) (*Process, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stream, err := s.guest.procs.Start(ctx, c.spec)
	if err != nil {
		err = guestError(ctx, err)
		cancel(nil)
		return nil, err
	}
	return s.follow(ctx, cancel, stream, c, owned), nil
}

// errClosed is why a stream ended that its user closed.
var errClosed = errors.New("nacre client: closed")

// collector keeps what is written to it, within bounds.
type collector struct{ strings.Builder }

func (c *collector) Write(b []byte) (int, error) {
	if c.Len()+len(b) > maxCollected {
		return 0, &Error{Code: nacre.CodeExhausted,
			Message: fmt.Sprintf("the command wrote more than %d MiB; take large output with the Stdout and Stderr options", maxCollected>>20)}
	}
	return c.Builder.Write(b)
}

// killDetached kills a process that ctx can no longer speak for.
func (s *Sandbox) killDetached(ctx context.Context, pid int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = s.guest.procs.Signal(ctx, pid, int(syscall.SIGKILL)) // best effort: the sandbox's end is behind it
}

func exitResult(x *nacre.ProcessExit) (Result, error) {
	r := Result{ExitCode: x.Code}
	if x.Code == 0 && x.Exited {
		return r, nil
	}
	status := x.Status
	if status == "" {
		status = fmt.Sprintf("exit status %d", x.Code)
	}
	return r, &ExitError{Status: status}
}

// isEOF tells whether a stream ended as it should.
func isEOF(err error) bool { return errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) }
