package firecracker

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/workingset"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// figuresEnv is how many samples the benchmarks' command wants, of which it reads the
// lines that begin with figureMark.
const (
	figuresEnv = "NACRE_FIGURES"
	figureMark = "FIGURE "
)

type figure struct {
	How, Name, Unit string
	Samples         []float64
}

// figures are collected in the order in which they are first named.
type figures struct {
	n   int
	all []*figure
}

func (f *figures) add(name, unit string, v float64) {
	for _, g := range f.all {
		if g.Name == name {
			g.Samples = append(g.Samples, v)
			return
		}
	}
	how := "native KVM"
	if kvmhost.Emulated() {
		how = "emulated SVM"
	}
	f.all = append(f.all, &figure{how, name, unit, []float64{v}})
}

func (f *figures) since(name string, begin time.Time) {
	f.add(name, "ms", float64(time.Since(begin).Microseconds())/1000)
}

// TestFigures measures what a machine costs, for `make bench`. Each line says how it was
// run: what is measured on an emulated host is no figure of a real one.
func TestFigures(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv(figuresEnv))
	if n <= 0 {
		t.Skip("measured for `make bench` alone, which sets " + figuresEnv)
	}
	f := &figures{n: n}
	// Each is a test of its own, for its files are in memory on an emulated host.
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{{"Restores", f.restores}, {"Forks", f.forks}, {"Pauses", f.pauses}, {"FreedMemory", f.freedMemory}} {
		t.Run(part.name, part.run)
	}
	for _, g := range f.all {
		b, err := json.Marshal(g)
		check(t, err)
		fmt.Printf("\n%s%s\n", figureMark, b)
	}
}

// template returns a snapshot of a guest that holds so many MiB.
func template(t *testing.T, r *Runtime, holds int) string {
	t.Helper()
	m, err := r.Start(t.Context(), newSpec(t))
	check(t, err)
	nacretest.DialGuest(t, m).Do("hold", holds)
	dir := t.TempDir()
	_, err = m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{})
	check(t, err)
	check(t, m.Stop(t.Context()))
	return dir
}

// restores: a boot, and restores of one snapshot in turns with the working set of the
// first one and without.
func (f *figures) restores(t *testing.T) {
	r := newRuntime(t)
	for range f.n {
		begin := time.Now()
		m, err := r.Start(t.Context(), newSpec(t))
		check(t, err)
		nacretest.DialGuest(t, m).Do("ping")
		f.since("boot to the guest's first answer", begin)
		check(t, m.Stop(t.Context()))
	}
	dir := template(t, r, 32)
	restore := func(r *Runtime, name string) {
		l := &launch{r: r, spec: newSpec(t)}
		var err error
		l.snap, err = r.openSnapshot(dir)
		check(t, err)
		begin := time.Now()
		m, err := r.launch(t.Context(), l)
		check(t, err)
		nacretest.DialGuest(t, m).Do("ping")
		if name != "" {
			f.since("restore to the guest's first answer, "+name, begin)
			f.add("of it from the VMM's start to the guest going on, "+name, "ms", float64(l.resumed.Microseconds())/1000)
			f.add("its page faults, "+name, "", float64(l.faults.Minor))
			f.add("its page faults that waited for the disk, "+name, "", float64(l.faults.Major))
			f.add("read ahead for it, "+name, "MiB", float64(l.prefetched)/(1<<20))
		}
		check(t, m.Stop(t.Context()))
	}
	restore(r, "") // which finds out the set
	without := newRuntime(t)
	for range f.n {
		without.sets = workingset.Memory{}
		restore(without, "without the working set")
		restore(r, "with the working set")
	}
}

// forks: one and ten at once of a guest that runs, and what ten idle ones cost each.
func (f *figures) forks(t *testing.T) {
	r := newRuntime(t)
	m, err := r.Start(t.Context(), newSpec(t))
	check(t, err)
	nacretest.DialGuest(t, m).Do("hold", 32)
	for _, count := range []int{1, 10} {
		for range f.n {
			dir := t.TempDir()
			begin := time.Now()
			_, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
			check(t, err)
			clones := make([]nacre.Machine, count)
			var all sync.WaitGroup
			for i := range clones {
				spec := newSpec(t)
				all.Go(func() {
					var err error
					if clones[i], err = r.Restore(t.Context(), spec, dir); err != nil {
						t.Error(err)
						return
					}
					nacretest.DialGuest(t, clones[i]).Do("ping")
				})
			}
			all.Wait()
			if t.Failed() {
				t.FailNow()
			}
			f.since(fmt.Sprintf("fork of %d, to the last one's first answer", count), begin)
			for _, c := range clones {
				if count > 1 {
					f.memory(t, c.(*machine))
				}
			}
			for _, c := range clones {
				check(t, c.Stop(t.Context()))
			}
			check(t, os.RemoveAll(dir))
		}
	}
	check(t, m.Stop(t.Context()))
}

// memory is what a clone costs while the others of its snapshot run.
func (f *figures) memory(t *testing.T, m *machine) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", m.Proc.PID))
	check(t, err)
	for field, name := range map[string]string{"Rss:": "resident memory", "Pss:": "proportional set size", "Private_Dirty:": "memory of its own"} {
		_, line, _ := strings.Cut(string(b), "\n"+field)
		var kib float64
		if _, err := fmt.Sscan(line, &kib); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		f.add("idle clone, one of ten: "+name, "MiB", kib/1024)
	}
}

// pauses: how long a snapshot of a guest takes that has written all that it holds since
// the last one, and how long it stands still, for each GiB that the VMM writes.
func (f *figures) pauses(t *testing.T) {
	r := newRuntime(t)
	const holds = 64
	for range f.n {
		m, err := r.Start(t.Context(), newSpec(t))
		check(t, err)
		nacretest.DialGuest(t, m).Do("hold", holds)
		pid := m.(*machine).Proc.PID
		dir := t.TempDir()
		before, begin := written(t, pid), time.Now()
		info, err := m.Snapshot(t.Context(), dir, nacre.SnapshotOptions{KeepRunning: true})
		took := time.Since(begin)
		check(t, err)
		gib := float64(written(t, pid)-before) / (1 << 30)
		f.add("pause, for each GiB written", "ms", float64(took.Milliseconds())/gib)
		f.add("of it the guest stands still", "ms", float64(info.Stopped.Milliseconds())/gib)
		check(t, m.Stop(t.Context()))
		check(t, os.RemoveAll(dir))
	}
}

// freedMemory: a snapshot of a guest that has touched and freed 512 MiB.
func (f *figures) freedMemory(t *testing.T) {
	for name, no := range map[string]bool{"with the balloon": false, "without": true} {
		c := freed(t, no, 512)
		f.add("snapshot after 512 MiB were touched and freed, "+name, "MiB", float64(c.occupied)/(1<<20))
		f.add("that snapshot's time, "+name, "ms", float64(c.took.Milliseconds()))
		f.add("the guest stands still in it, "+name, "ms", float64(c.stopped.Milliseconds()))
	}
}
