package client

import (
	"context"
	"errors"
	"io"
	"syscall"
	"time"

	"github.com/nacrehq/nacre"
)

// Process is a process in a sandbox that is being followed. Its methods may be
// called from several goroutines.
type Process struct {
	PID int

	sb     *Sandbox
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when result and err are final
	result Result
	err    error
}

// follow passes the process's output on until it ends, the stream breaks or ctx ends.
func (s *Sandbox) follow(ctx context.Context, cancel context.CancelCauseFunc, stream nacre.ProcessStream, c command, owned bool) *Process {
	p := &Process{PID: stream.PID(), sb: s, ctx: ctx, cancel: cancel, done: make(chan struct{}), result: Result{ExitCode: -1}}
	if c.stdin != nil {
		go p.feed(c.stdin)
	}
	go func() {
		defer close(p.done)
		defer cancel(nil)
		defer stream.Close()
		err := p.pump(stream, c)
		var exit *ExitError
		if owned && err != nil && !errors.As(err, &exit) && !errors.Is(err, ErrNotRunning) {
			s.killDetached(ctx, p.PID)
		}
		p.err = err
	}()
	return p
}

func (p *Process) pump(stream nacre.ProcessStream, c command) error {
	for {
		ev, err := stream.Next()
		if err != nil {
			if isEOF(err) {
				err = nacre.Errorf(nacre.CodeUnavailable, "the stream ended before the process did")
			}
			return p.sb.guest.streamError(p.ctx, err)
		}
		if ev.Exit != nil {
			p.result, err = exitResult(ev.Exit)
			return err
		}
		if err := put(c.stdout, ev.Stdout); err != nil {
			return err
		}
		if err := put(c.stdout, ev.Term); err != nil {
			return err
		}
		if err := put(c.stderr, ev.Stderr); err != nil {
			return err
		}
	}
}

func put(w io.Writer, b []byte) error {
	if w == nil || len(b) == 0 {
		return nil
	}
	_, err := w.Write(b)
	return err
}

// feed copies r to the process's stdin. It ends with r, and with the process
// unless r blocks.
func (p *Process) feed(r io.Reader) {
	_, err := io.CopyBuffer(onlyWriter{p}, r, make([]byte, 32<<10))
	if err == nil {
		_ = p.CloseInput() // the process may have ended
	}
}

// onlyWriter keeps io.Copy from looking for other methods.
type onlyWriter struct{ io.Writer }

// Wait waits for the process to end, as Run does. It may be called again.
func (p *Process) Wait() (*Result, error) {
	<-p.done
	result := p.result
	var exit *ExitError
	if errors.As(p.err, &exit) {
		return &result, &ExitError{Result: &result, Status: exit.Status}
	}
	return &result, p.err
}

// Done is closed when Wait will not block.
func (p *Process) Done() <-chan struct{} { return p.done }

// Close ends the following and leaves the process running.
func (p *Process) Close() error {
	p.cancel(errClosed)
	<-p.done
	return nil
}

// Kill sends SIGKILL to the process and its group.
func (p *Process) Kill(ctx context.Context) error { return p.Signal(ctx, syscall.SIGKILL) }

// Signal is Sandbox.Signal.
func (p *Process) Signal(ctx context.Context, sig syscall.Signal) error {
	return p.sb.Signal(ctx, p.PID, sig)
}

// Write writes to the process's stdin, which StdinPipe keeps open.
func (p *Process) Write(b []byte) (int, error) {
	ctx, cancel := p.inputContext()
	defer cancel()
	if err := p.sb.guest.procs.Input(ctx, p.PID, b); err != nil {
		return 0, guestError(ctx, err)
	}
	return len(b), nil
}

// inputContext outlives the following by a second: input may be what the process
// ends on, and the answer to it comes after the end.
func (p *Process) inputContext() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.ctx))
	stop := context.AfterFunc(p.ctx, func() { time.AfterFunc(time.Second, cancel) })
	return ctx, func() { stop(); cancel() }
}

// CloseInput ends the process's stdin.
func (p *Process) CloseInput() error {
	ctx, cancel := p.inputContext()
	defer cancel()
	return guestError(ctx, p.sb.guest.procs.CloseInput(ctx, p.PID))
}
