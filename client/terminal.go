package client

import (
	"context"
	"io"
	"sync"
	"syscall"

	"github.com/nacrehq/nacre"
)

// Size of a terminal in characters.
type Size = nacre.TermSize

// Terminal is an interactive program on a terminal in a sandbox. Read gives what
// it shows and io.EOF at its end, Write types. Reading and writing may go on at
// once; reads follow each other.
type Terminal struct {
	PID int

	sb     *Sandbox
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu     sync.Mutex // of stream and what was read from it
	stream nacre.ProcessStream
	rest   []byte
	exit   *nacre.ProcessExit
	err    error
}

// Command is what runs on a Terminal instead of a login shell: a shell line.
func Command(line string) CommandOption {
	return commandOption(func(c *command) { c.spec.Args = []string{"-l", "-c", line} })
}

// Terminal starts a login shell on a terminal. Of the options, Cwd, User, Env,
// Timeout and Command count. As with Start, the end of ctx leaves the program
// running; AttachTerminal finds it again.
func (s *Sandbox) Terminal(ctx context.Context, size Size, opts ...CommandOption) (*Terminal, error) {
	c := command{spec: nacre.ProcessSpec{Cmd: "/bin/bash", Args: []string{"-i", "-l"}, Term: &size,
		Env: map[string]string{"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}}}
	for _, o := range opts {
		o.command(&c)
	}
	return s.terminal(ctx, func(ctx context.Context) (nacre.ProcessStream, error) { return s.guest.procs.Start(ctx, c.spec) })
}

// AttachTerminal returns to a terminal; what it showed before is lost.
func (s *Sandbox) AttachTerminal(ctx context.Context, pid int) (*Terminal, error) {
	return s.terminal(ctx, func(ctx context.Context) (nacre.ProcessStream, error) { return s.guest.procs.Connect(ctx, pid) })
}

func (s *Sandbox) terminal(ctx context.Context, open func(context.Context) (nacre.ProcessStream, error)) (*Terminal, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stream, err := open(ctx)
	if err != nil {
		err = guestError(ctx, err)
		cancel(nil)
		return nil, err
	}
	return &Terminal{PID: stream.PID(), sb: s, ctx: ctx, cancel: cancel, stream: stream}, nil
}

// Read reads what the terminal shows.
func (t *Terminal) Read(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.rest) == 0 {
		if t.err != nil {
			return 0, t.err
		}
		ev, err := t.stream.Next()
		switch {
		case err != nil:
			if isEOF(err) {
				err = nacre.Errorf(nacre.CodeUnavailable, "the stream ended before the program did")
			}
			t.err = t.sb.guest.streamError(t.ctx, err)
		case ev.Exit != nil:
			t.exit, t.err = ev.Exit, io.EOF
		default:
			t.rest = ev.Term
		}
	}
	n := copy(b, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// Write types.
func (t *Terminal) Write(b []byte) (int, error) {
	if err := t.sb.guest.procs.Input(t.ctx, t.PID, b); err != nil {
		return 0, guestError(t.ctx, err)
	}
	return len(b), nil
}

// Resize tells the program that its window has another size.
func (t *Terminal) Resize(ctx context.Context, size Size) error {
	return guestError(ctx, t.sb.guest.procs.Resize(ctx, t.PID, size))
}

// Wait drops what was not read and returns the exit code when the program has
// ended, -1 for one that a signal ended. Unlike Run it takes no code for an error.
func (t *Terminal) Wait() (int, error) {
	if _, err := io.Copy(io.Discard, onlyReader{t}); err != nil {
		return -1, err
	}
	return t.exit.Code, nil
}

type onlyReader struct{ io.Reader }

// Kill sends SIGKILL to the program and its group.
func (t *Terminal) Kill(ctx context.Context) error {
	return t.sb.Signal(ctx, t.PID, syscall.SIGKILL)
}

// Close lets go of the terminal and leaves the program running.
func (t *Terminal) Close() error {
	t.cancel(errClosed) // ends a Read that waits
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stream.Close()
}
