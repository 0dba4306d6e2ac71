package e2e

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nacrehq/nacre/client"
)

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
	d.eventually(90*time.Second, func() error { // it is cut when it is half a minute old
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
