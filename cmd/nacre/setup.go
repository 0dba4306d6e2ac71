package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre/guest/kernel"
	"github.com/nacrehq/nacre/internal/progress"
	"github.com/nacrehq/nacre/runtime/firecracker"
	"github.com/nacrehq/nacre/server"
)

func newSetupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Bring what a host needs beyond this program",
	}
	cmd.AddCommand(newSetupFirecrackerCommand())
	return cmd
}

func newSetupFirecrackerCommand() *cobra.Command {
	var (
		c    server.Config
		from firecracker.Release
	)
	cmd := &cobra.Command{
		Use:   "firecracker",
		Short: "Install a Firecracker release and the guest kernel, which --runtime auto then uses",
		Long: "setup firecracker checks a release of Firecracker and puts it, with a guest kernel, into the data directory.\n" +
			"It downloads the release that this version of nacre was made for, and compares its sum. Where the network is\n" +
			"closed --from names another source: an archive by path or https URL (then with --sha256, which Firecracker\n" +
			"publishes beside each release), or a directory with the programs firecracker and jailer. Releases with known\n" +
			"holes are refused.\n\n" +
			"Without --kernel the guest kernel is built here from Debian's kernel source; that takes a quarter of an hour\n" +
			"of one processor, once.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.Load(cmd.Flags(), os.Getenv); err != nil {
				return err
			}
			var err error
			if from.Kernel == "" {
				if from.Kernel, err = kernel.Build(cmd.Context(), c.CacheDir, cmd.ErrOrStderr()); err != nil {
					return err
				}
			}
			bar := progress.New(os.Stderr)
			from.Progress = func(done, total int64) { bar.Set("downloading Firecracker", done, total) }
			version, err := firecracker.Install(cmd.Context(), server.FirecrackerDir(c.DataDir), from)
			bar.Done()
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Firecracker %s and a guest kernel are in %s.\n", version, filepath.Clean(server.FirecrackerDir(c.DataDir)))
			self, err := os.Executable()
			if err != nil {
				return err
			}
			if err := firecracker.Probe(cmd.Context(), self); err != nil {
				fmt.Fprintf(cmd.OutOrStdout(), "This host cannot use them: %s\n", errorText(err))
				return nil
			}
			fmt.Fprintln(cmd.OutOrStdout(), "This host runs microVMs: a server with --runtime auto makes new sandboxes of them from its next start on.")
			return nil
		},
	}
	cmd.Flags().StringVar(&from.Source, "from", "", "a release: archive or directory by path, or archive by https URL (default: the one that nacre was made for)")
	cmd.Flags().StringVar(&from.SHA256, "sha256", "", "the archive's SHA-256")
	cmd.Flags().StringVar(&from.Kernel, "kernel", "", "a guest kernel (vmlinux) instead of building one")
	cmd.Flags().BoolVar(&from.AllowHoles, "allow-known-holes", false, "take a release with known security holes; for tests")
	cmd.Flags().SortFlags = false
	c.Flags(cmd.Flags())
	return cmd
}
