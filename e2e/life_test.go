package e2e

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

// TestLife walks one sandbox through what there is, on whatever host this is: it needs
// no more of the base template than a shell and Perl. `make test-cgroup2` runs it too.
func TestLife(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--disk-mib", "256", "--cpus", "1", "--standby", "0")
	ctx := t.Context()
	sb, err := d.client().Create(ctx, client.Env(map[string]string{"WHO": "the create"}), client.Timeout(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if res, err := sb.Run(ctx, "id -un; echo $WHO"); err != nil || res.Stdout != "user\nthe create\n" {
		t.Fatalf("a command: %+v %v", res, err)
	}
	var exit *client.ExitError
	if _, err := sb.Run(ctx, "exit 42"); !errors.As(err, &exit) || exit.ExitCode != 42 {
		t.Errorf("exit 42: %v", err)
	}
	if err := entrust(ctx, sb, "word"); err != nil {
		t.Fatal(err)
	}
	if err := sb.Files.WriteFile(ctx, "note", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	same := func(when string, sb *client.Sandbox) {
		t.Helper()
		if err := remembers(ctx, sb, "word"); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if text, err := sb.Files.ReadFile(ctx, "note"); err != nil || string(text) != "kept" {
			t.Errorf("%s: its file is %q, %v", when, text, err)
		}
	}
	same("at first", sb)

	if err := sb.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if info, err := sb.Info(ctx); err != nil || info.State != nacre.StatePaused {
		t.Errorf("after a pause: %+v %v", info, err)
	}
	if err := sb.Resume(ctx, client.Timeout(time.Hour)); err != nil {
		t.Fatal(err)
	}
	same("after a pause", sb)
	fork, err := sb.Fork(ctx, client.Timeout(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	same("a fork", fork)
	same("after a fork", sb)

	pids := d.pids()
	d.kill9()
	d.up()
	if now := d.pids(); len(now) != 2 || now[sb.ID] != pids[sb.ID] || now[fork.ID] != pids[fork.ID] {
		t.Errorf("the machines after a kill are %v, before %v", now, pids)
	}
	same("after a kill", sb)
	same("a fork after a kill", fork)

	d.outOfMemory(ctx, fork)
	same("beside a sandbox out of memory", sb)
	h := d.handles()[sb.ID]
	if err := sb.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if o := d.outcome(sb.ID); o.EndReason != "killed" {
		t.Errorf("it ended: %+v", o)
	}
	if left := d.cgroupFile(h, "memory", "memory.usage_in_bytes", "memory.current"); left != -1 {
		t.Errorf("%d bytes are in use still", left)
	}
	d.agree()
}

// outOfMemory has a sandbox use more than it may, and the record say so.
func (d *daemon) outOfMemory(ctx context.Context, sb *client.Sandbox) {
	d.t.Helper()
	// The kernel ends the process that asked for it, or, here, what has none.
	if _, err := sb.Run(ctx, "cat /dev/zero > /dev/shm/bomb"); !errors.Is(err, client.ErrUnavailable) {
		d.t.Errorf("who waited for the sandbox that ran out of memory was told %v", err)
	}
	if o := d.outcome(sb.ID); o.EndReason != "error" || o.Reason != "oom" {
		d.t.Errorf("the sandbox that ran out of memory ended: %+v", o)
	}
}
