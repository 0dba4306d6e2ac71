package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

func newPsCommand(g *globals) *cobra.Command {
	var all, quiet bool
	var metadata []string
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List sandboxes",
		Long: "ps lists sandboxes: running and paused ones, and with -a ended ones (\"stopped\") for as long as the server keeps\n" +
			"their records. With --json each has its state, under the name status too.",
		Example: "  nacre ps\n" +
			"  nacre ps -a                    # ended ones too, with the reason\n" +
			"  nacre ps --metadata user=7 -q  # only ids, for scripts",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			marks, err := parsePairs("metadata", metadata)
			if err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			if all {
				return g.listRuns(cmd, c, quiet)
			}
			return g.listSandboxes(cmd, c, marks, quiet)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "ended sandboxes too")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only ids")
	cmd.Flags().StringArrayVar(&metadata, "metadata", nil, "only sandboxes with this NAME=VALUE; may be repeated")
	cmd.MarkFlagsMutuallyExclusive("all", "metadata")
	return cmd
}

// A sandbox in the JSON of ps, and of ps -a. Each has what the other calls its state.
type (
	listedSandbox struct {
		client.Info
		Status nacre.State `json:"status"`
	}
	listedRun struct {
		client.Run
		State string `json:"state"`
	}
)

func (g *globals) listSandboxes(cmd *cobra.Command, c *client.Client, metadata map[string]string, quiet bool) error {
	out, now := []listedSandbox{}, time.Now()
	var rows [][]string
	for info, err := range c.List(cmd.Context(), client.Metadata(metadata)) {
		if err != nil {
			return err
		}
		out = append(out, listedSandbox{info, info.State})
		expires := in(info.EndAt, now)
		if info.State == nacre.StatePaused {
			expires = "-" // not while it is paused
		}
		rows = append(rows, []string{info.ID, or(info.Template, info.TemplateID), string(info.Runtime), string(info.State),
			ago(info.StartedAt, now), expires, pairs(info.Metadata)})
	}
	return g.printList(cmd, "ID TEMPLATE RUNTIME STATE STARTED EXPIRES METADATA", rows, out, quiet)
}

func (g *globals) listRuns(cmd *cobra.Command, c *client.Client, quiet bool) error {
	out, now := []listedRun{}, time.Now()
	var rows [][]string
	for r, err := range c.Runs(cmd.Context()) {
		if err != nil {
			return err
		}
		out = append(out, listedRun{r, r.Status})
		rows = append(rows, []string{r.ID, or(r.Template, r.TemplateID), string(r.Runtime), r.Status, ago(r.CreatedAt, now), ago(r.EndedAt, now), or(string(r.Reason), r.EndReason)})
	}
	return g.printList(cmd, "ID TEMPLATE RUNTIME STATE CREATED ENDED REASON", rows, out, quiet)
}

// printList prints one list in the form that the flags ask for. A row's first
// column is its id.
func (g *globals) printList(cmd *cobra.Command, header string, rows [][]string, objects any, quiet bool) error {
	switch {
	case g.json:
		return printJSON(cmd.OutOrStdout(), objects)
	case quiet:
		for _, r := range rows {
			fmt.Fprintln(cmd.OutOrStdout(), r[0])
		}
		return nil
	}
	return table(cmd.OutOrStdout(), header, rows)
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func newTemplatesCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "templates",
		Short: "List what sandboxes can be made from",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			list, err := c.Templates(cmd.Context())
			if err != nil {
				return err
			}
			now := time.Now()
			rows := make([][]string, len(list))
			for i, t := range list {
				rows[i] = []string{t.ID, join(t.Names), itoa(t.CPUCount), itoa(t.MemoryMB) + " MiB", itoa(t.DiskMB) + " MiB", ago(t.UpdatedAt, now)}
			}
			return g.printList(cmd, "ID NAMES CPUS MEMORY DISK UPDATED", rows, list, false)
		},
	}
}
