package network_test

import (
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/fakenet"
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

// BenchmarkThroughput sends through rules and address translation and gets it
// back, with the kernel's own stack as the guest.
func BenchmarkThroughput(b *testing.B) {
	n := start(b, nil)
	g := acquire(b, n, nacre.EgressPolicy{Deny: prefixes("8.8.8.8/32")})
	c, err := g.dial("tcp4", fakenet.CloudFlare, fakenet.EchoPort)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	const piece = 1 << 20
	b.SetBytes(piece)
	go func() {
		buf := make([]byte, piece)
		for range b.N + 1 {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
	b.ResetTimer()
	for range b.N {
		if _, err := io.CopyN(io.Discard, c, piece); err != nil {
			b.Fatal(err)
		}
	}
}
