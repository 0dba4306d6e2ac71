package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
	"github.com/nacrehq/nacre/nacretest"
)

// TestPausedHoldNoProcessAndNoMemory: while it is paused nothing of a sandbox is on
// the host but files, and after it ended not even those.
func TestPausedHoldNoProcessAndNoMemory(t *testing.T) {
	d := prepared(t, "--memory-mib", "256", "--standby", "1")
	d.ownBinary()
	d.up()
	c, inst := d.client(), d.instance()
	begin := func() []*client.Sandbox {
		sbs := many(t, c, 5)
		each(t, sbs, func(ctx context.Context, i int, sb *client.Sandbox) error {
			return entrust(ctx, sb, fmt.Sprint("w", i))
		})
		each(t, sbs, func(ctx context.Context, _ int, sb *client.Sandbox) error { return sb.Pause(ctx) })
		return sbs
	}
	each(t, begin(), func(ctx context.Context, _ int, sb *client.Sandbox) error { return sb.Resume(ctx) })
	d.cli("kill", "--all") // what is held ready for the next has been used once
	before := d.settled(inst, 1)
	// more tells what there is more of than before.
	more := func(but ...string) (now traces, err error) {
		now = d.settled(inst, 1)
		for kind, n := range now {
			if n > before[kind] && !slices.Contains(but, kind) {
				err = fmt.Errorf("left behind:\nbefore %s\nafter  %s", before, now)
			}
		}
		return now, err
	}
	sbs := begin()
	d.eventually(patience, func() error {
		now, err := more("files")
		if err == nil && now["files"] <= before["files"] {
			err = errors.New("they hold no files either")
		}
		return err
	})
	each(t, sbs, func(ctx context.Context, i int, sb *client.Sandbox) error {
		if err := sb.Resume(ctx); err != nil {
			return err
		}
		return remembers(ctx, sb, fmt.Sprint("w", i))
	})
	each(t, sbs[:3], func(ctx context.Context, _ int, sb *client.Sandbox) error { return sb.Pause(ctx) })
	d.cli("kill", "--all")
	d.eventually(patience, func() error { _, err := more(); return err })
}

// TestFault11_DiskFullDuringPause: a pause that the disk does not hold is a 507 with
// the reason, and the sandbox runs on.
func TestFault11_DiskFullDuringPause(t *testing.T) {
	d := prepared(t, "--memory-mib", "256")
	dir := d.path("snapshots")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	nacretest.SmallDisk(t, dir, "size=3m")
	d.up()
	c := d.client()
	sb := many(t, c, 1)[0]
	if err := entrust(t.Context(), sb, "kept"); err != nil {
		t.Fatal(err)
	}
	for what, call := range map[string]func() error{
		"pause":    func() error { return sb.Pause(t.Context()) },
		"snapshot": func() error { _, err := sb.Snapshot(t.Context()); return err },
		"fork":     func() error { _, err := sb.Fork(t.Context()); return err },
	} {
		err := call()
		if !errors.Is(err, client.ErrNoSpace) || !strings.Contains(err.Error(), "disk") {
			t.Errorf("%s on a full disk: %v", what, err)
		}
		if err := remembers(t.Context(), sb, "kept"); err != nil {
			t.Errorf("after the %s: %v", what, err)
		}
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=512m"); err != nil {
		t.Fatal(err)
	}
	if err := sb.Pause(t.Context()); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	if err := sb.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := remembers(t.Context(), sb, "kept"); err != nil {
		t.Error(err)
	}
}

// TestFault11_DiskFillsWhileAPauseIsWritten: there seemed to be room, and there is not.
// Nothing of the half is left, and the sandbox runs on with all that it had.
func TestFault11_DiskFillsWhileAPauseIsWritten(t *testing.T) {
	d := prepared(t, "--memory-mib", "2048", "--standby", "0")
	dir := d.path("snapshots")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	nacretest.SmallDisk(t, dir, "size=560m") // 512 are kept in reserve
	d.up()
	sb := many(t, d.client(), 1, client.Timeout(10*time.Minute))[0]
	if err := entrust(t.Context(), sb, "kept"); err != nil {
		t.Fatal(err)
	}
	hold := `exec python3 -c 'import os, time; b = [os.urandom(1 << 20) for _ in range(700)]; open("/tmp/filled", "w").close(); time.sleep(1e6)'`
	if _, err := sb.Start(t.Context(), hold); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Run(t.Context(), "until [ -e /tmp/filled ]; do sleep 0.1; done"); err != nil {
		t.Fatal(err)
	}
	for what, call := range map[string]func() error{
		"pause":    func() error { return sb.Pause(t.Context()) },
		"snapshot": func() error { _, err := sb.Snapshot(t.Context()); return err },
	} {
		if err := call(); !errors.Is(err, client.ErrNoSpace) || !strings.Contains(err.Error(), "full") {
			t.Errorf("%s: %v", what, err)
		}
		if err := remembers(t.Context(), sb, "kept"); err != nil {
			t.Errorf("after the %s: %v", what, err)
		}
		if info, err := sb.Info(t.Context()); err != nil || info.State != nacre.StateRunning {
			t.Errorf("after the %s: %+v %v", what, info, err)
		}
		if left, err := os.ReadDir(d.path("snapshots", "plain")); err != nil || len(left) > 0 {
			t.Errorf("the %s left %v, %v", what, left, err)
		}
	}
	if _, err := sb.Run(t.Context(), "pkill -x python3; while pgrep -x python3; do sleep 0.05; done"); err != nil {
		t.Fatal(err)
	}
	var err error
	d.eventually(patience, func() error { // its memory is given back behind its end
		if err = sb.Pause(t.Context()); errors.Is(err, client.ErrNoSpace) {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatalf("when there is less to keep: %v", err)
	}
	if err := sb.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := remembers(t.Context(), sb, "kept"); err != nil {
		t.Error(err)
	}
}

// checksums keeps random bytes in memory and in a file, changes a part of both at
// each question, and says whether they are what it has counted on.
const checksums = `import hashlib, os
memory = bytearray(os.urandom(8 << 20)); disk = open('/tmp/data', 'w+b', buffering=0); disk.write(memory)
for f in ('/tmp/ask', '/tmp/answer'): os.mkfifo(f)
total, n = hashlib.sha256(memory).digest(), 0
while True:
    open('/tmp/ask').read()
    disk.seek(0)
    same = hashlib.sha256(memory).digest() == total and hashlib.sha256(disk.read()).digest() == total
    n += 1
    at = (n * 524287) % (len(memory) - 4096)
    memory[at:at + 4096] = fresh = os.urandom(4096)
    disk.seek(at); disk.write(fresh)
    total = hashlib.sha256(memory).digest()
    with open('/tmp/answer', 'w') as out: out.write(f'{same} {n}\n')
`

// TestFault22_HundredPauses: after each of a hundred pauses memory and files are
// what they were, to the bit, with a write just before each.
func TestFault22_HundredPauses(t *testing.T) {
	d := start(t, "--memory-mib", "256")
	sb := many(t, d.client(), 1, client.Timeout(time.Hour))[0]
	if err := sb.Files.WriteFile(t.Context(), "/tmp/sums.py", []byte(checksums)); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Start(t.Context(), "exec python3 /tmp/sums.py"); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Run(t.Context(), "until [ -p /tmp/answer ]; do sleep 0.02; done"); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 100; n++ {
		res, err := sb.Run(t.Context(), "echo > /tmp/ask; cat /tmp/answer")
		if err != nil || res.Stdout != fmt.Sprintf("True %d\n", n) {
			t.Fatalf("after %d pauses: %+v %v", n-1, res, err)
		}
		if err := sb.Pause(t.Context()); err != nil {
			t.Fatalf("pause %d: %v", n, err)
		}
		if err := sb.Resume(t.Context()); err != nil {
			t.Fatalf("resume %d: %v", n, err)
		}
	}
}

// TestPauseFromTheCommandLine walks pause, resume, snapshot, restore and fork.
func TestPauseFromTheCommandLine(t *testing.T) {
	d := start(t, "--memory-mib", "256")
	id := strings.TrimSpace(d.cli("run", "--timeout", "30m"))
	d.cli("exec", id, "--", "echo one > state")
	snap := strings.TrimSpace(d.cli("snapshot", id, "--name", "first", "--comment", "of the test"))
	d.cli("exec", id, "--", "echo two > state")
	d.cli("pause", id)
	if out := d.cli("ps"); !strings.Contains(out, "paused") {
		t.Errorf("ps: %s", out)
	}
	d.cli("resume", id)
	if out := d.cli("exec", id, "--", "cat state"); out != "two\n" {
		t.Errorf("after the resume: %q", out)
	}
	forks := strings.Fields(d.cli("fork", "-n", "2", id))
	d.cli("restore", id, snap)
	if out := d.cli("exec", id, "--", "cat state"); out != "one\n" {
		t.Errorf("after the restore: %q", out)
	}
	for _, f := range forks {
		if out := d.cli("exec", f, "--", "cat state"); out != "two\n" {
			t.Errorf("a fork has %q", out)
		}
	}
	if out := d.cli("run", "--rm", "--template", "first", "--", "cat state"); out != "one\n" {
		t.Errorf("made from the snapshot: %q", out)
	}
	if out := d.cli("snapshots", "--of", id); !strings.Contains(out, "of the test") || !strings.Contains(out, "MiB") {
		t.Errorf("snapshots: %s", out)
	}
	d.cli("snapshots", "delete", "first")
	if out := d.cli("snapshots", "-q"); out != "" {
		t.Errorf("left are %q", out)
	}
}
