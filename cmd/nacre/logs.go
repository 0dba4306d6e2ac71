package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

func newLogsCommand(g *globals) *cobra.Command {
	var follow, stamps bool
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "logs ID",
		Short: "Show what a sandbox's commands wrote, also after its end",
		Long: "logs shows what the commands in a sandbox wrote: their standard output on standard output, their standard\n" +
			"error, and the start and end of each marked with '#', on standard error. Terminals are not logged.\n" +
			"After the log of a sandbox that has ended stands why.",
		Example: "  nacre logs ID\n  nacre logs -f ID          # go on until the sandbox ends\n  nacre logs --since 5m ID",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			var opts []client.LogOption
			if follow {
				opts = append(opts, client.Follow())
			}
			if since > 0 {
				opts = append(opts, client.LogsFrom(time.Now().Add(-since)))
			}
			entries := []logLine{}
			for e, err := range c.Logs(cmd.Context(), args[0], opts...) {
				switch {
				case err != nil && follow && cmd.Context().Err() != nil:
					return nil // Ctrl-C is how one leaves
				case err != nil:
					return sandboxError(args[0], err)
				case g.json && follow:
					err = json.NewEncoder(cmd.OutOrStdout()).Encode(logLine{ID: args[0], LogEntry: e})
				case g.json:
					entries = append(entries, logLine{ID: args[0], LogEntry: e})
				default:
					err = printEntry(cmd.OutOrStdout(), cmd.ErrOrStderr(), e, stamps)
				}
				if err != nil {
					return err
				}
			}
			if g.json && !follow {
				return printJSON(cmd.OutOrStdout(), entries)
			}
			_, err = c.Info(cmd.Context(), args[0])
			if why := ending(cmd.Context(), c, args[0], err); why != "" && !g.json {
				fmt.Fprintln(cmd.ErrOrStderr(), "# "+why)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new lines until the sandbox ends; with --json one object a line")
	cmd.Flags().BoolVarP(&stamps, "timestamps", "t", false, "print the time of each line")
	cmd.Flags().DurationVar(&since, "since", 0, "leave out lines older than this, such as 10m")
	return cmd
}

// logLine is an element of the command's JSON.
type logLine struct {
	ID string `json:"id"`
	client.LogEntry
	Seq *int64 `json:"seq,omitempty"` // hides the entry's, which servers do not send
}

func printEntry(stdout, stderr io.Writer, e client.LogEntry, stamps bool) error {
	w, text := stdout, e.Message
	switch e.Type {
	case nacre.LogStderr:
		w = stderr
	case nacre.LogProcessStart:
		w, text = stderr, "# started "+e.Fields["pid"]+": "+printable(e.Fields["command"])
	case nacre.LogProcessEnd:
		var end struct {
			Code  int    `json:"exit_code"`
			Error string `json:"error"`
		}
		w, text = stderr, "# ended "+e.Fields["pid"]
		if json.Unmarshal([]byte(e.Fields["process_result"]), &end) == nil && end.Error != "" {
			text += ": " + printable(end.Error)
		}
	}
	if stamps {
		text = e.Time.Local().Format("2006-01-02 15:04:05.000") + "  " + text
	}
	_, err := fmt.Fprintln(w, text)
	return err
}
