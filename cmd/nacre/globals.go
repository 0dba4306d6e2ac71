package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
	"github.com/nacrehq/nacre/internal/clientfile"
	"github.com/nacrehq/nacre/server"
)

// globals are the flags that every command has.
type globals struct {
	dataDir string
	json    bool
	apiURL  string

	dataDirFlag func() bool // whether --data-dir was given
}

func (g *globals) flags(root *cobra.Command) {
	dir := os.Getenv("NACRE_DATA_DIR")
	if dir == "" {
		dir = server.DefaultDataDir()
	}
	fs := root.PersistentFlags()
	fs.StringVar(&g.dataDir, "data-dir", dir, "the server's directory, where its address and a key are found")
	fs.StringVar(&g.apiURL, "api-url", "", "a server elsewhere (default NACRE_API_URL); its key is in NACRE_API_KEY")
	fs.BoolVar(&g.json, "json", false, "print JSON")
	g.dataDirFlag = func() bool { return fs.Changed("data-dir") }
}

// client finds the server: --api-url, --data-dir, NACRE_API_URL or NACRE_DOMAIN,
// the usual data directory, and last the variables that SDKs use.
func (g *globals) client() (*client.Client, error) {
	agent := client.WithUserAgent("nacre-cli/" + version)
	switch {
	case g.apiURL != "":
		return client.New(agent, client.WithAPIURL(g.apiURL), client.WithSandboxURL(cmp.Or(os.Getenv("NACRE_SANDBOX_URL"), g.apiURL)))
	case !g.dataDirFlag() && os.Getenv("NACRE_DOMAIN") != "":
		return client.New(agent)
	case !g.dataDirFlag() && os.Getenv("NACRE_API_URL") != "":
		// The sandboxes are behind the same address, whatever a variable of another brand says.
		return client.New(agent, client.WithSandboxURL(cmp.Or(os.Getenv("NACRE_SANDBOX_URL"), os.Getenv("NACRE_API_URL"))))
	}
	f, err := clientfile.Read(g.dataDir)
	if err != nil {
		if !g.dataDirFlag() {
			if c, cerr := client.New(agent); cerr == nil {
				return c, nil
			}
		}
		return nil, err
	}
	opts := []client.Option{agent, client.WithAPIKey(f.APIKey), client.WithDomain(f.TLSDomain)}
	if f.APIURL != "" {
		opts = append(opts, client.WithAPIURL(f.APIURL), client.WithSandboxURL(f.APIURL))
	} else {
		// By routing header at one name, whatever the environment says.
		url := "https://api." + f.TLSDomain
		opts = append(opts, client.WithAPIURL(url), client.WithSandboxURL(url))
		if f.CAFile != "" {
			opts = append(opts, client.WithCA(f.CAFile))
		}
	}
	return client.New(opts...)
}

// sandbox opens a sandbox by id, and resumes one that is paused.
func (g *globals) sandbox(ctx context.Context, id string) (*client.Client, *client.Sandbox, error) {
	if !nacre.SandboxID(id).Valid() {
		return nil, nil, fmt.Errorf("%q is no sandbox id, which is an 'i' and 20 letters and digits; `nacre ps` lists them", id)
	}
	c, err := g.client()
	if err != nil {
		return nil, nil, err
	}
	info, err := c.Info(ctx, id)
	if why := ending(ctx, c, id, err); why != "" {
		return nil, nil, errors.New(why)
	}
	if err != nil {
		return nil, nil, sandboxError(id, err)
	}
	if info.State == nacre.StatePaused {
		sb, err := c.Connect(ctx, id)
		return c, sb, sandboxError(id, err)
	}
	sb, err := c.Sandbox(ctx, id)
	return c, sb, sandboxError(id, err)
}

// sandboxError says what to do about an id that the server does not know.
func sandboxError(id string, err error) error {
	if errors.Is(err, client.ErrNotFound) {
		return fmt.Errorf("sandbox %s was not found: it has ended or never was; `nacre ps -a` shows why one ended", id)
	}
	return err
}

// recentEnds is how many ended sandboxes are looked through for one.
const recentEnds = 1000

// ending says why a sandbox ended that err, not nil, was about: "" when it has not, or
// nobody knows.
func ending(ctx context.Context, c *client.Client, id string, err error) string {
	if !errors.Is(err, client.ErrNotFound) && !errors.Is(err, client.ErrNotRunning) {
		return ""
	}
	n := 0
	for r, err := range c.Runs(ctx, "stopped") {
		if n++; err != nil || n > recentEnds {
			break
		}
		if r.ID == id {
			why := fmt.Sprintf("sandbox %s has ended (%s)", id, or(string(r.Reason), r.EndReason))
			if r.Detail != "" {
				why += ": " + printable(r.Detail)
			}
			return why
		}
	}
	return ""
}

// lost is ending for a sandbox that went away under a command, whose end the server may
// not have written down yet.
func (g *globals) lost(ctx context.Context, id string, err error) error {
	c, cerr := g.client()
	if cerr != nil || !errors.Is(err, client.ErrNotRunning) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for {
		if why := ending(ctx, c, id, err); why != "" {
			return errors.New(why)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// exitCode is the status that the command ends with, and has nothing to say.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// errorText is what the user reads: what happened and what to do next.
func errorText(err error) string {
	text := err.Error()
	switch {
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.Is(err, client.ErrUnauthenticated) && !strings.HasPrefix(text, "invalid username"): // which the guest says
		text += "; `nacre key create` makes a key on the server's host, NACRE_API_KEY takes it"
	case errors.Is(err, client.ErrRateLimited) && !strings.Contains(text, "try again"): // the server knows what to do
		text += "; end some sandboxes with `nacre kill`, or try again later"
	case errors.Is(err, client.ErrUnavailable) && !errors.Is(err, client.ErrNotRunning):
		text += "; does the server run? `nacre up` starts it, `nacre doctor` looks for what is wrong"
	}
	return text
}
