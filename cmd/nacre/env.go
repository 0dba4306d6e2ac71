package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre/internal/clientfile"
	"github.com/nacrehq/nacre/server"
)

func newEnvCommand(g *globals) *cobra.Command {
	var wait time.Duration
	var tls bool
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print what a shell must export for the SDKs to use this server",
		Long: "env prints `export` lines for a shell: eval \"$(nacre env)\".\n" +
			"With --tls the SDKs use HTTPS and every sandbox has its own host name; the variables point at the\n" +
			"local certificate authority. It fails while the server is not ready.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), wait+time.Second/2)
			defer cancel()
			if _, err := server.WaitReady(ctx, g.dataDir); err != nil {
				return err
			}
			f, err := clientfile.Read(g.dataDir)
			if err != nil {
				return err
			}
			vars, err := environment(f, tls)
			if err != nil {
				return err
			}
			if g.json {
				obj := map[string]string{}
				for _, v := range vars {
					obj[v[0]] = v[1]
				}
				return printJSON(cmd.OutOrStdout(), obj)
			}
			for _, v := range vars {
				fmt.Fprintf(cmd.OutOrStdout(), "export %s=%s\n", v[0], shellQuote(v[1]))
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long to wait for the server to be ready")
	cmd.Flags().BoolVar(&tls, "tls", false, "use HTTPS and sandbox host names")
	return cmd
}

// environment lists names and values in the order in which they are printed.
func environment(f clientfile.File, tls bool) ([][2]string, error) {
	var vars [][2]string
	add := func(name, value string) { vars = append(vars, [2]string{name, value}) }
	for _, brand := range []string{"MORU", "E2B"} {
		add(brand+"_API_KEY", f.APIKey)
		if tls {
			if f.TLSDomain == "" {
				return nil, fmt.Errorf("this server has no HTTPS listener; start it with --https HOST:PORT")
			}
			add(brand+"_DOMAIN", f.TLSDomain)
			add(brand+"_API_URL", "https://api."+f.TLSDomain)
			add(brand+"_SANDBOX_URL", "") // of an earlier `nacre env`: it would win over the domain
			continue
		}
		if f.APIURL == "" {
			return nil, fmt.Errorf("this server has no plain HTTP listener; use --tls")
		}
		add(brand+"_API_URL", f.APIURL)
		add(brand+"_SANDBOX_URL", f.APIURL)
		if f.TLSDomain != "" {
			add(brand+"_DOMAIN", f.TLSDomain)
		}
	}
	base := f.APIURL
	if tls {
		base = "https://api." + f.TLSDomain
	}
	add("MIOSA_BASE_URL", base+"/api/v1")
	add("MIOSA_API_KEY", "msk_u_"+f.APIKey[strings.LastIndexByte(f.APIKey, '_')+1:])
	if tls && f.CAFile != "" {
		add("SSL_CERT_FILE", f.CABundle)
		add("NODE_EXTRA_CA_CERTS", f.CAFile)
	}
	return vars, nil
}

func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
