package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre/server"
)

func newDoctorCommand(g *globals) *cobra.Command {
	var c server.Config
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at this host and say what to do about what is wrong",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.Load(cmd.Flags(), os.Getenv); err != nil {
				return err
			}
			findings := server.Doctor(cmd.Context(), c)
			failed := false
			for _, f := range findings {
				failed = failed || f.Level == "fail"
			}
			if g.json {
				if err := printJSON(cmd.OutOrStdout(), findings); err != nil {
					return err
				}
			} else {
				for _, f := range findings {
					fmt.Fprintf(cmd.OutOrStdout(), "%-4s  %s\n", f.Level, f.What)
					if f.Advice != "" {
						fmt.Fprintf(cmd.OutOrStdout(), "      -> %s\n", f.Advice)
					}
				}
			}
			if failed {
				return exitCode(1)
			}
			return nil
		},
	}
	cmd.Flags().SortFlags = false
	c.Flags(cmd.Flags())
	return cmd
}
