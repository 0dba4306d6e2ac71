package firecracker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// TestTwoProcessors: a guest has both, its programs run on both and have one clock, and
// so it is after a pause, and in a copy, which is told the time.
func TestTwoProcessors(t *testing.T) {
	r := newRuntime(t)
	two := func() nacre.MachineSpec {
		spec := newSpec(t)
		spec.Resources.CPUs = 2
		return spec
	}
	m, err := r.Start(t.Context(), two())
	check(t, err)
	off := both(t, m) // what a boot makes of the host's time; the agent is told it by its host
	dir := t.TempDir()
	_, err = m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
	check(t, err)
	check(t, m.Resume(t.Context()))
	if now := both(t, m); (now - off).Abs() > 50*time.Millisecond {
		t.Errorf("the guest's clock was off by %v, and by %v after the pause", off, now)
	}
	check(t, m.Stop(t.Context()))

	time.Sleep(1200 * time.Millisecond) // what the copy's clock must catch up
	fork, err := r.Restore(t.Context(), two(), dir)
	check(t, err)
	if off := both(t, fork); off.Abs() > 50*time.Millisecond {
		t.Errorf("the copy's clock is off by %v", off)
	}
	check(t, fork.Stop(t.Context()))
}

// both has the guest work on two processors at a time and looks that each did. It
// returns how far the guest's clock is off, which must not depend on who asks.
func both(t *testing.T, m nacre.Machine) time.Duration {
	t.Helper()
	g := []*nacretest.Guest{nacretest.DialGuest(t, m), nacretest.DialGuest(t, m)}
	if n := g[0].Do("cpus").N; n != 2 {
		t.Fatalf("the guest sees %d processors", n)
	}
	// A quarter of a second each, and no less than a quarter of the other, for they share one
	// emulated processor, which may have other things to do: then it takes more than one;
	// 100 ticks a second.
	enough := func(d [2]int) bool { return min(d[0], d[1]) >= 25 && 4*min(d[0], d[1]) >= max(d[0], d[1]) }
	did := [2]int{}
	for range 3 * kvmhost.Slowness() {
		before := busy(t, g[0])
		for _, g := range g {
			g.Send("spin", 1000)
		}
		for _, g := range g {
			if _, err := g.Answer(); err != nil {
				t.Fatal(err)
			}
		}
		after := busy(t, g[0])
		for i := range did {
			did[i] += after[i] - before[i]
		}
		if enough(did) {
			break
		}
	}
	if !enough(did) {
		t.Errorf("one processor was busy for %d ms and the other for %d", 10*did[0], 10*did[1])
	}
	least, most := time.Hour, -time.Hour
	for range 4 {
		for _, g := range g {
			from := time.Now()
			at := time.Unix(0, g.Do("time").N)
			took := time.Since(from)
			off := at.Sub(from.Add(took / 2))
			// Between these it is; the way takes its time.
			least, most = min(least, off+took/2), max(most, off-took/2)
		}
	}
	if most-least > 10*time.Millisecond {
		t.Errorf("the guest's clock is off by %v at least and by %v at most", most, least)
	}
	return (least + most) / 2
}

// busy is how long each of the guest's two processors has run programs, in ticks.
func busy(t *testing.T, g *nacretest.Guest) (ticks [2]int) {
	t.Helper()
	stat := g.Do("read", "/proc/stat").Out
	for i := range ticks {
		var user, nice, system int
		_, line, _ := strings.Cut(stat, fmt.Sprintf("\ncpu%d ", i))
		if _, err := fmt.Sscan(line, &user, &nice, &system); err != nil {
			t.Fatalf("%v: %.200s", err, stat)
		}
		ticks[i] = user + nice + system
	}
	return ticks
}
