package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
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
	ctx, cancel := context.WithTimeout(ctx, slow(patience))
	defer cancel()
	res, err := sb.Run(ctx, "echo q > /tmp/ask; cat /tmp/answer")
	if err == nil && res.Stdout != word+"-q\n" {
		err = fmt.Errorf("%s remembers %q, not %q", sb.ID, res.Stdout, word)
	}
	return err
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
	d.eventually(patience, func() error {
		now := d.settled(inst, 1)
		for kind, n := range now {
			if n > before[kind] { // what the driver holds ready comes later
				return fmt.Errorf("left behind:\nbefore %s\nafter  %s", before, now)
			}
		}
		return nil
	})
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
	d.eventually(patience, func() error {
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
	if _, err := all[50].Run(t.Context(), "curl -s --max-time 30 http://1.1.1.1/"); err != nil {
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
