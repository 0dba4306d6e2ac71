package control_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
	"github.com/nacrehq/nacre/node"
)

// BenchmarkCreate is the control plane alone: control, node and the store on a real
// disk, handles in memory as on /run, machines that cost nothing. "lone" is one caller, "many" 256 at once.
func BenchmarkCreate(b *testing.B) {
	for _, c := range []struct {
		name    string
		callers int
	}{{"lone", 1}, {"many", 256}} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b)
			w.dir = b.TempDir()
			w.limits = control.Limits{}
			w.tweak = func(cfg *node.Config) {
				cfg.HandleDir = tempDir(b)
				cfg.Admission = node.Admission{MaxSandboxes: 1 << 20, Overcommit: 1e6, MaxBoots: 1024, MaxQueue: 1 << 20}
			}
			w.start()
			work := make(chan struct{})
			var mu sync.Mutex
			var all []time.Duration
			var wg sync.WaitGroup
			b.ResetTimer()
			begin := time.Now()
			for range c.callers {
				wg.Go(func() {
					var mine []time.Duration
					for range work {
						at := time.Now()
						if _, err := w.svc.Create(context.Background(), team, nacre.CreateRequest{Metadata: map[string]string{"user": "u"}}); err != nil {
							b.Error(err)
						}
						mine = append(mine, time.Since(at))
					}
					mu.Lock()
					all = append(all, mine...)
					mu.Unlock()
				})
			}
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
			b.StopTimer()
			slices.Sort(all)
			b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "creates/s")
			b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}
