package gvisor

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

// waiting are the sandboxes in the driver's pool, when it is full.
func waiting(t testing.TB, r *Runtime) []*sandbox {
	t.Helper()
	r.fillAhead()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		r.ahead.mu.Lock()
		ready := append([]*sandbox{}, r.ahead.ready...)
		r.ahead.mu.Unlock()
		if len(ready) >= r.cfg.Ahead {
			return ready
		}
		if time.Now().After(end) {
			t.Fatalf("%d sandboxes wait, want %d", len(ready), r.cfg.Ahead)
		}
	}
}

// TestAheadBecomesMachine: a machine from a sandbox that waited has its name, its
// limits and its confinement, and the pool is filled again.
func TestAheadBecomesMachine(t *testing.T) {
	r := newRuntime(t)
	if r.cgroup.V2() {
		t.Skip("version 2 of cgroups has no names that change")
	}
	first := waiting(t, r)[0]
	m := start(t, r, newSpec(t))
	nacretest.DialGuest(t, m).Do("ping")
	if m.Proc.PID != first.proc.PID {
		t.Error("the machine is another process")
	}
	if b, err := os.ReadFile("/proc/" + strconv.Itoa(m.Proc.PID) + "/cmdline"); err != nil || !strings.HasPrefix(string(b), argv0+"\x00"+string(m.ID())+"\x00") {
		t.Errorf("the process is called %q, %v", b, err)
	}
	for _, c := range []struct{ controller, file, want string }{
		{"pids", "pids.max", "256"}, {"cpu", "cpu.cfs_quota_us", "100000"}, {"memory", "memory.limit_in_bytes", "201326592"},
	} {
		b, err := os.ReadFile(r.cgroup.Group(string(m.ID())).Dir(c.controller) + "/" + c.file)
		if got := strings.TrimSpace(string(b)); err != nil || got != c.want {
			t.Errorf("%s is %s, want %s (%v)", c.file, got, c.want, err)
		}
	}
	for _, s := range waiting(t, r) {
		if s.proc.PID == first.proc.PID {
			t.Error("a machine's process still waits")
		}
	}
	spec := newSpec(t)
	spec.ID = m.ID()
	if _, err := r.Start(t.Context(), spec); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("a second machine of that name: %v", err)
	}
	nacretest.DialGuest(t, m).Do("ping")
}

// TestAheadGrows: a pool that restores found empty is larger afterwards, and as
// configured again when nothing starts.
func TestAheadGrows(t *testing.T) {
	r := newRuntime(t)
	if r.cgroup.V2() {
		t.Skip("version 2 of cgroups has no sandboxes that wait")
	}
	waiting(t, r)
	for range r.cfg.Ahead + 3 {
		check(t, start(t, r, newSpec(t)).Stop(context.Background()))
	}
	r.ahead.mu.Lock()
	if r.ahead.want != r.cfg.Ahead {
		t.Errorf("after starts %d should wait", r.ahead.want)
	}
	r.ahead.mu.Unlock()
	waiting(t, r)
	for range r.cfg.Ahead + 3 {
		if s := r.takeAhead(true); s != nil {
			r.endAhead([]*sandbox{s})
		}
	}
	want := r.cfg.Ahead + 3
	size := func(n int) func() bool {
		return func() bool {
			r.ahead.mu.Lock()
			defer r.ahead.mu.Unlock()
			return len(r.ahead.ready) == n
		}
	}
	r.fillAhead()
	eventually(t, "the pool does not grow", size(want))
	r.ahead.mu.Lock()
	r.ahead.last = time.Now().Add(-aheadIdle)
	r.ahead.mu.Unlock()
	r.ahead.kick <- struct{}{}
	eventually(t, "the pool does not shrink", size(r.cfg.Ahead))
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestAheadDies: what kills a sandbox that waits does not fail a start.
func TestAheadDies(t *testing.T) {
	r := newRuntime(t)
	if r.cgroup.V2() {
		t.Skip("version 2 of cgroups has no sandboxes that wait")
	}
	for _, s := range waiting(t, r) {
		s.proc.Kill()
		for s.alive() {
			time.Sleep(time.Millisecond) // until the kernel has ended it
		}
	}
	for range 2 {
		nacretest.DialGuest(t, start(t, r, newSpec(t))).Do("ping")
	}
}

// TestAheadEndsWithDaemon: a daemon that is killed leaves no process behind that
// waits for it, and the next one clears the groups.
func TestAheadEndsWithDaemon(t *testing.T) {
	spec := newSpec(t)
	h, kill := inDaemon(t, spec)
	r := newRuntime(t)
	groups := func() (n int, pids []int) {
		names, err := r.cgroup.List()
		check(t, err)
		for _, name := range names {
			if strings.HasPrefix(name, aheadPrefix) {
				n++
				pids = append(pids, r.cgroup.Group(name).PIDs()...)
			}
		}
		return n, pids
	}
	if r.cgroup.V2() {
		t.Skip("version 2 of cgroups has no sandboxes that wait")
	}
	eventually(t, "the daemon made no sandbox ahead", func() bool { _, pids := groups(); return len(pids) > 0 })
	kill()
	eventually(t, "sandboxes wait for a daemon that is gone", func() bool { _, pids := groups(); return len(pids) == 0 })
	m, err := r.Recover(t.Context(), h)
	check(t, err)
	stopLater(t, m, spec)
	check(t, r.Sweep(context.Background(), func(nacre.MachineID) bool { return true }))
	if n, _ := groups(); n > 0 {
		t.Errorf("%d groups are left", n)
	}
	nacretest.DialGuest(t, m).Do("ping")
}
