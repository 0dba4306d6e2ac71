package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre"
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
		c              server.Config
		from           firecracker.Release
		build, noBuild bool
	)
	cmd := &cobra.Command{
		Use:   "firecracker",
		Short: "Install a Firecracker release and the guest kernel, which --runtime auto then uses",
		Long: "setup firecracker puts a release of Firecracker and a guest kernel into the data directory. It downloads those\n" +
			"that this version of nacre was made for, and compares their sums. A repeat replaces what was there.\n\n" +
			"Where the network is closed --from and --kernel name other sources, by path or by https URL, which demands the\n" +
			"sum: Firecracker publishes one beside each release. --from may be a directory with the programs firecracker and\n" +
			"jailer, too. Releases with known holes are refused.\n\n" +
			"A kernel that cannot be downloaded is built here, from Debian's kernel source, which apt brings: that takes a\n" +
			"quarter of an hour of one processor, once. --build-kernel does so without asking the network, --no-build never.\n\n" +
			"What no flag says is read from NACRE_FIRECRACKER_FROM, _SHA256, _KERNEL and _KERNEL_SHA256.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.Load(cmd.Flags(), os.Getenv); err != nil {
				return err
			}
			builder := func(ctx context.Context) (string, error) { return buildKernel(ctx, c.CacheDir, cmd.ErrOrStderr()) }
			if build {
				if from.Kernel != "" {
					return errors.New("--build-kernel and --kernel: want one of them")
				}
				var err error
				if from.Kernel, err = builder(cmd.Context()); err != nil {
					return err
				}
				from.KernelBuilt = true
			}
			if !noBuild && c.Install {
				from.BuildKernel = insteadOfDownload(cmd.ErrOrStderr(), builder)
			}
			fromEnvironment(&from, os.Getenv)
			return setupFirecracker(cmd, server.FirecrackerDir(c.DataDir), from)
		},
	}
	cmd.Flags().StringVar(&from.Source, "from", "", "a release: archive or directory by path, or archive by https URL (default: the one that nacre was made for)")
	cmd.Flags().StringVar(&from.SHA256, "sha256", "", "the archive's SHA-256")
	cmd.Flags().StringVar(&from.Kernel, "kernel", "", "a guest kernel (vmlinux) by path or https URL (default: the one that nacre was made for)")
	cmd.Flags().StringVar(&from.KernelSHA256, "kernel-sha256", "", "the kernel's SHA-256")
	cmd.Flags().BoolVar(&build, "build-kernel", false, "build the guest kernel here instead of downloading it")
	cmd.Flags().BoolVar(&noBuild, "no-build", false, "fail where the guest kernel cannot be downloaded, as with --install=false")
	cmd.MarkFlagsMutuallyExclusive("build-kernel", "no-build")
	cmd.Flags().BoolVar(&from.AllowHoles, "allow-known-holes", false, "take a release with known security holes; for tests")
	cmd.Flags().SortFlags = false
	c.Flags(cmd.Flags())
	return cmd
}

// insteadOfDownload has the kernel made, and says why.
func insteadOfDownload(say io.Writer, builder func(context.Context) (string, error)) func(context.Context, error) (string, error) {
	return func(ctx context.Context, why error) (string, error) {
		fmt.Fprintf(say, "nacre: %s. It is built here instead, from Debian's source: that takes a quarter of an hour of one processor, once.\n", nacre.ErrorMessage(why))
		path, err := builder(ctx)
		if err != nil && ctx.Err() == nil {
			return "", fmt.Errorf("%w. Nor can it be had ready: %s. Build it on another Debian, with `make guest-kernel` in nacre's source, and give its path with --kernel", err, nacre.ErrorMessage(why))
		}
		return path, err
	}
}

// buildKernel makes the guest kernel, unless it was made before.
func buildKernel(ctx context.Context, cache string, say io.Writer) (string, error) {
	stop := progress.New(os.Stderr).Wait("building the guest kernel")
	path, err := kernel.Build(ctx, cache, say)
	stop()
	if err != nil {
		return "", err
	}
	same, err := firecracker.IsPinnedKernel(path)
	if err != nil {
		return "", err
	}
	if same {
		fmt.Fprintln(say, "The kernel is byte for byte the one that this version of nacre was made for.")
	} else {
		fmt.Fprintln(say, "The kernel's source package, compiler or linker is another one than that of the pinned kernel, and so its sum.")
	}
	return path, nil
}

// fromEnvironment fills in what no flag said. A sum belongs to its source: where a flag
// names one of them the variables of both are not looked at.
func fromEnvironment(from *firecracker.Release, getenv func(string) string) {
	if from.Source == "" && from.SHA256 == "" {
		from.Source, from.SHA256 = getenv("NACRE_FIRECRACKER_FROM"), getenv("NACRE_FIRECRACKER_SHA256")
	}
	if from.Kernel == "" && from.KernelSHA256 == "" {
		from.Kernel, from.KernelSHA256 = getenv("NACRE_FIRECRACKER_KERNEL"), getenv("NACRE_FIRECRACKER_KERNEL_SHA256")
	}
}

func setupFirecracker(cmd *cobra.Command, dir string, from firecracker.Release) error {
	bar := progress.New(os.Stderr)
	from.Progress = func(what string, done, total int64) { bar.Set("downloading "+what, done, total) }
	version, err := firecracker.Install(cmd.Context(), dir, from)
	bar.Done()
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "Firecracker %s and a guest kernel are in %s.\n", version, filepath.Clean(dir))
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
}
