package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newKeyCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, list and revoke API keys",
		Long: "key manages the API keys of the server on this host, which must be running. Each key belongs to a team;\n" +
			"teams do not see each other's sandboxes.",
	}
	cmd.AddCommand(newKeyCreateCommand(g), newKeyListCommand(g), newKeyRevokeCommand(g))
	return cmd
}

func newKeyCreateCommand(g *globals) *cobra.Command {
	var team, name string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a key and print it, once",
		Long:  "create makes a key, and the team when there is none of that name. The key is not kept and cannot be shown again.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := newAdmin(g.dataDir).createKey(cmd.Context(), team, name)
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), key)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), key.Key)
			return err
		},
	}
	cmd.Flags().StringVar(&team, "team", "default", "whose key it is")
	cmd.Flags().StringVar(&name, "name", "", "what it is for, shown in lists")
	return cmd
}

func newKeyListCommand(g *globals) *cobra.Command {
	var team string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List keys by what is kept of them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys, err := newAdmin(g.dataDir).keys(cmd.Context(), team)
			if err != nil {
				return err
			}
			now := time.Now()
			rows := make([][]string, len(keys))
			for i, k := range keys {
				used, revoked := "-", "-"
				if k.UsedAt != nil {
					used = ago(*k.UsedAt, now)
				}
				if k.RevokedAt != nil {
					revoked = ago(*k.RevokedAt, now)
				}
				rows[i] = []string{k.ID, k.Team, or(k.Name, "-"), k.Hint + "...", ago(k.CreatedAt, now), used, revoked}
			}
			return g.printList(cmd, "ID TEAM NAME KEY CREATED USED REVOKED", rows, keys, false)
		},
	}
	cmd.Flags().StringVar(&team, "team", "", "only this team's (default all)")
	return cmd
}

func newKeyRevokeCommand(g *globals) *cobra.Command {
	var team string
	cmd := &cobra.Command{
		Use:   "revoke KEY-ID...",
		Short: "Make keys worthless from now on",
		Long:  "revoke makes keys worthless from now on. Sandboxes that were made with them go on. KEY-ID is the id of `nacre key list`, not the key.",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			a := newAdmin(g.dataDir)
			keys, err := a.keys(cmd.Context(), team)
			if err != nil {
				return err
			}
			revoked := []adminKey{}
			for _, id := range ids {
				i := slices.IndexFunc(keys, func(k adminKey) bool { return k.ID == id })
				if i < 0 {
					return fmt.Errorf("there is no key with the id %q; `nacre key list` shows them", id)
				}
				revoked = append(revoked, keys[i])
			}
			for _, k := range revoked {
				if err := a.revokeKey(cmd.Context(), k.Team, k.ID); err != nil {
					return err
				}
				if !g.json {
					fmt.Fprintln(cmd.OutOrStdout(), k.ID)
				}
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), revoked)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&team, "team", "", "only look among this team's keys")
	return cmd
}

func join(names []string) string { return strings.Join(names, ", ") }

func itoa(n int) string { return strconv.Itoa(n) }
