package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/nacretest"
)

// waiting are the sandboxes in the driver's pool, when it is full and nobody fills it.
func waiting(t testing.TB, r *Runtime) []*sandbox {
	t.Helper()
	r.fillAhead()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		r.ahead.mu.Lock()
		ready := append([]*sandbox{}, r.ahead.ready...)
		idle := !r.ahead.filler || r.ahead.want > r.cfg.Ahead // a larger pool is looked after for longer
		r.ahead.mu.Unlock()
		if len(ready) >= r.cfg.Ahead && idle {
			return ready
		}
		if time.Now().After(end) {
			t.Fatalf("%d sandboxes wait, want %d", len(ready), r.cfg.Ahead)
		}
	}
}

// TestAheadHasRoomForFiles: a sandbox that waits has the table of files that its boot
// needs, and does not wait for the host's processors to have a larger one.
func TestAheadHasRoomForFiles(t *testing.T) {
	r := newRuntime(t)
	for _, s := range waiting(t, r) {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(s.proc.PID) + "/status")
		check(t, err)
		_, rest, _ := strings.Cut(string(b), "\nFDSize:")
		size, _, _ := strings.Cut(rest, "\n")
		if n, err := strconv.Atoi(strings.TrimSpace(size)); err != nil || n < 256 {
			t.Errorf("room for %q files (%v), want 256", size, err)
		}
	}
}

// TestAheadBecomesMachine: a machine from a sandbox that waited has its name, its
// limits and its confinement, and the pool is filled again.
func TestAheadBecomesMachine(t *testing.T) {
	r := newRuntime(t)
	first := waiting(t, r)[0]
	m := start(t, r, newSpec(t))
	nacretest.DialGuest(t, m).Do("ping")
	if m.Proc.PID != first.proc.PID {
		t.Error("the machine is another process")
	}
	if b, err := os.ReadFile("/proc/" + strconv.Itoa(m.Proc.PID) + "/cmdline"); err != nil || !strings.HasPrefix(string(b), argv0+"\x00"+string(m.ID())+"\x00") {
		t.Errorf("the process is called %q, %v", b, err)
	}
	limits := []struct{ controller, file, want string }{
		{"pids", "pids.max", "256"}, {"cpu", "cpu.cfs_quota_us", "100000"}, {"memory", "memory.limit_in_bytes", "201326592"},
	}
	if r.cgroup.V2() {
		limits[1].file, limits[1].want = "cpu.max", "100000 100000"
		limits[2].file = "memory.max"
	}
	for _, c := range limits {
		b, err := os.ReadFile(m.Group.Dir(c.controller) + "/" + c.file)
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

// TestAheadHasNoCapability: a sandbox that waits has done with what needs one, in each
// of its threads.
func TestAheadHasNoCapability(t *testing.T) {
	for _, s := range waiting(t, newRuntime(t)) {
		eventually(t, "a sandbox that waits has capabilities", func() bool { return powerless(t, s.proc.PID) })
	}
}

// powerless tells whether no thread of the process has a capability, nor may get one.
func powerless(t *testing.T, pid int) bool {
	t.Helper()
	threads, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/status")
	check(t, err)
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if os.IsNotExist(err) || errors.Is(err, unix.ESRCH) { // it ended meanwhile
			continue
		}
		check(t, err)
		for _, set := range []string{"CapPrm", "CapEff", "CapInh", "CapAmb"} {
			if !strings.Contains(string(b), set+":\t0000000000000000\n") {
				return false
			}
		}
	}
	return len(threads) > 0
}

// TestAheadGrows: a pool that restores found empty is larger afterwards, and as
// configured again when nothing starts.
func TestAheadGrows(t *testing.T) {
	r := newRuntime(t)
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
	want := max(r.cfg.Ahead, min(r.cfg.Ahead+3, int(r.memory>>30))) // small hosts have less
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
		for _, g := range groupsOf(t, "") {
			n++
			pids = append(pids, g.PIDs()...)
		}
		return n, pids
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

// TestKilledWhileAStartIsUnderWay: whatever a start has done when its daemon is killed,
// the next one clears all of it, sandboxes that waited included.
func TestKilledWhileAStartIsUnderWay(t *testing.T) {
	for _, step := range []string{"0-taken", "1-process", "3-orders", "4-boot", "5-start"} {
		t.Run(step, func(t *testing.T) {
			spec := newSpec(t)
			t.Setenv(dieEnv, step)
			do, kill := newDaemon(t, host.program)
			defer kill()
			if h, err := do(order{MachineSpec: spec}); err == nil {
				t.Fatalf("the daemon lives, and made %s", h.Machine)
			}
			kill()
			r := newRuntime(t)
			check(t, r.Sweep(t.Context(), func(nacre.MachineID) bool { return false }))
			if left := leftovers(spec); len(left) > 0 {
				t.Error("left behind:", left)
			}
			for _, g := range groupsOf(t, "") {
				if !strings.HasPrefix(g.Name(), r.own) {
					t.Errorf("%s is left", g.Name())
				}
			}
		})
	}
}

// TestHandleOfAnOlderServer: a machine whose group has its id as its name, and whose
// handle does not say so, is taken back, counted and ended; one that nobody knows is swept.
func TestHandleOfAnOlderServer(t *testing.T) {
	type old struct {
		spec  nacre.MachineSpec
		h     nacre.Handle
		group *cgroup.Group
	}
	r := newRuntime(t)
	older := func() (o old) {
		o.spec = newSpec(t)
		h, kill := inDaemon(t, o.spec)
		kill()
		var st state
		check(t, json.Unmarshal(h.State, &st))
		o.group = r.cgroup.Group(string(h.Machine))
		check(t, o.group.Create())
		made := r.cgroup.Group(st.Group)
		for pids := made.PIDs(); len(pids) > 0; pids = made.PIDs() { // gVisor's own children too
			for _, d := range r.cgroup.Dirs(o.group.Name()) {
				err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte(strconv.Itoa(pids[0])), 0o600)
				if !errors.Is(err, unix.ESRCH) { // it ended meanwhile
					check(t, err)
				}
			}
		}
		check(t, made.Destroy(t.Context()))
		st.Group = ""
		b, err := json.Marshal(st)
		check(t, err)
		o.h = nacre.Handle{Machine: h.Machine, Runtime: h.Runtime, State: b}
		return o
	}
	kept, lost := older(), older()
	for range 2 { // before it is taken back, and afterwards
		check(t, r.Sweep(t.Context(), func(id nacre.MachineID) bool { return id == kept.h.Machine }))
		m, err := r.Recover(t.Context(), kept.h)
		check(t, err)
		nacretest.DialGuest(t, m).Do("ping")
		if u, err := m.Usage(t.Context()); err != nil || u.PIDs == 0 || u.MemoryBytes == 0 {
			t.Errorf("it uses %+v, %v", u, err)
		}
	}
	if lost.group.Exists() {
		t.Error("a machine that nobody knows is left")
	}
	m, err := r.Recover(t.Context(), kept.h)
	check(t, err)
	check(t, m.Stop(t.Context()))
	if kept.group.Exists() {
		t.Error("its group outlived the machine")
	}
}

// TestSweepOfGroups: what is left of sandboxes that never became machines goes, by the
// names of older servers too, and what nobody here made stays.
func TestSweepOfGroups(t *testing.T) {
	r := newRuntime(t)
	for name, stays := range map[string]bool{
		"ahead-4711-3":           false,
		groupPrefix + "other-7":  false,
		r.own + "made-this-very": true,
		"another":                true,
	} {
		g := r.cgroup.Group(name)
		check(t, g.Create())
		t.Cleanup(func() { check(t, g.Destroy(context.Background())) })
		check(t, r.Sweep(t.Context(), func(nacre.MachineID) bool { return true }))
		if g.Exists() != stays {
			t.Errorf("%s: there %t, want %t", name, g.Exists(), stays)
		}
	}
	// A machine's that ended, and could not be removed then.
	g, id := r.cgroup.Group(r.own+"ended"), nacre.NewMachineID()
	check(t, g.Create())
	check(t, g.SetLabel(string(id)))
	check(t, r.Sweep(t.Context(), func(nacre.MachineID) bool { return false }))
	if g.Exists() {
		t.Error("a machine's group is left")
	}
}
