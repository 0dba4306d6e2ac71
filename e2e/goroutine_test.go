package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/pprof"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/nacrehq/nacre/client"
	"github.com/nacrehq/nacre/server"
)

// TestEveryGoroutineEnds: a server that was used and is told to end leaves nothing
// running behind, with streams open and sandboxes that go on.
func TestEveryGoroutineEnds(t *testing.T) {
	d := prepared(t, "--memory-mib", "256", "--standby", "1")
	begin := goroutines(t)
	for round := range 2 {
		var closing []io.Closer // this side of what was open
		d.inProcess(func(ctx context.Context) {
			hc := &http.Client{Transport: &http.Transport{}}
			defer hc.CloseIdleConnections()
			c, err := client.New(client.WithAPIKey(d.note().APIKey), client.WithAPIURL(d.note().APIURL), client.WithSandboxURL(d.note().APIURL), client.WithHTTPClient(hc))
			if err != nil {
				t.Fatal(err)
			}
			sb, err := c.Create(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := sb.Run(ctx, "echo hello > x"); err != nil {
				t.Fatal(err)
			}
			// What is open when the server is told to end.
			if _, err := sb.Start(ctx, "yes", client.Stdout(io.Discard)); err != nil {
				t.Fatal(err)
			}
			if _, err := sb.Files.Watch(ctx, ".", true); err != nil {
				t.Fatal(err)
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.note().APIURL+"/api/v1/events/stream", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-API-Key", d.note().APIKey)
			resp, err := hc.Do(req)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatal(resp, err)
			}
			closing = append(closing, resp.Body)
		})
		for _, c := range closing {
			c.Close()
		}
		d.eventually(patience, func() error {
			left := goroutines(t)
			for stack, n := range begin {
				left[stack] -= n
			}
			var errs []error
			for stack, n := range left {
				if n > 0 && !strings.Contains(stack, "TestEveryGoroutineEnds") && !strings.Contains(stack, "/fakenet.") {
					errs = append(errs, fmt.Errorf("round %d: %d of\n%s", round, n, stack))
				}
			}
			return errors.Join(errs...)
		})
	}
}

// goroutines counts this process's goroutines by their stacks.
func goroutines(t *testing.T) map[string]int {
	t.Helper()
	var text strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&text, 1); err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	_, blocks, _ := strings.Cut(text.String(), "\n") // the total
	for block := range strings.SplitSeq(blocks, "\n\n") {
		var n int
		if _, err := fmt.Sscanf(block, "%d @", &n); err == nil {
			_, stack, _ := strings.Cut(block, "\n")
			out[stack] = n
		}
	}
	return out
}

// inProcess runs the server in this process, and fn while it is ready.
func (d *daemon) inProcess(fn func(context.Context)) {
	d.t.Helper()
	var cfg server.Config
	flags := pflag.NewFlagSet("up", pflag.ContinueOnError)
	cfg.Flags(flags)
	if err := errors.Join(flags.Parse(d.args[1:]), cfg.Load(flags, os.Getenv)); err != nil {
		d.t.Fatal(err)
	}
	s, err := server.New(cfg, server.Options{Version: "test", Log: d.log})
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(d.t.Context())
	defer cancel()
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func(server.Status) { close(ready) }) }()
	select {
	case <-ready:
		// What the test itself has open ends with the server's end.
		func() {
			defer cancel()
			fn(d.t.Context())
		}()
		if err := <-ended; err != nil {
			d.t.Errorf("the server ended: %v\n%s", err, d.log)
		}
	case err := <-ended:
		d.t.Fatalf("the server does not start: %v\n%s", err, d.log)
	}
}
