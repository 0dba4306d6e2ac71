package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre/client"
)

// Statuses that shells and timeout(1) use for ends that are no exit.
const (
	exitTimeout     = 124
	exitOwn         = 125 // as docker's: it was not the command that failed
	exitInterrupted = 130
	exitSignal      = 128 // plus the signal
)

// statusOfCommand marks the commands that end with another one's status.
const statusOfCommand = "status of command"

// passesStatus has a command's own failures end with exitOwn, as nothing else would
// tell them from the other's.
func passesStatus(cmd *cobra.Command) *cobra.Command {
	cmd.Annotations = map[string]string{statusOfCommand: ""}
	return cmd
}

// statusOf is what the process ends with after cmd failed.
func statusOf(cmd *cobra.Command) int {
	if _, ok := cmd.Annotations[statusOfCommand]; ok {
		return exitOwn
	}
	return 1
}

// commandFlags say how a command runs in a sandbox.
type commandFlags struct {
	env   []string
	cwd   string
	user  string
	stdin bool
	tty   bool
}

func (f *commandFlags) flags(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringArrayVarP(&f.env, "env", "e", nil, "environment variable NAME=VALUE; may be repeated")
	fs.StringVarP(&f.cwd, "cwd", "w", "", "directory to run in")
	fs.StringVarP(&f.user, "user", "u", "", "user to run as, such as root")
	fs.BoolVarP(&f.stdin, "stdin", "i", false, "pass standard input on")
	fs.BoolVarP(&f.tty, "tty", "t", false, "run on a terminal")
	fs.SetInterspersed(false) // what follows the first argument is the command's
}

func (f *commandFlags) options() ([]client.CommandOption, error) {
	env, err := parsePairs("env", f.env)
	if err != nil {
		return nil, err
	}
	return []client.CommandOption{client.Env(env), client.Cwd(f.cwd), client.User(f.user)}, nil
}

func newExecCommand(g *globals) *cobra.Command {
	var f commandFlags
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "exec [flags] ID -- COMMAND [ARG...]",
		Short: "Run a command in a sandbox",
		Long: "exec runs a command in a sandbox and ends with its exit status. One argument is a line for the sandbox's shell,\n" +
			"several are a program and its arguments. A command that --timeout ends gives 124, a signal 128 and its number;\n" +
			"125 is exec's own failure, such as a sandbox that is not there.",
		Example: "  nacre exec ID -- python3 -c 'print(6*7)'\n" +
			"  nacre exec ID 'echo $HOME | tr a-z A-Z'\n" +
			"  tar c src | nacre exec -i ID -- tar x -C /tmp\n" +
			"  nacre exec -t -u root ID -- htop",
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			argv, err := flagsBehindID(cmd, args[1:])
			if err != nil {
				return err
			}
			opts, err := f.options()
			if err != nil {
				return err
			}
			if len(argv) == 0 {
				return errors.New("no command is given; `nacre shell ID` opens a shell")
			}
			_, sb, err := g.sandbox(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if timeout > 0 {
				opts = append(opts, client.Timeout(timeout))
			}
			return g.runCommand(cmd, sb, f, argv, opts)
		},
	}
	f.flags(cmd)
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "end the command after this long, such as 90s")
	return passesStatus(cmd)
}

// flagsBehindID reads the flags that stand between the sandbox and its command,
// where people put them too, and returns the command: none begins with a dash.
func flagsBehindID(cmd *cobra.Command, args []string) ([]string, error) {
	if len(args) == 0 || args[0] == "--" || !strings.HasPrefix(args[0], "-") {
		return afterDashes(args), nil
	}
	err := cmd.Flags().Parse(args)
	return cmd.Flags().Args(), err
}

// afterDashes drops a leading "--".
func afterDashes(args []string) []string {
	if len(args) > 0 && args[0] == "--" {
		return args[1:]
	}
	return args
}

// shellLine makes a line for the guest's shell: one argument is one already.
func shellLine(args []string) string {
	if len(args) == 1 {
		return args[0]
	}
	return client.Quote(args...)
}

// runResult is the JSON of exec and run.
type runResult struct {
	ID       string `json:"id"`
	ExitCode int    `json:"exit_code"`
	Stdout   string `json:"stdout"`
	Stderr   string `json:"stderr"`
}

// runCommand runs a command in the foreground and turns its end into this
// command's.
func (g *globals) runCommand(cmd *cobra.Command, sb *client.Sandbox, f commandFlags, argv []string, opts []client.CommandOption) error {
	ctx := cmd.Context()
	if f.tty {
		opts = append(opts, client.Command(shellLine(argv)))
		return attachTerminal(ctx, func(size client.Size) (*client.Terminal, error) { return sb.Terminal(ctx, size, opts...) })
	}
	if f.stdin {
		opts = append(opts, client.Stdin(os.Stdin))
	}
	if !g.json {
		opts = append(opts, client.Stdout(cmd.OutOrStdout()), client.Stderr(cmd.ErrOrStderr()))
	}
	res, err := sb.Run(ctx, shellLine(argv), opts...)
	var exit *client.ExitError
	if g.json && (err == nil || errors.As(err, &exit)) {
		if err := printJSON(cmd.OutOrStdout(), runResult{sb.ID, res.ExitCode, res.Stdout, res.Stderr}); err != nil {
			return err
		}
	}
	return commandEnd(cmd, g.lost(ctx, sb.ID, err))
}

// commandEnd passes a command's exit status through.
func commandEnd(cmd *cobra.Command, err error) error {
	var exit *client.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode > 0:
		return exitCode(exit.ExitCode)
	case errors.As(err, &exit):
		fmt.Fprintln(cmd.ErrOrStderr(), "nacre: the command ended:", printable(exit.Status))
		return exitCode(signalStatus(exit.Status))
	case errors.Is(err, context.Canceled):
		return exitCode(exitInterrupted)
	case errors.Is(err, client.ErrTimeout):
		fmt.Fprintln(cmd.ErrOrStderr(), "nacre: the command was ended:", err)
		return exitCode(exitTimeout)
	}
	return err
}

// signalStatus is what a shell would answer for "signal: killed".
func signalStatus(status string) int {
	for sig := syscall.Signal(1); sig < 32; sig++ {
		if status == "signal: "+sig.String() || status == "signal: "+sig.String()+" (core dumped)" {
			return exitSignal + int(sig)
		}
	}
	return exitSignal + int(syscall.SIGKILL)
}
