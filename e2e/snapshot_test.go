package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

// witness is a process of a sandbox that knows a word which is in its memory alone.
const witness = `rm -f /tmp/ask /tmp/answer; mkfifo /tmp/ask /tmp/answer; word=%s
while :; do read -r q < /tmp/ask; echo $word-$q > /tmp/answer; done`

// entrust starts a witness of a word.
func entrust(ctx context.Context, sb *client.Sandbox, word string) error {
	p, err := sb.Start(ctx, fmt.Sprintf(witness, word))
	if err != nil {
		return err
	}
	if _, err := sb.Run(ctx, "until [ -p /tmp/answer ]; do sleep 0.02; done"); err != nil {
		return err
	}
	return p.Close()
}

// remembers asks the witness for its word, and the file beside it.
func remembers(ctx context.Context, sb *client.Sandbox, word string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	res, err := sb.Run(ctx, "echo q > /tmp/ask; cat /tmp/answer")
	if err == nil && res.Stdout != word+"-q\n" {
		err = fmt.Errorf("%s remembers %q, not %q", sb.ID, res.Stdout, word)
	}
	return err
}

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
	d.eventually(30*time.Second, func() error {
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
	d.eventually(30*time.Second, func() error { _, err := more(); return err })
}

// TestFault01_PausedOutliveTheDaemon: a server that was killed finds its paused
// sandboxes and its snapshots again, and deadlines go on.
func TestFault01_PausedOutliveTheDaemon(t *testing.T) {
	d := start(t, "--memory-mib", "256")
	c := d.client()
	sbs := many(t, c, 6, client.Timeout(20*time.Minute))
	each(t, sbs, func(ctx context.Context, i int, sb *client.Sandbox) error {
		return entrust(ctx, sb, fmt.Sprint("w", i))
	})
	each(t, sbs[:4], func(ctx context.Context, _ int, sb *client.Sandbox) error { return sb.Pause(ctx) })
	snap, err := sbs[5].Snapshot(t.Context(), client.Name("kept"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		d.kill9()
		d.up()
	}
	c = d.client()
	paused := 0
	for info, err := range c.List(t.Context(), client.States(nacre.StatePaused)) {
		if err != nil {
			t.Fatal(err)
		}
		if paused++; info.State != nacre.StatePaused {
			t.Errorf("%+v", info)
		}
	}
	if paused != 4 {
		t.Errorf("%d are paused after the restart, want 4", paused)
	}
	each(t, sbs, func(ctx context.Context, i int, sb *client.Sandbox) error {
		if err := sb.Resume(ctx); err != nil {
			return err
		}
		return remembers(ctx, sb, fmt.Sprint("w", i))
	})
	made, err := c.CreateFromSnapshot(t.Context(), snap.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := remembers(t.Context(), made, "w5"); err != nil {
		t.Error(err)
	}
	d.agree()
}

// TestFault03_KilledWhileItKeeps: the server is killed at random moments of pauses,
// resumes, snapshots, restores and forks. Whatever was going on, each sandbox is
// there afterwards, with its memory, and every snapshot that is listed can be used.
func TestFault03_KilledWhileItKeeps(t *testing.T) {
	d := prepared(t, "--memory-mib", "256", "--standby", "1")
	d.ownBinary()
	d.up()
	c, inst := d.client(), d.instance()
	before := d.settled(inst, 1)
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 1))
	sbs := many(t, c, 3, client.Timeout(time.Hour))
	each(t, sbs, func(ctx context.Context, i int, sb *client.Sandbox) error {
		return entrust(ctx, sb, fmt.Sprint("w", i))
	})
	for round := range 12 {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i, sb := range sbs {
			wg.Go(func() { // what becomes of each is not to be known
				switch (round + i) % 4 {
				case 0:
					_ = sb.Pause(ctx)
					_ = sb.Resume(ctx)
				case 1:
					if snap, err := sb.Snapshot(ctx); err == nil {
						_ = sb.Restore(ctx, snap.ID)
					}
				case 2:
					_, _ = c.Fork(ctx, sb.ID, 2)
				case 3:
					_ = sb.Pause(ctx)
				}
			})
		}
		time.Sleep(time.Duration(rng.IntN(900)) * time.Millisecond)
		d.kill9()
		cancel()
		wg.Wait()
		d.up()
		c = d.client()
		each(t, sbs, func(ctx context.Context, i int, sb *client.Sandbox) error {
			if err := sb.Resume(ctx, client.Timeout(time.Hour)); err != nil {
				return fmt.Errorf("round %d: %w", round, err)
			}
			return remembers(ctx, sb, fmt.Sprint("w", i))
		})
		mine := map[string]bool{sbs[0].ID: true, sbs[1].ID: true, sbs[2].ID: true}
		for info, err := range c.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if !mine[info.ID] { // a fork
				if err := c.Kill(t.Context(), info.ID); err != nil && !errors.Is(err, client.ErrNotFound) {
					t.Errorf("round %d: a fork cannot be ended: %v", round, err)
				}
			}
		}
	}
	for s, err := range c.Snapshots(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		made, err := c.CreateFromSnapshot(t.Context(), s.ID)
		if err != nil {
			t.Errorf("snapshot %s is listed and cannot be used: %v", s.ID, err)
			continue
		}
		if _, err := made.Run(t.Context(), "echo q > /tmp/ask; cat /tmp/answer"); err != nil {
			t.Errorf("made from %s: %v", s.ID, err)
		}
		_ = made.Kill(t.Context())
		if err := c.DeleteSnapshot(t.Context(), s.ID); err != nil {
			t.Errorf("delete %s: %v", s.ID, err)
		}
	}
	d.agree()
	d.cli("kill", "--all")
	d.stop()
	d.up() // what nothing holds is collected at a start, and else now and then
	d.eventually(time.Minute, func() error {
		now := d.settled(inst, 1)
		for kind, n := range now {
			if n > before[kind] { // what the driver holds ready comes later
				return fmt.Errorf("left behind:\nbefore %s\nafter  %s", before, now)
			}
		}
		return nil
	})
}

// TestFault11_DiskFullDuringPause: a pause that the disk does not hold is a 507 with
// the reason, and the sandbox runs on.
func TestFault11_DiskFullDuringPause(t *testing.T) {
	d := prepared(t, "--memory-mib", "256")
	dir := d.path("snapshots")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
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
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=560m"); err != nil { // 512 are kept in reserve
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
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
	if _, err := sb.Run(t.Context(), "pkill -x python3; sleep 0.2"); err != nil {
		t.Fatal(err)
	}
	if err := sb.Pause(t.Context()); err != nil {
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

// TestFault26_DeleteWhileForksAreMade: either the snapshot is held and its holder is
// named, or it is gone and no fork comes of it; never half of both.
func TestFault26_DeleteWhileForksAreMade(t *testing.T) {
	d := start(t, "--memory-mib", "256")
	c := d.client()
	sb := many(t, c, 1)[0]
	if err := entrust(t.Context(), sb, "kept"); err != nil {
		t.Fatal(err)
	}
	for round := range 4 {
		snap, err := sb.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		deleted := make(chan error, 1)
		go func() {
			time.Sleep(time.Duration(round) * 60 * time.Millisecond)
			deleted <- c.DeleteSnapshot(t.Context(), snap.ID)
		}()
		forks, err := c.Fork(t.Context(), snap.ID, 6)
		derr := <-deleted
		t.Logf("round %d: delete: %v, fork: %v", round, derr, err)
		if derr != nil && (!errors.Is(derr, client.ErrConflict) || !regexp.MustCompile(`\bi[0-9a-z]{20}\b`).MatchString(derr.Error())) {
			t.Errorf("round %d: the delete was refused without a holder: %v", round, derr)
		}
		if err != nil && !errors.Is(err, client.ErrNotFound) {
			t.Errorf("round %d: %v", round, err)
		}
		for i, f := range forks {
			if f.Err != nil {
				if !errors.Is(f.Err, client.ErrNotFound) {
					t.Errorf("round %d, fork %d: %v", round, i, f.Err)
				}
				continue
			}
			if err := remembers(t.Context(), f.Sandbox, "kept"); err != nil {
				t.Errorf("round %d, fork %d: %v", round, i, err)
			}
			_ = f.Sandbox.Kill(t.Context())
		}
		if derr != nil {
			if err := c.DeleteSnapshot(t.Context(), snap.ID); err != nil {
				t.Errorf("round %d: when nobody holds it any more: %v", round, err)
			}
		}
	}
}

// TestFault27_ResumeAgainstKill: whoever wins, nothing is left of a killed sandbox.
func TestFault27_ResumeAgainstKill(t *testing.T) {
	d := start(t, "--memory-mib", "256")
	c := d.client()
	for i := range 8 {
		sb := many(t, c, 1)[0]
		if err := sb.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		var g errgroup.Group
		g.Go(func() error {
			if err := sb.Resume(t.Context()); err != nil && !errors.Is(err, client.ErrNotFound) && !errors.Is(err, client.ErrConflict) {
				return fmt.Errorf("resume: %w", err)
			}
			return nil
		})
		g.Go(func() error {
			time.Sleep(time.Duration(i) * 40 * time.Millisecond)
			return sb.Kill(t.Context())
		})
		if err := g.Wait(); err != nil {
			t.Errorf("round %d: %v", i, err)
		}
		if _, err := sb.Info(t.Context()); !errors.Is(err, client.ErrNotFound) {
			t.Errorf("round %d: a killed one is there: %v", i, err)
		}
	}
	d.eventually(20*time.Second, func() error {
		if n := len(d.handles()); n != 0 {
			return fmt.Errorf("%d machines are left", n)
		}
		return nil
	})
	d.agree()
}

// TestFault23_HundredForks: a hundred forks of one sandbox have no random number, no
// name and no address in common, and the time is right in each.
func TestFault23_HundredForks(t *testing.T) {
	d := start(t, "--memory-mib", "128")
	c := d.client()
	sb := many(t, c, 1, client.DenyOut("8.8.8.0/24"))[0]
	const ask = `cat /etc/machine-id; hostname; hostname -I; head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid
python3 -c 'import random,uuid,secrets; print(random.random()); print(uuid.uuid4()); print(secrets.token_hex())'`
	if _, err := sb.Run(t.Context(), ask); err != nil { // the streams are in use when they are copied
		t.Fatal(err)
	}
	if err := entrust(t.Context(), sb, "inherited"); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	forks, err := c.Fork(t.Context(), sb.ID, 100, client.Timeout(10*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("100 forks in %s", time.Since(begin).Round(time.Millisecond))
	seen := struct {
		sync.Mutex
		who map[string]string
	}{who: map[string]string{}}
	all := []*client.Sandbox{sb}
	for i, f := range forks {
		if f.Err != nil {
			t.Fatalf("fork %d: %v", i, f.Err)
		}
		all = append(all, f.Sandbox)
	}
	var g errgroup.Group
	g.SetLimit(8)
	for _, one := range all {
		g.Go(func() error {
			res, err := one.Run(t.Context(), ask)
			if err != nil {
				return err
			}
			lines := strings.Split(strings.TrimSpace(res.Stdout), "\n")
			if len(lines) != 8 {
				return fmt.Errorf("%q", lines)
			}
			seen.Lock()
			for _, l := range lines {
				if other, ok := seen.who[l]; ok {
					t.Errorf("%s and %s both have %q", one.ID, other, l)
				}
				seen.who[l] = one.ID
			}
			seen.Unlock()
			if err := remembers(t.Context(), one, "inherited"); err != nil {
				return err
			}
			return clockIsRight(t.Context(), one)
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	// FAULTS 43: the policy is the source's.
	if _, err := all[50].Run(t.Context(), "curl -s --max-time 3 http://8.8.8.8/"); err == nil {
		t.Error("a fork reaches what its source may not")
	}
	if _, err := all[50].Run(t.Context(), "curl -s --max-time 5 http://1.1.1.1/"); err != nil {
		t.Errorf("a fork does not reach what its source may: %v", err)
	}
	d.cli("kill", "--all")
}

// clockIsRight compares a guest's clock with ours, to 50 ms: the best of some looks
// counts, for a look takes time itself.
func clockIsRight(ctx context.Context, sb *client.Sandbox) error {
	var off time.Duration
	for range 5 {
		before := time.Now()
		res, err := sb.Run(ctx, "date +%s%N")
		after := time.Now()
		if err != nil {
			return err
		}
		var ns int64
		if _, err := fmt.Sscan(res.Stdout, &ns); err != nil {
			return err
		}
		at := time.Unix(0, ns)
		if off = max(before.Sub(at), at.Sub(after)); off <= 50*time.Millisecond {
			return nil
		}
	}
	return fmt.Errorf("the clock of %s is %s off", sb.ID, off)
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
