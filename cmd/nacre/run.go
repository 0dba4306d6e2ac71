package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

// runFlags shape the sandbox of a run.
type runFlags struct {
	commandFlags
	template   string
	runtime    string
	timeout    time.Duration
	metadata   []string
	rm, detach bool

	noInternet, private   bool
	autoPause, autoResume bool
	allowOut, denyOut     []string
}

func newRunCommand(g *globals) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] [-- COMMAND [ARG...]]",
		Short: "Make a sandbox and run a command in it",
		Long: "run makes a sandbox, runs the command in it and ends with its exit status. The sandbox goes on until its\n" +
			"time-out, and its id is printed on standard error; with --rm it ends with the command.\n" +
			"Without a command it makes the sandbox and prints the id. 125 is run's own failure.",
		Example: "  nacre run --rm -- uname -a\n" +
			"  id=$(nacre run --timeout 1h)\n" +
			"  nacre run --rm -t -- bash\n" +
			"  nacre run -d --timeout 1h -- python3 -m http.server 8000",
		RunE: func(cmd *cobra.Command, args []string) error {
			args = afterDashes(args)
			if len(args) == 0 && (f.rm || f.tty || f.detach) {
				return errors.New("no command is given, which --rm, -t and -d need; such as: nacre run --rm -t -- bash")
			}
			create, err := f.createOptions()
			if err != nil {
				return err
			}
			opts, err := f.options()
			if err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			sb, err := c.Create(cmd.Context(), create...)
			if err != nil {
				return templateError(f.template, err)
			}
			switch {
			case len(args) == 0:
				return g.printStarted(cmd, sb.ID, 0)
			case f.detach:
				return g.runDetached(cmd, sb, args, opts)
			case f.rm:
				defer func() {
					ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), 30*time.Second)
					defer cancel()
					if err := sb.Kill(ctx); err != nil && !errors.Is(err, client.ErrNotFound) {
						fmt.Fprintf(cmd.ErrOrStderr(), "nacre: sandbox %s was not ended: %s\n", sb.ID, errorText(err))
					}
				}()
			default:
				fmt.Fprintln(cmd.ErrOrStderr(), "sandbox "+sb.ID)
			}
			return g.runCommand(cmd, sb, f.commandFlags, args, opts)
		},
	}
	f.commandFlags.flags(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.template, "template", "base", "what to make the sandbox from: a template, or a snapshot; 'nacre templates' and 'nacre snapshots' list them")
	fs.StringVar(&f.runtime, "runtime", "", "what the sandbox is made of, gvisor or firecracker, where the server offers it (default: the template's, or the server's)")
	fs.DurationVar(&f.timeout, "timeout", client.DefaultTimeout, "how long the sandbox lives, such as 1h")
	fs.StringArrayVar(&f.metadata, "metadata", nil, "mark the sandbox with NAME=VALUE; may be repeated")
	fs.BoolVar(&f.rm, "rm", false, "end the sandbox when the command has ended")
	fs.BoolVarP(&f.detach, "detach", "d", false, "leave the command running and print the sandbox's id")
	fs.BoolVar(&f.noInternet, "no-internet", false, "close the way out, but for --allow-out")
	fs.StringSliceVar(&f.allowOut, "allow-out", nil, "addresses or prefixes that the sandbox may reach whatever is denied")
	fs.StringSliceVar(&f.denyOut, "deny-out", nil, "addresses or prefixes that the sandbox may not reach")
	fs.BoolVar(&f.private, "private", false, "answer requests to the sandbox's ports only with its traffic token")
	fs.BoolVar(&f.autoPause, "auto-pause", false, "pause the sandbox at its time-out instead of ending it")
	fs.BoolVar(&f.autoResume, "auto-resume", false, "resume the sandbox when a request comes for it while it is paused")
	cmd.MarkFlagsMutuallyExclusive("rm", "detach")
	cmd.MarkFlagsMutuallyExclusive("tty", "detach")
	return passesStatus(cmd)
}

func (f *runFlags) createOptions() ([]client.CreateOption, error) {
	env, err := parsePairs("env", f.env)
	if err != nil {
		return nil, err
	}
	metadata, err := parsePairs("metadata", f.metadata)
	if err != nil {
		return nil, err
	}
	opts := []client.CreateOption{client.Template(f.template), client.Timeout(f.timeout), client.Env(env),
		client.Metadata(metadata), client.AllowOut(f.allowOut...), client.DenyOut(f.denyOut...)}
	if f.runtime != "" {
		opts = append(opts, client.Runtime(nacre.RuntimeName(f.runtime)))
	}
	if f.autoPause {
		opts = append(opts, client.AutoPause())
	}
	if f.autoResume {
		opts = append(opts, client.AutoResume())
	}
	if f.noInternet {
		opts = append(opts, client.Internet(false))
	}
	if f.private {
		opts = append(opts, client.PrivateTraffic())
	}
	return opts, nil
}

// runDetached starts the command and leaves it.
func (g *globals) runDetached(cmd *cobra.Command, sb *client.Sandbox, args []string, opts []client.CommandOption) error {
	p, err := sb.Start(cmd.Context(), shellLine(args), opts...)
	if err != nil {
		return err
	}
	if err := p.Close(); err != nil {
		return err
	}
	return g.printStarted(cmd, sb.ID, p.PID)
}

func (g *globals) printStarted(cmd *cobra.Command, id string, pid int) error {
	if !g.json {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), id)
		return err
	}
	return printJSON(cmd.OutOrStdout(), struct {
		ID  string `json:"id"`
		PID int    `json:"pid,omitempty"`
	}{id, pid})
}

// templateError says where templates are listed.
func templateError(name string, err error) error {
	if errors.Is(err, client.ErrNotFound) {
		return fmt.Errorf("there is no template and no snapshot %q; `nacre templates` and `nacre snapshots` list them", name)
	}
	return err
}
