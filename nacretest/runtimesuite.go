package nacretest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// RuntimeHost is what a driver brings to TestRuntime.
type RuntimeHost struct {
	// New returns a driver over the host's state, as a daemon has after each of its
	// starts, and what ends it without touching its machines (it may be called twice).
	New func(t testing.TB) (r nacre.Runtime, end func())
	// Spec returns the spec of a new machine: 1 CPU, 128 MiB of memory, 64 MiB of
	// disk, 256 tasks; its guest is nacretest/testguest, which is in the root image as
	// /bin/tool too.
	Spec func(t testing.TB) nacre.MachineSpec
	// Daemon starts the machine in another process, which kill ends as kill -9 does.
	Daemon func(t testing.TB, s nacre.MachineSpec) (h nacre.Handle, kill func())
	// Leftovers names the processes, cgroups and mounts that the host still has of a
	// machine.
	Leftovers func(s nacre.MachineSpec) []string
}

// patience is how long to wait for what comes at once; emulated hosts are slow.
func patience() time.Duration {
	if kvmhost.Emulated() {
		return 5 * time.Minute
	}
	return 30 * time.Second
}

// TestRuntime is the contract of nacre.Runtime and nacre.Machine.
func TestRuntime(t *testing.T, host RuntimeHost) {
	cases := []runtimeCase{
		{"Names", testNames},
		{"Boot", testBoot},
		{"Dial", testDial},
		{"Stop", testStop},
		{"Kill", testKill},
		{"Crash", testCrash},
		{"StartTwice", testStartTwice},
		{"StartFails", testStartFails},
		{"StartCalledOff", testStartCalledOff},
		{"StartManyAtOnce", testStartMany},
		{"Usage", testUsage},
		{"RecoverAfterKill", testRecover},
		{"RecoverEnded", testRecoverEnded},
		{"RecoverNonsense", testRecoverNonsense},
		{"Sweep", testSweep},
		{"Fault13_ForkBomb", testForkBomb},
		{"Fault14_MemoryBomb", testMemoryBomb},
		{"Fault15_DiskBomb", testDiskBomb},
	}
	r, end := host.New(t)
	if r.Capabilities().Snapshots {
		cases = append(cases, snapshotCases()...)
	}
	end()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.test(t, host) })
	}
}

type runtimeCase struct {
	name string
	test func(*testing.T, RuntimeHost)
}

// boot starts a machine that is stopped, and has left nothing, when the test ends.
func (h RuntimeHost) boot(t *testing.T, r nacre.Runtime, s nacre.MachineSpec) nacre.Machine {
	t.Helper()
	m, err := r.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	h.stopLater(t, m, s)
	return m
}

func (h RuntimeHost) stopLater(t *testing.T, m nacre.Machine, s nacre.MachineSpec) {
	t.Cleanup(func() {
		if err := m.Stop(context.Background()); err != nil {
			t.Errorf("Stop: %v", err)
		}
		h.clean(t, s)
	})
}

func (h RuntimeHost) clean(t *testing.T, s nacre.MachineSpec) {
	t.Helper()
	if left := h.Leftovers(s); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

func (h RuntimeHost) runtime(t *testing.T) nacre.Runtime {
	r, end := h.New(t)
	t.Cleanup(end)
	return r
}

func wait(t *testing.T, m nacre.Machine) nacre.Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience())
	defer cancel()
	e, err := m.Wait(ctx)
	if err != nil {
		t.Fatalf("Wait: %v", err)
	}
	if e.Machine != m.ID() || e.Detail == "" || time.Since(e.At) > time.Hour {
		t.Errorf("Exit %+v of %s is not complete", e, m.ID())
	}
	return e
}

func wantCode(t *testing.T, what string, err error, code nacre.Code) {
	t.Helper()
	if !nacre.IsCode(err, code) {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
}

// testNames: a machine is only ever made of what was asked for.
func testNames(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	c := r.Capabilities()
	if c.Runtime == "" || c.Runtime != r.Name() || c.Kept || c.Snapshots && nacre.RuntimeOf(c.RestoreKey) != c.Runtime {
		t.Errorf("%q has %+v", r.Name(), c)
	}
	s := h.Spec(t)
	s.Runtime = "another"
	_, err := r.Start(t.Context(), s)
	wantCode(t, "Start of another runtime's machine", err, nacre.CodeUnsupported)
	_, err = r.Restore(t.Context(), s, t.TempDir())
	wantCode(t, "Restore of another runtime's machine", err, nacre.CodeUnsupported)
	h.nothing(t, s)
	s.Runtime = r.Name()
	DialGuest(t, h.boot(t, r, s)).Do("ping")
}

func testBoot(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	s := h.Spec(t)
	m := h.boot(t, r, s)
	g := DialGuest(t, m)
	if got := g.Do("hostname").Out; got != s.Hostname {
		t.Errorf("hostname %q, want %q", got, s.Hostname)
	}
	if got := g.Do("cpus").N; got != int64(s.Resources.CPUs) {
		t.Errorf("%d processors, want %d", got, s.Resources.CPUs)
	}
	var kib int
	_, err := fmt.Sscanf(g.Do("read", "/proc/meminfo").Out, "MemTotal: %d kB", &kib)
	if err != nil || kib>>10 < s.Resources.MemoryMiB*8/10 || kib>>10 > s.Resources.MemoryMiB {
		t.Errorf("MemTotal is %d MiB (%v), want about %d", kib>>10, err, s.Resources.MemoryMiB)
	}
	if got := g.Do("run", "/bin/tool", "uid").Out; got != "0 0\n" {
		t.Errorf("uid %q, want root", got)
	}
	if hd := m.Handle(); hd.Machine != s.ID || hd.Runtime != r.Name() || len(hd.State) > 2048 {
		t.Errorf("handle %+v", hd)
	}
}

func testDial(t *testing.T, h RuntimeHost) {
	m := h.boot(t, h.runtime(t), h.Spec(t))
	DialGuest(t, m)
	_, err := m.Dial(t.Context(), 4)
	wantCode(t, "Dial a port where nobody listens", err, nacre.CodeUnavailable)
	for _, port := range []int{0, -1, 65536} {
		_, err := m.Dial(t.Context(), port)
		wantCode(t, "Dial no port", err, nacre.CodeInvalid)
	}
}

// testKill: nothing of the guest answers once Kill has returned, and nothing of the
// machine is left once Stop has.
func testKill(t *testing.T, h RuntimeHost) {
	s := h.Spec(t)
	m := h.boot(t, h.runtime(t), s)
	g := DialGuest(t, m)
	for range 2 {
		if err := m.Kill(t.Context()); err != nil {
			t.Fatalf("Kill: %v", err)
		}
	}
	if _, err := g.Answer(); err == nil {
		t.Error("the guest answers after Kill")
	}
	if e := wait(t, m); e.Reason != nacre.EndKilled {
		t.Errorf("ended with %+v, want killed", e)
	}
	if err := m.Stop(t.Context()); err != nil {
		t.Errorf("Stop: %v", err)
	}
	h.clean(t, s)
	if err := m.Kill(t.Context()); err != nil {
		t.Errorf("Kill of a machine that has ended: %v", err)
	}
}

func testStop(t *testing.T, h RuntimeHost) {
	s := h.Spec(t)
	m := h.boot(t, h.runtime(t), s)
	g := DialGuest(t, m)
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := m.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait for a running machine: %v", err)
	}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if e := wait(t, m); e.Reason != nacre.EndKilled {
				t.Errorf("ended with %+v, want killed", e)
			}
		})
		all.Go(func() {
			if err := m.Stop(t.Context()); err != nil {
				t.Errorf("Stop: %v", err)
			}
			h.clean(t, s)
		})
	}
	all.Wait()
	if _, err := g.Answer(); err == nil {
		t.Error("the guest answers after Stop")
	}
	_, err := m.Dial(t.Context(), nacre.AgentPort)
	wantCode(t, "Dial after Stop", err, nacre.CodeNotFound)
	_, err = m.Usage(t.Context())
	wantCode(t, "Usage after Stop", err, nacre.CodeNotFound)
	if m.ID() != s.ID || m.Handle().Machine != s.ID {
		t.Error("ID and Handle changed with Stop")
	}
}

func testCrash(t *testing.T, h RuntimeHost) {
	s := h.Spec(t)
	m := h.boot(t, h.runtime(t), s)
	DialGuest(t, m).Send("exit", 3)
	if e := wait(t, m); e.Reason != nacre.EndCrash || !strings.Contains(e.Detail, "3") {
		t.Errorf("ended with %+v, want a crash with status 3", e)
	}
	h.clean(t, s)
}

func testStartTwice(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	s := h.Spec(t)
	m := h.boot(t, r, s)
	_, err := r.Start(t.Context(), s)
	wantCode(t, "Start of a machine that runs", err, nacre.CodeConflict)
	DialGuest(t, m).Do("ping")
}

func testStartFails(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	for name, spoil := range map[string]func(*nacre.MachineSpec){
		"no image":       func(s *nacre.MachineSpec) { s.Root.Image += ".missing" },
		"broken image":   func(s *nacre.MachineSpec) { s.Root.Image = s.AgentPath },
		"no agent":       func(s *nacre.MachineSpec) { s.AgentPath += ".missing" },
		"broken agent":   func(s *nacre.MachineSpec) { s.AgentPath = s.Root.Image },
		"no namespace":   func(s *nacre.MachineSpec) { s.Slot.Path += ".missing" },
		"no processors":  func(s *nacre.MachineSpec) { s.Resources.CPUs = 0 },
		"no memory":      func(s *nacre.MachineSpec) { s.Resources.MemoryMiB = 0 },
		"no machine id":  func(s *nacre.MachineSpec) { s.ID = "../x" },
		"no upper layer": func(s *nacre.MachineSpec) { s.Root.UpperDir += ".missing" },
	} {
		t.Run(name, func(t *testing.T) {
			s := h.Spec(t)
			spoil(&s)
			m, err := r.Start(t.Context(), s)
			if err == nil {
				_ = m.Stop(t.Context())
				t.Fatal("Start succeeded")
			}
			h.nothing(t, s)
		})
	}
}

// nothing demands that a failed start left nothing, files included.
func (h RuntimeHost) nothing(t *testing.T, s nacre.MachineSpec) {
	t.Helper()
	h.clean(t, s)
	for _, d := range []string{s.StateDir, s.Root.UpperDir} {
		if entries, _ := os.ReadDir(d); len(entries) > 0 {
			t.Errorf("%s is left", entries[0])
		}
	}
}

func testStartCalledOff(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	called := 0
	for _, after := range []time.Duration{0, 1, 3, 8, 15, 25, 35, 45, 60} {
		s := h.Spec(t)
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		m, err := r.Start(ctx, s)
		cancel()
		if err == nil {
			h.stopLater(t, m, s)
			DialGuest(t, m).Do("ping") // a late cancel does not hurt
			continue
		}
		called++
		h.nothing(t, s)
		DialGuest(t, h.boot(t, r, s)).Do("ping") // id, slot and directories may be used again
	}
	if called == 0 {
		t.Error("no start was called off")
	}
}

func testStartMany(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	var all sync.WaitGroup
	for range 8 {
		s := h.Spec(t)
		all.Go(func() {
			m, err := r.Start(t.Context(), s)
			if err != nil {
				t.Errorf("Start: %v", err)
				return
			}
			h.stopLater(t, m, s)
			DialGuest(t, m).Do("ping")
		})
	}
	all.Wait()
}

func testUsage(t *testing.T, h RuntimeHost) {
	m := h.boot(t, h.runtime(t), h.Spec(t))
	g := DialGuest(t, m)
	before, err := m.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if before.MemoryBytes < 1<<20 || before.MemoryBytes > 64<<20 || before.PIDs < 1 || before.PIDs > 256 {
		t.Errorf("an idle machine uses %+v", before)
	}
	usage := func() nacre.Usage {
		u, err := m.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	begin := time.Now()
	for usage().CPUTime-before.CPUTime < 100*time.Millisecond && time.Since(begin) < patience() { // a busy host gives it less
		g.Do("spin", 300)
	}
	g.Do("eat", 32)
	after := usage()
	if d := after.CPUTime - before.CPUTime; d < 100*time.Millisecond || d > 10*time.Second+time.Since(begin) {
		t.Errorf("%v of work count as %v", time.Since(begin), d)
	}
	if d := after.MemoryBytes - before.MemoryBytes; d < 16<<20 {
		t.Errorf("32 MiB count as %d", d)
	}
}
