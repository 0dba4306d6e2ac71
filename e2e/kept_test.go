package e2e

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nacrehq/nacre/client"
)

// TestProgressOfALongPause: how far it is can be seen, and goes up.
func TestProgressOfALongPause(t *testing.T) {
	d := start(t, "--memory-mib", "2048", "--standby", "0")
	c := d.client()
	sb := many(t, c, 1, client.Timeout(10*time.Minute))[0]
	hold := `exec python3 -c 'import os, time; b = [os.urandom(1 << 20) for _ in range(700)]; open("/tmp/filled", "w").close(); time.sleep(1e6)'`
	if _, err := sb.Start(t.Context(), hold); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Run(t.Context(), "until [ -e /tmp/filled ]; do sleep 0.1; done"); err != nil {
		t.Fatal(err)
	}
	paused := make(chan error, 1)
	go func() { paused <- sb.Pause(t.Context()) }()
	var seen []client.Keeping
	for over := false; !over; {
		select {
		case err := <-paused:
			if err != nil {
				t.Fatal(err)
			}
			over = true
		case <-time.After(10 * time.Millisecond):
			if info, err := sb.Info(t.Context()); err != nil {
				t.Fatal(err)
			} else if info.Keeping != nil {
				seen = append(seen, *info.Keeping)
			}
		}
	}
	if len(seen) == 0 {
		t.Fatal("nothing was to be seen of the pause")
	}
	last := seen[len(seen)-1]
	t.Logf("%d looks, the last at %d of %d MiB", len(seen), last.Bytes>>20, last.OfBytes>>20)
	for i, k := range seen {
		if k.OfBytes < 700<<20 || k.Bytes > k.OfBytes || i > 0 && k.Bytes < seen[i-1].Bytes {
			t.Errorf("look %d: %+v, before %+v", i, k, seen[max(0, i-1)])
		}
	}
	if last.Bytes == 0 {
		t.Error("it never went up")
	}
	if info, err := sb.Info(t.Context()); err != nil || info.Keeping != nil {
		t.Errorf("of a paused one: %+v, %v", info, err)
	}
}

// TestSnapshotsCountWhatIsOnDisk: above --snapshots-plain-mib the plain files go, what
// is left counts, and the quota with it; a snapshot of chunks alone is used like any
// other.
func TestSnapshotsCountWhatIsOnDisk(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0", "--snapshots-plain-mib", "1", "--max-snapshots-mib-per-team", "30")
	c := d.client()
	sb := many(t, c, 1)[0]
	if err := entrust(t.Context(), sb, "kept"); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Run(t.Context(), "yes what is easily made smaller | head -c 40M > /tmp/big"); err != nil {
		t.Fatal(err)
	}
	first, err := sb.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if first.DiskUsed < 30<<20 {
		t.Fatalf("this test wants a snapshot above the quota: %d bytes", first.DiskUsed)
	}
	if _, err := sb.Snapshot(t.Context()); !errors.Is(err, client.ErrRateLimited) {
		t.Errorf("above the quota: %v", err)
	}
	d.eventually(2*patience, func() error { // it is cut when it is half a minute old
		if plain, err := os.ReadDir(d.path("snapshots", "plain")); err != nil || len(plain) > 0 {
			return fmt.Errorf("%d plain copies, %v", len(plain), err)
		}
		return nil
	})
	second, err := sb.Snapshot(t.Context()) // which counts anew first
	if err != nil {
		t.Fatalf("with chunks alone: %v", err)
	}
	for s, err := range c.Snapshots(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if s.ID == first.ID {
			t.Logf("of %d MiB there are %.1f MiB on the disk when plain, %.1f MiB as chunks", s.Size>>20, float64(first.DiskUsed)/(1<<20), float64(s.DiskUsed)/(1<<20))
			if s.DiskUsed <= 0 || s.DiskUsed >= first.DiskUsed {
				t.Errorf("it counts %d bytes, and counted %d", s.DiskUsed, first.DiskUsed)
			}
		}
	}
	made, err := c.CreateFromSnapshot(t.Context(), first.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := remembers(t.Context(), made, "kept"); err != nil {
		t.Error(err)
	}
	for _, s := range []client.Snapshot{first, second} {
		if err := c.DeleteSnapshot(t.Context(), s.ID); err != nil {
			t.Error(err)
		}
	}
}
