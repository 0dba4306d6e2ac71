package gvisor

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

// BenchmarkSnapshot reports medians, in milliseconds, for guests that touched so
// many MiB: a snapshot that the guest goes on after and how long it stood still, a
// pause (a snapshot and the machine's end), a restore's return, the restored
// guest's first answer, and when it has read all of its memory again; and the size
// of the snapshot.
func BenchmarkSnapshot(b *testing.B) {
	for _, mib := range []int{0, 512, 2048} {
		b.Run(fmt.Sprintf("%dMiB", mib), func(b *testing.B) { benchSnapshot(b, mib) })
	}
}

func benchSnapshot(b *testing.B, mib int) {
	r := newRuntime(b)
	ctx := context.Background()
	newBig := func() nacre.MachineSpec {
		s := newSpec(b)
		s.Resources.MemoryMiB = mib + mib/4 + 256
		return s
	}
	times := map[string][]float64{}
	lap := func(name string, begin time.Time) {
		times[name] = append(times[name], float64(time.Since(begin).Microseconds())/1000)
	}
	var size nacre.SnapshotInfo
	for range b.N {
		m, err := r.Start(ctx, newBig())
		check(b, err)
		g := nacretest.DialGuest(b, m)
		for left := mib; left > 0; left -= 256 {
			g.Do("hold", min(left, 256))
		}
		dir, err := os.MkdirTemp(host.dir, "snap")
		check(b, err)
		begin := time.Now()
		info, err := m.Snapshot(ctx, dir, nacre.SnapshotOptions{KeepRunning: true})
		check(b, err)
		lap("snapshot", begin)
		times["stopped"] = append(times["stopped"], float64(info.Stopped.Microseconds())/1000)
		check(b, os.RemoveAll(dir))
		check(b, os.Mkdir(dir, 0o700))
		begin = time.Now()
		size, err = m.Snapshot(ctx, dir, nacre.SnapshotOptions{})
		check(b, err)
		check(b, m.Stop(ctx))
		lap("pause", begin)
		spec := newBig()
		awaitAhead(r)
		begin = time.Now()
		m, err = r.Restore(ctx, spec, dir)
		check(b, err)
		lap("restore", begin)
		g = nacretest.DialGuest(b, m)
		g.Do("ping")
		lap("answer", begin)
		if n := g.Do("held").N; n != int64(mib)*256 {
			b.Fatalf("%d pages, want %d", n, mib*256)
		}
		lap("all-read", begin)
		u, err := m.Usage(ctx)
		check(b, err)
		times["usage-MiB"] = append(times["usage-MiB"], float64(u.MemoryBytes>>20))
		check(b, m.Stop(ctx))
		check(b, os.RemoveAll(dir))
	}
	b.ReportMetric(0, "ns/op")
	for name, v := range times {
		slices.Sort(v)
		b.ReportMetric(v[len(v)/2], name+"-ms")
	}
	var disk int64
	for _, f := range size.Files {
		disk += f.Disk
	}
	b.ReportMetric(float64(disk)/(1<<20), "disk-MiB")
}

// BenchmarkFork reports medians, in milliseconds, with the real agent on the real
// base: from the snapshot's begin until one, and until ten, restored agents answer;
// and what an idle restored machine holds, two seconds later, beside a booted one.
func BenchmarkFork(b *testing.B) {
	newReal := realHost(b)
	r, err := New(Config{CgroupParent: host.parent, Program: host.program, Log: nacretest.Log(b), Boots: 10, Ahead: benchAhead()})
	check(b, err)
	b.Cleanup(func() { check(b, r.Close()) })
	ctx := context.Background()
	for _, n := range []int{1, 10} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			var took, used []float64
			m, err := r.Start(ctx, newReal(b))
			check(b, err)
			agentOf(b, m, "")
			for range b.N {
				var specs []nacre.MachineSpec
				for range n {
					specs = append(specs, newReal(b))
				}
				dir := b.TempDir()
				awaitAhead(r)
				begin := time.Now()
				_, err := m.Snapshot(ctx, dir, nacre.SnapshotOptions{KeepRunning: true})
				check(b, err)
				var all sync.WaitGroup
				forks := make([]nacre.Machine, n)
				for i := range forks {
					all.Go(func() {
						f, err := r.Restore(ctx, specs[i], dir)
						if err != nil {
							b.Errorf("Restore: %v", err)
							return
						}
						forks[i] = f
						agentOf(b, f, "")
					})
				}
				all.Wait()
				if b.Failed() {
					b.FailNow()
				}
				took = append(took, float64(time.Since(begin).Microseconds())/1000)
				time.Sleep(2 * time.Second) // idle
				for _, f := range forks {
					u, err := f.Usage(ctx)
					check(b, err)
					used = append(used, float64(u.MemoryBytes)/(1<<20))
					check(b, f.Stop(ctx))
				}
			}
			u, err := m.Usage(ctx)
			check(b, err)
			check(b, m.Stop(ctx))
			slices.Sort(took)
			slices.Sort(used)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(took[len(took)/2], "all-answer-ms")
			b.ReportMetric(used[len(used)/2], "restored-MiB")
			b.ReportMetric(float64(u.MemoryBytes)/(1<<20), "booted-MiB")
		})
	}
}

// benchAhead is the size of the driver's pool, from NACRE_BENCH_AHEAD.
func benchAhead() int {
	n, _ := strconv.Atoi(os.Getenv("NACRE_BENCH_AHEAD"))
	return n
}
