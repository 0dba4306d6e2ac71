package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nacrehq/nacre/client"
)

// TestNothingLeaks: a host on which sandboxes came and went is the host from
// before, and one that was told `nacre down` has nothing of Nacre left.
func TestNothingLeaks(t *testing.T) {
	d := prepared(t, "--memory-mib", "256", "--standby", "2")
	d.ownBinary()
	d.up()
	c, inst := d.client(), d.instance()
	churn := func(n int) {
		t.Helper()
		var g errgroup.Group
		g.SetLimit(4)
		for i := range n {
			g.Go(func() error { return oneLife(t.Context(), c, i) })
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	churn(8) // connections, caches, the first templates
	before := d.settled(inst, 2)
	fds := openFiles(t, d.cmd.Process.Pid)
	begin := time.Now()
	churn(100)
	t.Logf("100 lives in %s", time.Since(begin).Round(time.Millisecond))
	d.eventually(patience, func() error {
		if now := d.settled(inst, 2); now.String() != before.String() {
			return fmt.Errorf("left behind:\nbefore %s\nafter  %s", before, now)
		}
		// Idle connections to guests and to this client come and go.
		if now := openFiles(t, d.cmd.Process.Pid); now > fds+8 {
			return fmt.Errorf("the server has %d open files, and had %d before: %s", now, fds, kindsOfFiles(d.cmd.Process.Pid))
		}
		return nil
	})
	t.Logf("%s fds=%d", before, fds)

	ended := many(t, c, 3)
	d.cli("down")
	if d.running() {
		t.Error("the server runs after nacre down")
	}
	for _, of := range []string{"images/uppers/*", "node/machines/*"} {
		if left, err := filepath.Glob(d.path(of)); err != nil || len(left) != 0 {
			t.Errorf("left on the disk after nacre down: %v %v", left, err)
		}
	}
	left := d.traces(inst)
	delete(left, "files")      // records, images and keys stay
	delete(left, "nft chains") // other tables'
	for kind, n := range left {
		if n != 0 {
			t.Errorf("%d %s left after nacre down", n, kind)
		}
	}
	if left := d.processes(false); len(left) != 0 {
		t.Errorf("processes left after nacre down: %v", left)
	}
	d.up()
	for _, sb := range ended {
		if o := d.outcome(sb.ID); o.Reason != "killed" || o.Detail == "" {
			t.Errorf("a sandbox that nacre down ended: %+v", o)
		}
	}
}

// oneLife makes a sandbox, uses it in one of several ways and ends it.
func oneLife(ctx context.Context, c *client.Client, i int) error {
	sb, err := c.Create(ctx)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if _, err := sb.Run(ctx, "echo hello > /tmp/x; (sleep 1000 &) ; cat /tmp/x"); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	if i%3 == 0 {
		if err := sb.Files.WriteFile(ctx, "f", make([]byte, 1<<20)); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	if i%3 == 1 { // a stream is open when it ends
		if _, err := sb.Start(ctx, "sleep 1000"); err != nil {
			return fmt.Errorf("start: %w", err)
		}
	}
	if err := sb.Kill(ctx); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	return nil
}
