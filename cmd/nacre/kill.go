package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre/client"
)

func newKillCommand(g *globals) *cobra.Command {
	var all bool
	var metadata []string
	cmd := &cobra.Command{
		Use:   "kill ID... | --all",
		Short: "End sandboxes; what is in them is lost",
		Example: "  nacre kill ID1 ID2\n" +
			"  nacre kill --all\n" +
			"  nacre kill --all --metadata environment=test",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case all == (len(args) > 0):
				return errors.New("name the sandboxes to end, or say --all; `nacre ps` lists them")
			case !all && len(metadata) > 0:
				return errors.New("--metadata narrows --all")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, ids []string) error {
			marks, err := parsePairs("metadata", metadata)
			if err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			if all {
				for info, err := range c.List(cmd.Context(), client.Metadata(marks)) {
					if err != nil {
						return err
					}
					ids = append(ids, info.ID)
				}
			}
			return g.kill(cmd, c, ids, all)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every sandbox of the key's team")
	cmd.Flags().StringArrayVar(&metadata, "metadata", nil, "with --all: only those with this NAME=VALUE; may be repeated")
	return cmd
}

// killed is an element of the command's JSON.
type killed struct {
	ID    string `json:"id"`
	Ended bool   `json:"ended"`
	Error string `json:"error,omitempty"`
}

// kill ends all that it can and tells of each.
func (g *globals) kill(cmd *cobra.Command, c *client.Client, ids []string, listed bool) error {
	out, failed := []killed{}, 0
	for _, id := range ids {
		err := c.Kill(cmd.Context(), id)
		if listed && errors.Is(err, client.ErrNotFound) {
			err = nil // it ended since it was listed
		}
		k := killed{ID: id, Ended: err == nil}
		if err != nil {
			failed++
			k.Error = errorText(sandboxError(id, err))
			if !g.json {
				fmt.Fprintln(cmd.ErrOrStderr(), "nacre:", k.Error)
			}
		} else if !g.json {
			fmt.Fprintln(cmd.OutOrStdout(), id)
		}
		out = append(out, k)
		if cmd.Context().Err() != nil {
			break
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
