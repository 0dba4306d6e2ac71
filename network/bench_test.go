package network_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/network"
)

// BenchmarkSlots reports what one slot costs, step by step. "ready" is an
// Acquire from the pool, "cold" one that makes its slot.
func BenchmarkSlots(b *testing.B) {
	n := start(b, func(c *network.Config) { c.Ready = -1 })
	allow := nacre.EgressPolicy{DenyAll: true, Allow: []netip.Prefix{netip.MustParsePrefix("1.1.1.1/32")}}
	var cold, list, open, release time.Duration
	for b.Loop() {
		id := nacre.NewMachineID()
		for _, step := range []struct {
			sum *time.Duration
			fn  func() error
		}{
			{&cold, func() error { _, err := n.Acquire(b.Context(), id, nacre.EgressPolicy{}); return err }},
			{&list, func() error { return n.SetEgress(b.Context(), id, allow) }},
			{&open, func() error { return n.SetEgress(b.Context(), id, nacre.EgressPolicy{}) }},
			{&release, func() error { return n.Release(b.Context(), id) }},
		} {
			began := time.Now()
			if err := step.fn(); err != nil {
				b.Fatal(err)
			}
			*step.sum += time.Since(began)
		}
	}
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(b.N) }
	b.ReportMetric(ms(cold), "cold-ms")
	b.ReportMetric(ms(list), "to-list-ms")
	b.ReportMetric(ms(open), "to-open-ms")
	b.ReportMetric(ms(release), "release-ms")
}

// BenchmarkAcquireReady takes slots from a pool that was full before.
func BenchmarkAcquireReady(b *testing.B) {
	const ready = 32
	n := start(b, func(c *network.Config) { c.Ready = ready })
	var sum time.Duration
	count := 0
	for b.Loop() {
		waitReady(b, n, ready)
		ids := make([]nacre.MachineID, ready/2)
		for i := range ids {
			ids[i] = nacre.NewMachineID()
			began := time.Now()
			if _, err := n.Acquire(b.Context(), ids[i], nacre.EgressPolicy{}); err != nil {
				b.Fatal(err)
			}
			sum += time.Since(began)
			count++
		}
		for _, id := range ids {
			if err := n.Release(b.Context(), id); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(sum.Seconds()*1000/float64(count), "ready-ms")
}

func waitReady(t testing.TB, n *network.Network, want int) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); n.Ready() < want; {
		if time.Now().After(end) {
			t.Fatalf("%d slots are ready, want %d", n.Ready(), want)
		}
		time.Sleep(time.Millisecond)
	}
}
