package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre/client"
	"github.com/nacrehq/nacre/internal/progress"
)

func newPauseCommand(g *globals) *cobra.Command {
	var filesOnly bool
	cmd := &cobra.Command{
		Use:   "pause ID...",
		Short: "Keep sandboxes' memory and files, and stop them",
		Long: "pause keeps memory, processes and files and stops everything; a paused sandbox costs nothing but disk, and stays\n" +
			"until it is killed. `nacre resume` brings it back, and so does every command that needs it, such as exec.\n" +
			"When a pause fails the sandbox runs on.",
		Example: "  nacre pause ID1 ID2\n" +
			"  nacre pause --files-only ID",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			var opts []client.PauseOption
			if filesOnly {
				opts = append(opts, client.FilesOnly())
			}
			return g.each(cmd, ids, "pausing", func(id string) error { return c.Pause(cmd.Context(), id, opts...) })
		},
	}
	cmd.Flags().BoolVar(&filesOnly, "files-only", false, "keep the files alone: processes and memory are lost, and a resume boots")
	return cmd
}

func newResumeCommand(g *globals) *cobra.Command {
	var timeout time.Duration
	var reboot bool
	cmd := &cobra.Command{
		Use:   "resume ID...",
		Short: "Bring paused sandboxes back",
		Long: "resume brings paused sandboxes back with their processes. One that runs is left as it is, but for its time-out,\n" +
			"which is never shortened.",
		Example: "  nacre resume ID\n" +
			"  nacre resume --timeout 2h ID",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			opts := []client.ConnectOption{client.Timeout(timeout)}
			if reboot {
				opts = append(opts, client.Reboot())
			}
			return g.each(cmd, ids, "resuming", func(id string) error {
				_, err := c.Connect(cmd.Context(), id, opts...)
				return err
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", client.DefaultTimeout, "how long the sandbox lives from now on at least, such as 1h")
	cmd.Flags().BoolVar(&reboot, "reboot", false, "boot with the files: what was in memory is given up")
	return cmd
}

func newRestoreCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "restore ID SNAPSHOT",
		Short: "Put a sandbox back to a snapshot of it",
		Long: "restore puts a sandbox, running or paused, back to a snapshot of its own or of what it was forked from. What it did\n" +
			"since is lost; its id, its tokens and its time-out stay. SNAPSHOT is an id or a name of `nacre snapshots`.",
		Example: "  snap=$(nacre snapshot ID)\n" +
			"  nacre exec ID -- ./risky.sh || nacre restore ID $snap",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			return g.each(cmd, args[:1], "restoring", func(id string) error {
				return snapshotError(args[1], c.Restore(cmd.Context(), id, args[1]))
			})
		},
	}
}

// outcome is an element of a command's JSON.
type outcome struct {
	ID    string `json:"id"`
	Error string `json:"error,omitempty"`
}

// each does one thing to sandboxes, one after the other, and tells of each.
func (g *globals) each(cmd *cobra.Command, ids []string, doing string, fn func(id string) error) error {
	out, failed := []outcome{}, false
	for i, id := range ids {
		step := doing + " " + id
		if len(ids) > 1 {
			step += fmt.Sprintf(" (%d of %d)", i+1, len(ids))
		}
		err := g.waiting(cmd.Context(), id, step, func() error { return fn(id) })
		o := outcome{ID: id}
		if err != nil {
			failed = true
			o.Error = errorText(sandboxError(id, err))
			if !g.json {
				fmt.Fprintln(cmd.ErrOrStderr(), "nacre:", o.Error)
			}
		} else if !g.json {
			fmt.Fprintln(cmd.OutOrStdout(), id)
		}
		out = append(out, o)
		if cmd.Context().Err() != nil {
			break
		}
	}
	if g.json {
		if err := printJSON(cmd.OutOrStdout(), out); err != nil {
			return err
		}
	}
	if failed {
		return exitCode(1)
	}
	return nil
}

// waiting does what may take long with a sandbox and shows meanwhile how far it is, as
// far as the server tells.
func (g *globals) waiting(ctx context.Context, id, step string, fn func() error) error {
	if g.json {
		return fn()
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := progress.New(os.Stderr).Watch(step, func() (done, total int64) {
		c, err := g.client()
		if err != nil {
			return 0, 0
		}
		info, err := c.Info(ctx, id)
		if err != nil || info.Keeping == nil {
			return 0, 0
		}
		return info.Keeping.Bytes, info.Keeping.OfBytes
	})
	defer stop()
	defer cancel()
	return fn()
}

// snapshotError says where snapshots are listed. What it returns then is no
// client.ErrNotFound any more, which would be understood of a sandbox.
func snapshotError(ref string, err error) error {
	var e *client.Error
	if errors.Is(err, client.ErrNotFound) && errors.As(err, &e) && strings.HasPrefix(e.Message, "snapshot") {
		return fmt.Errorf("snapshot %s was not found; `nacre snapshots` lists them", ref)
	}
	return err
}
