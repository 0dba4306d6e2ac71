package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

func newSnapshotCommand(g *globals) *cobra.Command {
	var name, comment string
	var keep time.Duration
	var filesOnly bool
	cmd := &cobra.Command{
		Use:   "snapshot ID",
		Short: "Keep a sandbox as it is now; it goes on",
		Long: "snapshot keeps a sandbox's memory, processes and files and prints the snapshot's id. The sandbox goes on.\n" +
			"`nacre restore` puts it back, `nacre fork` and `nacre run --template` make sandboxes that go on from there.",
		Example: "  nacre snapshot ID --name nightly --keep 168h\n" +
			"  nacre run --template nightly -- ./report.sh",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if keep < 0 {
				return errors.New("--keep must be longer than 0; without it the snapshot stays until it is deleted")
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			opts := []client.SnapshotOption{client.Name(name), client.Comment(comment), client.Keep(keep)}
			if filesOnly {
				opts = append(opts, client.FilesOnly())
			}
			var snap client.Snapshot
			err = g.waiting(cmd.Context(), args[0], "keeping "+args[0], func() error {
				snap, err = c.Snapshot(cmd.Context(), args[0], opts...)
				return err
			})
			if err != nil {
				return sandboxError(args[0], err)
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), snap)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), snap.ID)
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&name, "name", "", "a name, which means the newest snapshot that has it")
	fs.StringVar(&comment, "comment", "", "a text for people")
	fs.DurationVar(&keep, "keep", 0, "how long it is kept, such as 24h; without it until it is deleted")
	fs.BoolVar(&filesOnly, "files-only", false, "keep the files alone: what is made from it boots")
	return cmd
}

// forkFlags shape the sandboxes of a fork.
type forkFlags struct {
	count         int
	timeout       time.Duration
	autoPause     bool
	ownEnv        bool
	metadata, env []string
}

func newForkCommand(g *globals) *cobra.Command {
	var f forkFlags
	cmd := &cobra.Command{
		Use:   "fork ID|SNAPSHOT",
		Short: "Make sandboxes that go on where another is, or where a snapshot was taken",
		Long: "fork prints the ids of the new sandboxes. Each has the processes and files of the source, and an address, a host\n" +
			"name, a machine id, tokens and random numbers of its own. The source stands still for a moment and goes on.",
		Example: "  nacre fork ID\n" +
			"  for id in $(nacre fork -n 10 ID); do nacre exec $id -- ./attempt.sh & done",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts, err := f.options()
			if err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			var forks []client.Forked
			err = g.waiting(cmd.Context(), args[0], fmt.Sprintf("forking %s (%d)", args[0], f.count), func() error {
				forks, err = c.Fork(cmd.Context(), args[0], f.count, opts...)
				return err
			})
			switch {
			case err == nil:
				return g.printForks(cmd, forks)
			case nacre.SandboxID(args[0]).Valid():
				return sandboxError(args[0], err)
			}
			return snapshotError(args[0], err)
		},
	}
	fs := cmd.Flags()
	fs.IntVarP(&f.count, "count", "n", 1, "how many, 1 to 100")
	fs.DurationVar(&f.timeout, "timeout", 0, "how long each lives, such as 1h; without it as long as the source was given")
	fs.BoolVar(&f.autoPause, "auto-pause", false, "pause each at its time-out instead of ending it; without it as the source")
	fs.StringArrayVar(&f.metadata, "metadata", nil, "mark each with NAME=VALUE instead of the source's marks; may be repeated")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set NAME=VALUE for each, beside the source's variables; may be repeated")
	fs.BoolVar(&f.ownEnv, "own-env", false, "give each the variables of --env alone; what runs already has what it has")
	return cmd
}

func (f *forkFlags) options() ([]client.ForkOption, error) {
	env, err := parsePairs("env", f.env)
	if err != nil {
		return nil, err
	}
	metadata, err := parsePairs("metadata", f.metadata)
	if err != nil {
		return nil, err
	}
	opts := []client.ForkOption{client.Timeout(f.timeout), client.Env(env)}
	if len(metadata) > 0 {
		opts = append(opts, client.Metadata(metadata))
	}
	if f.autoPause {
		opts = append(opts, client.AutoPause())
	}
	if f.ownEnv {
		opts = append(opts, client.OwnEnv())
	}
	return opts, nil
}

// printForks tells of each, and fails when one failed.
func (g *globals) printForks(cmd *cobra.Command, forks []client.Forked) error {
	out, failed := make([]outcome, len(forks)), 0
	for i, f := range forks {
		if f.Err != nil {
			failed++
			out[i].Error = errorText(f.Err)
			if !g.json {
				fmt.Fprintf(cmd.ErrOrStderr(), "nacre: fork %d of %d: %s\n", i+1, len(forks), out[i].Error)
			}
			continue
		}
		out[i].ID = f.Sandbox.ID
		if !g.json {
			fmt.Fprintln(cmd.OutOrStdout(), f.Sandbox.ID)
		}
	}
	if g.json {
		if err := printJSON(cmd.OutOrStdout(), out); err != nil {
			return err
		}
	}
	if failed > 0 {
		return exitCode(1)
	}
	return nil
}

func newSnapshotsCommand(g *globals) *cobra.Command {
	var name, of string
	var quiet bool
	list := func(cmd *cobra.Command, _ []string) error {
		var opts []client.SnapshotListOption
		if name != "" {
			opts = append(opts, client.Name(name))
		}
		if of != "" {
			opts = append(opts, client.Of(of))
		}
		return g.listSnapshots(cmd, quiet, opts)
	}
	flags := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&name, "name", "", "only those of this name or id")
		c.Flags().StringVar(&of, "of", "", "only those of the sandbox with this id")
		c.Flags().BoolVarP(&quiet, "quiet", "q", false, "only ids")
		return c
	}
	cmd := flags(&cobra.Command{
		Use:   "snapshots",
		Short: "List snapshots, and delete them",
		Long: "snapshots lists what `nacre snapshot` kept, newest first. DISK is what a snapshot occupies by itself: what it has\n" +
			"in common with others is stored once.",
		Example: "  nacre snapshots --of ID\n" +
			"  nacre snapshots delete SNAPSHOT",
		Args: cobra.NoArgs,
		RunE: list,
	})
	cmd.AddCommand(flags(&cobra.Command{Use: "list", Short: "List snapshots", Args: cobra.NoArgs, RunE: list}), &cobra.Command{
		Use:   "delete SNAPSHOT...",
		Short: "Delete snapshots",
		Long: "delete deletes snapshots by their ids, and by a name all that have it. One that a paused sandbox would go on from\n" +
			"is kept, and the sandbox is named.",
		Aliases: []string{"rm"},
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			return g.each(cmd, refs, "deleting", func(ref string) error {
				return snapshotError(ref, c.DeleteSnapshot(cmd.Context(), ref))
			})
		},
	})
	return cmd
}

func (g *globals) listSnapshots(cmd *cobra.Command, quiet bool, opts []client.SnapshotListOption) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	out, now := []client.Snapshot{}, time.Now()
	var rows [][]string
	for s, err := range c.Snapshots(cmd.Context(), opts...) {
		if err != nil {
			return err
		}
		out = append(out, s)
		holds := "memory, files"
		if !s.Memory {
			holds = "files"
		}
		rows = append(rows, []string{s.ID, or(s.Name, "-"), s.SandboxID, or(string(s.Runtime), "-"), holds, bytesText(s.Size), bytesText(s.DiskUsed),
			ago(s.CreatedAt, now), in(s.ExpiresAt, now), or(s.Comment, "-")})
	}
	return g.printList(cmd, "ID NAME SANDBOX RUNTIME HOLDS SIZE DISK CREATED EXPIRES COMMENT", rows, out, quiet)
}
