// Command nacre is the whole product in one binary: the server, the command
// line, and, when gVisor starts it again under another name, the sandbox itself.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre/runtime/firecracker"
	"github.com/nacrehq/nacre/runtime/gvisor"
)

// version is set by the linker.
var version = "dev"

func main() {
	if gvisor.Main() { // one of gVisor's own processes
		return
	}
	if len(os.Args) == 2 && os.Args[1] == firecracker.ProbeArg {
		os.Exit(firecracker.ProbeMain())
	}
	if len(os.Args) == 2 && os.Args[1] == firecracker.PagerArg {
		os.Exit(firecracker.PagerMain())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A reader that has gone, as in `nacre run --rm ... | head`, is to be an error of
	// the write: a death by the signal would leave the command and its sandbox.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	cmd, err := newRoot().ExecuteContextC(ctx)
	stop()
	var code exitCode
	switch {
	case err == nil:
	case errors.As(err, &code):
		os.Exit(int(code))
	case outputClosed(err):
		os.Exit(exitSignal + int(syscall.SIGPIPE))
	default:
		fmt.Fprintln(os.Stderr, "nacre:", errorText(err))
		os.Exit(statusOf(cmd))
	}
}

// outputClosed tells that nobody reads what the command writes any more, which is
// nothing to complain about.
func outputClosed(err error) bool {
	var write *fs.PathError
	return errors.As(err, &write) && errors.Is(write, syscall.EPIPE) && (write.Path == os.Stdout.Name() || write.Path == os.Stderr.Name())
}

func newRoot() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "nacre",
		Short: "Sandboxes for AI agents, notebooks and back ends, on your own host",
		Long: "Nacre gives isolated Linux machines in milliseconds and serves the Moru and E2B SDKs.\n" +
			"Start a server with `nacre up`, then in another shell: eval \"$(nacre env)\"\n\n" +
			"On the server's own host commands find its address and a key in the data directory. Elsewhere they read\n" +
			"NACRE_API_URL and NACRE_API_KEY; `nacre key create` makes a key on the server's host.",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	g.flags(root)
	root.AddGroup(&cobra.Group{ID: "server", Title: "The server:"}, &cobra.Group{ID: "sandbox", Title: "Sandboxes:"})
	for _, c := range []*cobra.Command{newUpCommand(), newDownCommand(g), newEnvCommand(g), newDoctorCommand(g), newSetupCommand(), newConfigCommand(), newKeyCommand(g)} {
		c.GroupID = "server"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{newRunCommand(g), newExecCommand(g), newShellCommand(g), newCpCommand(g),
		newPsCommand(g), newLogsCommand(g), newPauseCommand(g), newResumeCommand(g), newSnapshotCommand(g), newRestoreCommand(g),
		newForkCommand(g), newSnapshotsCommand(g), newKillCommand(g), newTemplatesCommand(g)} {
		c.GroupID = "sandbox"
		root.AddCommand(c)
	}
	sayUsage(root)
	return root
}

// sayUsage has a command that is called wrongly say how it is called.
func sayUsage(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return fmt.Errorf("%w\nusage: %s", err, cmd.UseLine())
			}
			return nil
		}
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; `%s --help` lists what there is", err, cmd.CommandPath())
	})
	for _, c := range cmd.Commands() {
		sayUsage(c)
	}
}
