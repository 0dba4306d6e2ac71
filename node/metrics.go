package node

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

const (
	sampleEvery  = 5 * time.Second
	sampleKept   = 720 // an hour
	endedKept    = 512 // sandboxes that ended and whose samples are kept
	firstSample  = time.Second
	statsTimeout = 2 * time.Second
)

// metricStore keeps the last hour of samples of each sandbox in memory, and of
// the last sandboxes that ended. A restart of the server begins anew.
type metricStore struct {
	mu    sync.Mutex
	rings map[nacre.SandboxID]*ring
	ended []nacre.SandboxID // oldest first
}

// ring is a bounded list of samples; point is a sample without what they share.
type ring struct {
	points []point
	next   int // where the oldest stands once it is full
	cpus   int
}

type point struct {
	at                       int64 // Unix milliseconds
	cpu                      float32
	mem, memTotal, cache     int64
	diskUsed, diskTotalBytes int64
}

func (s *metricStore) add(id nacre.SandboxID, cpus int, p point) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rings == nil {
		s.rings = map[nacre.SandboxID]*ring{}
	}
	r := s.rings[id]
	if r == nil {
		r = &ring{cpus: cpus}
		s.rings[id] = r
	}
	if len(r.points) < sampleKept {
		r.points = append(r.points, p)
		return
	}
	r.points[r.next] = p
	r.next = (r.next + 1) % sampleKept
}

// begin takes back an end: the sandbox has a machine again.
func (s *metricStore) begin(id nacre.SandboxID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = slices.DeleteFunc(s.ended, func(e nacre.SandboxID) bool { return e == id })
}

// end makes the sandbox's samples the first to go when too many are kept.
func (s *metricStore) end(id nacre.SandboxID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rings[id] == nil {
		return
	}
	s.ended = append(s.ended, id)
	for len(s.ended) > endedKept {
		delete(s.rings, s.ended[0])
		s.ended = s.ended[1:]
	}
}

// Metrics returns samples between from and to, oldest first.
func (n *Node) Metrics(_ context.Context, id nacre.SandboxID, from, to time.Time) ([]nacre.Metric, error) {
	s := &n.metrics
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rings[id]
	if r == nil {
		return nil, nil
	}
	out := make([]nacre.Metric, 0, len(r.points))
	for i := range r.points {
		p := r.points[(r.next+i)%len(r.points)]
		at := time.UnixMilli(p.at).UTC()
		if (!from.IsZero() && at.Before(from)) || (!to.IsZero() && at.After(to)) {
			continue
		}
		out = append(out, nacre.Metric{
			Time: at, CPUCount: r.cpus, CPUUsedPct: float64(p.cpu),
			MemUsed: p.mem, MemTotal: p.memTotal, MemCache: p.cache,
			DiskUsed: p.diskUsed, DiskTotal: p.diskTotalBytes,
		})
	}
	slices.SortStableFunc(out, func(a, b nacre.Metric) int { return a.Time.Compare(b.Time) }) // a clock step
	return out, nil
}

// sample measures the sandbox until its machine ends. Each has its own goroutine
// and phase: a guest that does not answer delays nobody else's samples.
func (n *Node) sample(u *unit) {
	if !u.alone(metricsAfter) {
		return
	}
	timer := time.NewTimer(firstSample + rand.N(firstSample))
	defer timer.Stop()
	last, _ := u.machine.Usage(u.life) // the first sample tells of the time from here on
	lastAt := time.Now()
	var prev point
	for {
		select {
		case <-u.life.Done():
			return
		case <-u.ended:
			return
		case <-timer.C:
		}
		timer.Reset(sampleEvery)
		usage, err := u.machine.Usage(u.life)
		if err != nil {
			continue
		}
		now := time.Now()
		p := point{at: n.cfg.Clock().UnixMilli(), mem: usage.MemoryBytes,
			memTotal:       int64(u.spec.Resources.MemoryMiB) << 20,
			diskTotalBytes: int64(u.spec.Resources.DiskMiB) << 20,
			diskUsed:       prev.diskUsed, cache: prev.cache}
		if since, used := now.Sub(lastAt), usage.CPUTime-last.CPUTime; since > 0 && used > 0 {
			p.cpu = float32(100 * used.Seconds() / since.Seconds())
		}
		u.guestStats(&p)
		last, lastAt, prev = usage, now, p
		n.metrics.add(u.spec.Sandbox, u.spec.Resources.CPUs, p)
	}
}

// guestStats adds what only the guest knows, as far as it can be true.
func (u *unit) guestStats(p *point) {
	ctx, cancel := context.WithTimeout(u.life, statsTimeout)
	defer cancel()
	st, err := u.agent.Stats(ctx)
	if err != nil {
		return
	}
	if st.DiskTotal > 0 {
		p.diskTotalBytes = st.DiskTotal
	}
	p.diskUsed = min(max(0, st.DiskUsed), p.diskTotalBytes)
	if st.MemTotal > 0 && st.MemUsed > 0 {
		p.mem = min(st.MemUsed, p.memTotal)
	}
	p.cache = min(max(0, st.MemCache), p.memTotal)
}
