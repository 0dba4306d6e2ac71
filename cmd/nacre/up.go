package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre/internal/progress"
	"github.com/nacrehq/nacre/server"
)

func newUpCommand() *cobra.Command {
	var c server.Config
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Prepare this host and run the server",
		Long: "up installs what the host lacks, makes the base template (once), starts the server in the foreground\n" +
			"and prints the lines to paste into another shell.\n\n" +
			"Sandboxes outlive the server: after Ctrl-C, a crash or an upgrade they go on, and the next `nacre up`\n" +
			"takes them back. `nacre kill --all` ends them.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.Load(cmd.Flags(), os.Getenv); err != nil {
				return err
			}
			bar := progress.New(os.Stderr)
			s, err := server.New(c, server.Options{Version: version, Progress: bar.Set, Log: os.Stderr})
			if err != nil {
				return err
			}
			return s.Run(cmd.Context(), func(st server.Status) {
				bar.Done()
				printReady(c, st)
			})
		},
	}
	cmd.Flags().SortFlags = false
	c.Flags(cmd.Flags())
	return cmd
}

func printReady(c server.Config, st server.Status) {
	flag := ""
	if c.DataDir != server.DefaultDataDir() {
		flag = " --data-dir " + c.DataDir
	}
	self := "nacre"
	if exe, err := os.Executable(); err == nil {
		self = exe
	}
	fmt.Fprintf(os.Stderr, `
Nacre %s is ready: %s %s

In another shell:

  eval "$(%s env%s)"
  pip install moru        # or: pip install e2b, npm install e2b
  python3 -c 'from moru import Sandbox; print(Sandbox.create().commands.run("uname -a").stdout)'

Ctrl-C stops the server; sandboxes go on and the next start takes them back.
`, version, st.HTTP, st.HTTPS, self, flag)
}

func newConfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print a commented configuration file with every setting",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprint(cmd.OutOrStdout(), server.Example())
			return nil
		},
	}
}
