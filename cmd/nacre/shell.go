package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/nacrehq/nacre/client"
)

func newShellCommand(g *globals) *cobra.Command {
	var f commandFlags
	var pid int
	cmd := &cobra.Command{
		Use:   "shell ID",
		Short: "Open a shell in a sandbox",
		Long: "shell opens a login shell on a terminal and ends with its exit status. The sandbox does not reach its time-out\n" +
			"while the shell is open. A shell whose connection broke goes on; --pid returns to it. 125 is the command's own\n" +
			"failure.",
		Example: "  nacre shell ID\n  nacre shell -u root ID",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts, err := f.options()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			c, sb, err := g.sandbox(ctx, args[0])
			if err != nil {
				return err
			}
			stop := keepAlive(ctx, c, sb.ID)
			defer stop()
			return attachTerminal(ctx, func(size client.Size) (*client.Terminal, error) {
				if pid == 0 {
					return sb.Terminal(ctx, size, opts...)
				}
				t, err := sb.AttachTerminal(ctx, pid)
				if err == nil {
					err = t.Resize(ctx, size)
				}
				return t, err
			})
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&f.env, "env", "e", nil, "environment variable NAME=VALUE; may be repeated")
	fs.StringVarP(&f.cwd, "cwd", "w", "", "directory to start in")
	fs.StringVarP(&f.user, "user", "u", "", "user to be, such as root")
	fs.IntVar(&pid, "pid", 0, "return to the shell with this process id")
	return passesStatus(cmd)
}

// keepAlive moves the deadline on while somebody is there, never back.
func keepAlive(ctx context.Context, c *client.Client, id string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Minute)
		defer tick.Stop()
		for {
			// An error is for the shell to notice, should it be one that lasts.
			_, _ = c.Connect(ctx, id, client.Timeout(5*time.Minute))
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// attachTerminal joins this terminal and the one that open makes until its
// program ends. Without a terminal here, such as in a script, input is typed as
// it is and its end is Ctrl-D.
func attachTerminal(ctx context.Context, open func(client.Size) (*client.Terminal, error)) error {
	in, out := int(os.Stdin.Fd()), int(os.Stdout.Fd())
	size := client.Size{Cols: 80, Rows: 24}
	if w, h, err := term.GetSize(out); err == nil && w > 0 && h > 0 {
		size = client.Size{Cols: w, Rows: h}
	}
	t, err := open(size)
	if err != nil {
		return err
	}
	defer t.Close()
	restore := func() {}
	raw := term.IsTerminal(in)
	if raw {
		old, err := term.MakeRaw(in)
		if err != nil {
			return fmt.Errorf("switch the terminal to raw mode: %w", err)
		}
		restore = sync.OnceFunc(func() { _ = term.Restore(in, old) })
		defer restore()
	}
	stop := followSize(ctx, t, out)
	defer stop()
	ended := make(chan struct{})
	defer close(ended)
	go typeInput(t, raw, ended) // ends with the process: a read of the terminal cannot be called off

	_, err = io.Copy(os.Stdout, struct{ io.Reader }{t})
	restore()
	switch {
	case errors.Is(err, client.ErrUnavailable) && !errors.Is(err, client.ErrNotRunning):
		return fmt.Errorf("the connection broke (%w); the program goes on: return to it with --pid %d", err, t.PID)
	case err != nil:
		return err
	}
	code, err := t.Wait()
	switch {
	case err != nil:
		return err
	case code < 0:
		return exitCode(exitSignal + int(syscall.SIGKILL))
	case code > 0:
		return exitCode(code)
	}
	return nil
}

func typeInput(t *client.Terminal, raw bool, ended <-chan struct{}) {
	_, err := io.Copy(struct{ io.Writer }{t}, os.Stdin)
	if err != nil || raw {
		return
	}
	// A program that is just setting up its terminal, as a shell does, loses what
	// was typed before: the end is said until it is heard.
	for again := time.NewTicker(500 * time.Millisecond); ; {
		if _, err := t.Write([]byte{4}); err != nil { // the program may have ended
			return
		}
		select {
		case <-ended:
			return
		case <-again.C:
		}
	}
}

// followSize tells the program of every change of the window's size.
func followSize(ctx context.Context, t *client.Terminal, fd int) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				if w, h, err := term.GetSize(fd); err == nil && w > 0 && h > 0 {
					_ = t.Resize(ctx, client.Size{Cols: w, Rows: h}) // the next change tries again
				}
			}
		}
	})
	return func() { signal.Stop(changed); cancel(); wg.Wait() }
}
