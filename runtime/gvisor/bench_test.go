package gvisor

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

// BenchmarkColdStart reports the median of each step from Start to the guest's
// first answer, of Stop, and the processor time of a start, in milliseconds, with a
// sandbox that was started ahead and without. The slot and the root are made before.
// NACRE_BENCH_RUNSC names a runsc to compare with: "runsc do" of a program that does
// nothing, without a network.
func BenchmarkColdStart(b *testing.B) {
	for name, ahead := range map[string]int{"ahead": 2, "none": -1} {
		b.Run(name, func(b *testing.B) { benchColdStart(b, ahead) })
	}
}

func benchColdStart(b *testing.B, ahead int) {
	r, err := New(Config{CgroupParent: host.parent, Program: host.program, Log: nacretest.Log(b), Ahead: ahead})
	check(b, err)
	b.Cleanup(func() { check(b, r.Close()) })
	ctx := context.Background()
	steps := map[string][]float64{}
	for range b.N {
		awaitAhead(r)
		spec := newSpec(b)
		spec.Resources.CPUs = 2 // as by default
		begin := time.Now()
		last := begin
		lap := func(step string) {
			now := time.Now()
			steps[step] = append(steps[step], float64(now.Sub(last).Microseconds())/1000)
			last = now
		}
		r.trace = lap
		m, err := r.Start(ctx, spec)
		check(b, err)
		nacretest.DialGuest(b, m).Do("ping")
		lap("6-guest")
		last = begin
		lap("total")
		u, err := m.Usage(ctx)
		check(b, err)
		steps["cpu"] = append(steps["cpu"], float64(u.CPUTime.Microseconds())/1000)
		last = time.Now()
		check(b, m.Stop(ctx))
		lap("stop")
		if runsc := os.Getenv("NACRE_BENCH_RUNSC"); runsc != "" {
			awaitAhead(r)
			last = time.Now()
			check(b, exec.Command(runsc, "--network=none", "do", "/bin/true").Run())
			lap("runsc-do")
		}
	}
	b.ReportMetric(0, "ns/op")
	for step, v := range steps {
		slices.Sort(v)
		b.ReportMetric(v[len(v)/2], step+"-ms")
	}
}

// awaitAhead waits until the driver's pool is as it is between starts.
func awaitAhead(r *Runtime) {
	r.fillAhead()
	for {
		r.ahead.mu.Lock()
		full := len(r.ahead.ready) >= r.cfg.Ahead
		r.ahead.mu.Unlock()
		if full {
			time.Sleep(100 * time.Millisecond) // their preparation
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// BenchmarkIdle reports what an idle machine costs the host, of eight. The agent
// is the test's small one, or the program that NACRE_BENCH_AGENT names.
func BenchmarkIdle(b *testing.B) {
	const n = 8
	r := newRuntime(b)
	ctx := context.Background()
	for range b.N {
		var machines []nacre.Machine
		var pids []int
		for range n {
			spec := newSpec(b)
			if p := os.Getenv("NACRE_BENCH_AGENT"); p != "" {
				spec.AgentPath = p
			}
			m, err := r.Start(ctx, spec)
			check(b, err)
			nacretest.DialGuest(b, m)
			machines = append(machines, m)
		}
		time.Sleep(2 * time.Second) // idle
		var used, pss, tasks int64
		for _, m := range machines {
			u, err := m.Usage(ctx)
			check(b, err)
			used += u.MemoryBytes
			tasks += int64(u.PIDs)
			pids = m.(*machine).Group.PIDs()
			for _, pid := range pids {
				pss += pssKiB(pid)
			}
		}
		b.ReportMetric(float64(used)/n/(1<<20), "cgroup-MiB")
		b.ReportMetric(float64(pss)/n/1024, "PSS-MiB")
		b.ReportMetric(float64(tasks)/n, "tasks")
		for _, m := range machines {
			check(b, m.Stop(ctx))
		}
	}
	b.ReportMetric(0, "ns/op")
}

func pssKiB(pid int) int64 {
	f, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	for l := range strings.Lines(string(f)) {
		if v, ok := strings.CutPrefix(l, "Pss:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n
		}
	}
	return 0
}
