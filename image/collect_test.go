package image_test

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/image"
)

// TestWhatIsCounted: a snapshot counts for what it takes of the disk at the moment.
// Plain files count while they are there; a chunk counts for the oldest snapshot of a
// team that has it, and for each team that does; all of it again after a restart.
func TestWhatIsCounted(t *testing.T) {
	a := newArtifacts(t, nil)
	begin := time.Now()
	const ours, theirs = nacre.TeamID("team_aaaaaaaaaaaaaaaa"), nacre.TeamID("team_bbbbbbbbbbbbbbbb")
	first := files(1, 2048) // 8 MiB
	keep := func(team nacre.TeamID, age time.Duration, change byte) nacre.SnapshotID {
		t.Helper()
		f := maps.Clone(first)
		f["memory"] = append([]byte(nil), first["memory"]...)
		for i := range 4096 {
			f["memory"][i] ^= change
		}
		m := f.Manifest(nacre.NewSnapshotID())
		m.Team, m.CreatedAt = team, begin.Add(-age)
		m, err := f.Keep(t.Context(), a, m)
		a.must(err)
		return m.ID
	}
	counts := func() map[nacre.SnapshotID]int64 {
		t.Helper()
		list, err := a.Manifests(t.Context())
		a.must(err)
		out := map[nacre.SnapshotID]int64{}
		for _, m := range list {
			out[m.ID] = m.DiskBytes
		}
		return out
	}
	old, young, other := keep(ours, time.Hour, 0), keep(ours, time.Minute, 1), keep(theirs, time.Second, 1)
	plain := counts()[old]
	if got := counts(); plain < 8<<20 || got[young] != plain || got[other] != plain {
		t.Errorf("plain copies count %v", got)
	}
	a.must(a.Work(t.Context()))
	_, all := a.chunks()
	check := func(when string, base int64) {
		t.Helper()
		got := counts()
		whole, part, another := got[old]-base, got[young]-base, got[other]-base
		if whole+part != all || part <= 0 || part > whole/10 || another < whole*9/10 || another > all {
			t.Errorf("%s: of %d bytes of chunks the first bears %d, the second %d, another team %d", when, all, whole, part, another)
		}
	}
	check("with plain copies", plain)
	a.must(a.DropAll())
	check("with chunks alone", 0)

	a = a.restart()
	for id, n := range counts() {
		if n != 0 {
			t.Errorf("after a restart nobody has counted yet, and %s counts %d", id, n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.must(a.Run(ctx)) })
	for end := time.Now().Add(time.Minute); counts()[old] == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody counts after a restart")
		}
	}
	cancel()
	wg.Wait()
	check("after a restart", 0)

	part := counts()[young]
	a.must(a.Delete(t.Context(), old))
	a.Settle()
	a.must(a.Work(t.Context()))
	_, left := a.chunks()
	if got := counts(); got[young] != left || got[young] <= part || got[other] != left {
		t.Errorf("of %d bytes the second bears %d now, another team %d", left, got[young], got[other])
	}
}

// TestCountedSoonAfterAStart: whatever the collector's pace is.
func TestCountedSoonAfterAStart(t *testing.T) {
	a := newArtifacts(t, func(o *image.ArtifactOptions) { o.Collect = time.Hour })
	id := a.keep(files(3, 100))
	a.must(a.Work(t.Context()))
	a = a.restart()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.must(a.Run(ctx)) })
	defer wg.Wait()
	defer cancel()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		list, err := a.Manifests(t.Context())
		a.must(err)
		if len(list) == 1 && list[0].ID == id && list[0].DiskBytes > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%+v", list)
		}
	}
}

// TestFreedSoonAfterAStart: chunks of snapshots that were deleted before a restart are
// not kept until the next time that is looked for them.
func TestFreedSoonAfterAStart(t *testing.T) {
	a := newArtifacts(t, func(o *image.ArtifactOptions) { o.Collect = time.Hour })
	id := a.keep(files(3, 100))
	a.must(a.Work(t.Context()))
	a.must(a.Delete(t.Context(), id))
	if n, _ := a.chunks(); n == 0 {
		t.Fatal("the chunks went with the snapshot, of which this test is not")
	}
	a = a.restart()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.must(a.Run(ctx)) })
	defer wg.Wait()
	defer cancel()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if n, _ := a.chunks(); n == 0 {
			return
		} else if time.Now().After(end) {
			t.Fatalf("%d chunks that nothing holds", n)
		}
	}
}
