package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre/server"
)

func newDownCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop the server and end every sandbox of it",
		Long: "down stops the server and ends all its sandboxes, and leaves nothing of them in the kernel and on the disk.\n" +
			"Keys, templates, records and logs stay in the data directory. (Ctrl-C in `nacre up` stops the server alone.)",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			return server.Down(ctx, g.dataDir, func(step string) {
				if !g.json {
					fmt.Fprintln(cmd.ErrOrStderr(), step)
				}
			})
		},
	}
}
