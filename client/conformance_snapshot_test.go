package client_test

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

func conformPause(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c, client.Metadata(map[string]string{"a": "b"}), client.Timeout(10*time.Minute))
	p, err := sb.Start(ctx, "exec sleep 4717")
	if err != nil {
		t.Fatal(err)
	}
	before, err := sb.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if up, err := sb.IsRunning(ctx); up || err != nil {
		t.Errorf("running %v, %v while it is paused", up, err)
	}
	if err := sb.Pause(ctx); !errors.Is(err, client.ErrConflict) {
		t.Errorf("a second Pause: %v", err)
	}
	if _, err := sb.Run(ctx, "true"); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("a command in a paused sandbox: %v", err)
	}
	var listed []string
	for info, err := range c.List(ctx, client.States(nacre.StatePaused), client.Metadata(map[string]string{"a": "b"})) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, info.ID)
	}
	if len(listed) != 1 || listed[0] != sb.ID {
		t.Errorf("paused ones: %v", listed)
	}
	if err := sb.Resume(ctx, client.Timeout(time.Second)); err != nil {
		t.Fatal(err)
	}
	after, err := sb.Info(ctx)
	if err != nil || after.State != nacre.StateRunning || after.Metadata["a"] != "b" || after.EndAt.Before(before.EndAt) {
		t.Errorf("%+v after, %+v before: %v", after, before, err)
	}
	again, err := c.Connect(ctx, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, handle := range []*client.Sandbox{sb, again} {
		if f, err := handle.Attach(ctx, p.PID); err != nil {
			t.Errorf("the process is gone: %v", err)
		} else {
			f.Close()
		}
	}
	if err := p.Kill(ctx); err != nil { // where the guest is a process of this host, no boot ends it
		t.Error(err)
	}
	if err := sb.Pause(ctx, client.FilesOnly()); err != nil {
		t.Fatal(err)
	}
	if err := sb.Resume(ctx, client.Reboot()); err != nil {
		t.Fatal(err)
	}
	if err := sb.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := sb.Kill(ctx); err != nil {
		t.Errorf("a paused one cannot be killed: %v", err)
	}
	if err := sb.Resume(ctx); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("a killed one: %v", err)
	}
}

func conformSnapshots(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c)
	name := "conform" + strings.TrimLeft(sb.ID, "i")
	first, err := sb.Snapshot(ctx, client.Name(name), client.Comment("one"), client.Keep(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if !nacre.SnapshotID(first.ID).Valid() || first.Name != name || first.SandboxID != sb.ID || first.Comment != "one" || !first.Memory ||
		time.Until(first.ExpiresAt) < 59*time.Minute || first.Size <= 0 {
		t.Errorf("%+v", first)
	}
	second, err := sb.Snapshot(ctx, client.Name(name), client.FilesOnly())
	if err != nil {
		t.Fatal(err)
	}
	if second.Memory {
		t.Errorf("%+v", second)
	}
	find := func(opts ...client.SnapshotListOption) (ids []string) {
		t.Helper()
		for s, err := range c.Snapshots(ctx, opts...) {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, s.ID)
		}
		return ids
	}
	for i, got := range [][]string{find(client.Name(name)), find(client.Of(sb.ID)), find(client.Name(name), client.Of(sb.ID))} {
		if len(got) != 2 || got[0] != second.ID || got[1] != first.ID {
			t.Errorf("list %d: %v", i, got)
		}
	}
	if err := sb.Restore(ctx, first.ID); err != nil {
		t.Error(err)
	}
	for _, ref := range []string{first.ID, name} {
		made, err := c.CreateFromSnapshot(ctx, ref, client.Timeout(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if up, err := made.IsRunning(ctx); !up || err != nil || made.ID == sb.ID {
			t.Errorf("made from %s: running %v, %v", ref, up, err)
		}
		_ = made.Kill(ctx)
	}
	if err := c.DeleteSnapshot(ctx, first.ID); err != nil {
		t.Error(err)
	}
	if err := c.DeleteSnapshot(ctx, first.ID); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("a second delete: %v", err)
	}
	if err := sb.Restore(ctx, first.ID); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("a deleted snapshot: %v", err)
	}
	if err := c.DeleteSnapshot(ctx, name); err != nil || len(find(client.Name(name))) != 0 {
		t.Errorf("by name: %v", err)
	}
	if _, err := c.CreateFromSnapshot(ctx, second.ID); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("from a deleted snapshot: %v", err)
	}
}

func conformForks(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c, client.Metadata(map[string]string{"role": "source"}))
	one, err := sb.Fork(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Kill(noContext)
	if info, err := one.Info(ctx); err != nil || one.ID == sb.ID || info.Metadata["role"] != "source" {
		t.Errorf("%+v %v", info, err)
	}
	forks, err := c.Fork(ctx, sb.ID, 3, client.Timeout(time.Minute), client.Metadata(map[string]string{"role": "fork"}),
		client.Env(map[string]string{"MARK": "of a fork"}), client.AutoPause())
	if err != nil || len(forks) != 3 {
		t.Fatal(forks, err)
	}
	seen := map[string]bool{sb.ID: true}
	for i, f := range forks {
		if f.Err != nil || seen[f.Sandbox.ID] {
			t.Errorf("fork %d: %+v", i, f)
			continue
		}
		seen[f.Sandbox.ID] = true
		info, err := f.Sandbox.Info(ctx)
		if err != nil || info.Metadata["role"] != "fork" || time.Until(info.EndAt) > 2*time.Minute {
			t.Errorf("fork %d: %+v %v", i, info, err)
		}
		if res, err := f.Sandbox.Run(ctx, "echo $MARK"); err != nil || res.Stdout != "of a fork\n" {
			t.Errorf("fork %d: %+v %v", i, res, err)
		}
		_ = f.Sandbox.Kill(ctx)
	}
	conformForkEnv(t, c)
	snap, err := sb.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.DeleteSnapshot(noContext, snap.ID)
	forks, err = c.Fork(ctx, snap.ID, 2)
	if err != nil || len(forks) != 2 {
		t.Fatal(forks, err)
	}
	for _, f := range forks {
		if f.Err != nil {
			t.Error(f.Err)
			continue
		}
		_ = f.Sandbox.Kill(ctx)
	}
	if _, err := c.Fork(ctx, sb.ID, 101); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("101 forks: %v", err)
	}
	if _, err := c.Fork(ctx, string(nacre.NewSandboxID()), 1); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("a fork of nothing: %v", err)
	}
}

// conformForkEnv: a fork has its source's variables and time-out, or none of them.
func conformForkEnv(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c, client.Timeout(20*time.Minute), client.Env(map[string]string{"INHERITED": "yes"}))
	for want, opts := range map[string][]client.ForkOption{
		"yes,":        nil,
		",of its own": {client.OwnEnv(), client.Env(map[string]string{"OWN": "of its own"})},
	} {
		one, err := sb.Fork(ctx, opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer one.Kill(noContext)
		if res, err := one.Run(ctx, "echo $INHERITED,$OWN"); err != nil || res.Stdout != want+"\n" {
			t.Errorf("%+v %v, want %q", res, err, want)
		}
		if info, err := one.Info(ctx); err != nil || time.Until(info.EndAt) < 19*time.Minute {
			t.Errorf("a fork ends at %v %v", info.EndAt, err)
		}
	}
}

// conformState: what a snapshot, a fork and a restore have in them.
func conformState(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c)
	run := func(sb *client.Sandbox, line string) string {
		t.Helper()
		res, err := sb.Run(ctx, line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return strings.TrimSpace(res.Stdout)
	}
	run(sb, "mkfifo /tmp/fifo; echo old > file")
	p, err := sb.Start(ctx, "read -r x < /tmp/fifo; echo $x > /tmp/answer")
	if err != nil {
		t.Fatal(err)
	}
	snap, err := sb.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.DeleteSnapshot(noContext, snap.ID)
	run(sb, "echo new > file; echo of the source > /tmp/fifo")
	fork, err := c.CreateFromSnapshot(ctx, snap.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer fork.Kill(noContext)
	if got := run(fork, "cat file; kill -0 "+strconv.Itoa(p.PID)+" && echo alive"); got != "old\nalive" {
		t.Errorf("the fork holds %q", got)
	}
	run(fork, "echo of the fork > /tmp/fifo; while [ ! -s /tmp/answer ]; do sleep 0.05; done")
	if got := run(fork, "cat /tmp/answer"); got != "of the fork" {
		t.Errorf("the fork's process wrote %q", got)
	}
	if err := sb.Restore(ctx, snap.ID); err != nil {
		t.Fatal(err)
	}
	if got := run(sb, "cat file; ls /tmp/answer 2>/dev/null; kill -0 "+strconv.Itoa(p.PID)+" && echo alive"); got != "old\nalive" {
		t.Errorf("after the restore it holds %q", got)
	}
	if run(sb, "cat /etc/machine-id") == run(fork, "cat /etc/machine-id") || run(sb, "hostname") == run(fork, "hostname") {
		t.Error("the fork has its source's identity")
	}
}

func conformStreamAcrossPause(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c)
	p, err := sb.Start(ctx, "exec sleep 4718")
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("a command that is followed across a pause: %v", err)
	}
	if err := sb.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	again, err := sb.Attach(ctx, p.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Kill(ctx); err != nil {
		t.Error(err)
	}
}

func conformWake(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c, client.AutoPause(), client.AutoResume())
	if _, err := sb.Start(ctx, "mkdir -p www && echo served > www/index.html && cd www && exec python3 -m http.server 8000"); err != nil {
		t.Fatal(err)
	}
	if err := sb.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if up, err := sb.IsRunning(ctx); up || err != nil {
		t.Errorf("asking whether it runs woke it: %v, %v", up, err)
	}
	if res, err := sb.Run(ctx, "echo awake"); err != nil || res.Stdout != "awake\n" {
		t.Errorf("%+v %v", res, err)
	}
	if err := sb.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if info, err := sb.Info(ctx); err != nil || info.State != nacre.StatePaused {
		t.Errorf("%+v %v", info, err)
	}
	resp, err := http.Get(sb.Files.DownloadURL("www/index.html", time.Minute)) // names no sandbox when there is no domain
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "served\n" {
		t.Errorf("%d %q %v", resp.StatusCode, body, err)
	}
}
