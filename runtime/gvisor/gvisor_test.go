package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/machines"
	"github.com/nacrehq/nacre/internal/pidfd"
	"github.com/nacrehq/nacre/nacretest"
)

func TestContract(t *testing.T) {
	nacretest.TestRuntime(t, nacretest.RuntimeHost{
		New: func(t testing.TB) (nacre.Runtime, func()) {
			r := newRuntime(t)
			return r, func() { _ = r.Close() }
		},
		Spec:      newSpec,
		Daemon:    inDaemon,
		Leftovers: leftovers,
	})
}

// start boots a machine that ends with the test.
func start(t testing.TB, r *Runtime, spec nacre.MachineSpec) *machine {
	t.Helper()
	m, err := r.Start(context.Background(), spec)
	check(t, err)
	stopLater(t, m, spec)
	return m.(*machine)
}

func stopLater(t testing.TB, m nacre.Machine, spec nacre.MachineSpec) {
	t.Cleanup(func() {
		if said := lastWords(spec.StateDir); said != "" && t.Failed() {
			t.Logf("the sandbox gave up: %s", said)
		}
		check(t, m.Stop(context.Background()))
		if left := leftovers(spec); len(left) > 0 {
			t.Error("left behind:", left)
		}
	})
}

// TestConfined: what a guest that breaks out of gVisor's kernel finds itself in.
func TestConfined(t *testing.T) {
	m := start(t, newRuntime(t), newSpec(t))
	nacretest.DialGuest(t, m)
	proc := "/proc/" + strconv.Itoa(m.Proc.PID)
	status, err := os.ReadFile(proc + "/status")
	check(t, err)
	for _, want := range []string{
		"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534",
		"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000",
		"NoNewPrivs:\t1", "Seccomp:\t2",
	} {
		if !strings.Contains(string(status), want+"\n") {
			t.Errorf("the sandbox has no %q:\n%s", want, status)
		}
	}
	if !powerless(t, m.Proc.PID) {
		t.Error("a thread of the sandbox has capabilities")
	}
	for _, ns := range []string{"user", "mnt", "pid", "ipc", "uts", "net"} {
		a, _ := os.Readlink(proc + "/ns/" + ns)
		b, _ := os.Readlink("/proc/self/ns/" + ns)
		if a == b || a == "" {
			t.Errorf("the sandbox shares the host's %s namespace", ns)
		}
	}
	if env, _ := os.ReadFile(proc + "/environ"); len(env) > 0 {
		t.Errorf("the sandbox has an environment: %q", env)
	}
	root, err := os.ReadDir(proc + "/root/")
	check(t, err)
	for _, e := range root {
		if e.Name() != "etc" && e.Name() != "proc" {
			t.Errorf("the sandbox's root holds %s", e.Name())
		}
	}
	fds, err := os.ReadDir(proc + "/fd")
	check(t, err)
	for _, fd := range fds {
		// The files that it was given; its Go runtime has its own CPU quota open, too.
		target, _ := os.Readlink(proc + "/fd/" + fd.Name())
		st, err := os.Stat(proc + "/fd/" + fd.Name())
		if err == nil && st.IsDir() {
			t.Errorf("the sandbox holds the directory %s open", target)
		}
		if strings.HasPrefix(target, "/") && target != "/dev/null" && !strings.HasPrefix(target, "/memfd:") &&
			!strings.Contains(target, string(m.ID())) && !strings.Contains(target, "/"+m.Group.Name()+"/") && !strings.HasPrefix(target, host.dir) && !strings.HasPrefix(target, filepath.Dir(m.st.Dir)) {
			t.Errorf("the sandbox holds %s open", target)
		}
	}
	theirs, err := unix.Getsid(m.Proc.PID)
	check(t, err)
	if ours, err := unix.Getsid(0); err != nil || theirs == ours {
		t.Errorf("the sandbox is in session %d, the daemon in %d (%v)", theirs, ours, err)
	}
}

// TestGuest: what programs in a guest rely on.
// TestStartedTogetherShareNothing: a sandbox that is started while others are has
// no more files open than one that is started alone.
func TestStartedTogetherShareNothing(t *testing.T) {
	r := newRuntime(t)
	sockets := func(m *machine) (n int) {
		dir := "/proc/" + strconv.Itoa(m.Proc.PID) + "/fd"
		fds, err := os.ReadDir(dir)
		check(t, err)
		for _, fd := range fds {
			if target, _ := os.Readlink(dir + "/" + fd.Name()); strings.HasPrefix(target, "socket:") {
				n++
			}
		}
		return n
	}
	alone := start(t, r, newSpec(t))
	nacretest.DialGuest(t, alone)
	specs := make([]nacre.MachineSpec, 8)
	for i := range specs {
		specs[i] = newSpec(t)
	}
	var wg sync.WaitGroup
	together := make([]nacre.Machine, len(specs))
	errs := make([]error, len(specs))
	for i := range specs {
		wg.Go(func() { together[i], errs[i] = r.Start(t.Context(), specs[i]) })
	}
	wg.Wait()
	check(t, errors.Join(errs...))
	for _, m := range together {
		t.Cleanup(func() { check(t, m.Stop(context.Background())) })
		nacretest.DialGuest(t, m)
		if got, want := sockets(m.(*machine)), sockets(alone); got != want {
			t.Errorf("%s has %d sockets, one that was started alone %d", m.ID(), got, want)
		}
	}
}

// TestStartAmongManyOpenFiles: the numbers that a busy daemon's files have, on
// either side of the ones that the child uses, do not get in each other's way.
func TestStartAmongManyOpenFiles(t *testing.T) {
	r := newRuntime(t)
	for i := range 400 {
		f, err := os.Open(os.DevNull)
		check(t, err)
		t.Cleanup(func() { f.Close() })
		if i%100 == 90 {
			m := start(t, r, newSpec(t))
			nacretest.DialGuest(t, m)
		}
	}
}

func TestGuest(t *testing.T) {
	m := start(t, newRuntime(t), newSpec(t))
	g := nacretest.DialGuest(t, m)
	t.Run("the agent can start itself again", func(t *testing.T) {
		if got := g.Do("exe").Out; !strings.HasSuffix(got, " 0 0") {
			t.Errorf("%q", got)
		}
	})
	t.Run("root becomes a user", func(t *testing.T) {
		if got := g.Do("run", "/bin/tool", "as", "1000", "/bin/tool", "uid").Out; got != "1000 1000\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("sudo", func(t *testing.T) {
		if got := g.Do("run", "/bin/tool", "as", "1000", "/bin/suid", "uid").Out; got != "1000 0\n" {
			t.Errorf("a set-user-id program runs as %q", got)
		}
	})
	t.Run("chown", func(t *testing.T) {
		g.Do("write", 1, "/tmp/x")
		if got := g.Do("run", "/bin/tool", "chown", "1000", "/tmp/x").Out; got != "" {
			t.Error(got)
		}
	})
	t.Run("mounts", func(t *testing.T) {
		mounts := g.Do("read", "/proc/mounts").Out
		for _, want := range []string{" / overlay rw", " /proc proc rw", " /sys sysfs ro", " /dev ", " /dev/pts devpts", " /dev/shm tmpfs", " /run tmpfs"} {
			if !strings.Contains(mounts, want) {
				t.Errorf("no %q in\n%s", want, mounts)
			}
		}
		if strings.Contains(mounts, " /tmp ") {
			t.Errorf("/tmp is not on the disk:\n%s", mounts)
		}
	})
	t.Run("environment", func(t *testing.T) {
		if got := g.Do("read", "/proc/1/environ").Out; strings.Contains(got, "NACRE") {
			t.Errorf("the agent sees %q", got)
		}
	})
}

func TestFault01_KilledDaemonReportsCrashes(t *testing.T) {
	spec := newSpec(t)
	h, kill := inDaemon(t, spec)
	kill()
	m, err := newRuntime(t).Recover(t.Context(), h)
	check(t, err)
	stopLater(t, m, spec)
	nacretest.DialGuest(t, m).Send("exit", 7)
	e, err := m.Wait(t.Context())
	check(t, err)
	// Older kernels do not tell how another's child ended.
	if e.Reason != nacre.EndCrash || !(strings.Contains(e.Detail, "status 7") || strings.Contains(e.Detail, "nobody watched")) {
		t.Errorf("%+v", e)
	}
}

func TestFault02_UpgradeInPlace(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "nacre")
	b, err := os.ReadFile(host.program)
	check(t, err)
	check(t, os.WriteFile(binary, b, 0o755))
	first, second := newSpec(t), newSpec(t)
	start, kill := newDaemon(t, binary)
	h1, err := start(order{MachineSpec: first})
	check(t, err)
	// The file is replaced the way package managers do it.
	check(t, os.WriteFile(binary+".new", []byte("#!/bin/false\n"), 0o755))
	check(t, os.Rename(binary+".new", binary))
	h2, err := start(order{MachineSpec: second})
	check(t, err)
	kill()
	r := newRuntime(t)
	for _, c := range []struct {
		spec nacre.MachineSpec
		h    nacre.Handle
	}{{first, h1}, {second, h2}} {
		m, err := r.Recover(t.Context(), c.h)
		check(t, err)
		stopLater(t, m, c.spec)
		nacretest.DialGuest(t, m).Do("ping")
	}
}

func TestFault05_SandboxKilled(t *testing.T) {
	m := start(t, newRuntime(t), newSpec(t))
	g := nacretest.DialGuest(t, m)
	begin := time.Now()
	p, err := os.FindProcess(m.Proc.PID)
	check(t, err)
	check(t, p.Kill())
	e, err := m.Wait(t.Context())
	check(t, err)
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("noticed after %v", d)
	}
	if e.Reason != nacre.EndCrash || !strings.Contains(e.Detail, "signal 9") {
		t.Errorf("%+v", e)
	}
	if _, err := g.Answer(); err == nil {
		t.Error("a connection outlived its machine")
	}
}

// TestStartCalledOffAfterTheBoot: a sandbox that is killed between its word that it
// has booted and our call to it does not leave the start waiting for an answer.
func TestStartCalledOffAfterTheBoot(t *testing.T) {
	r := newRuntime(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	spec := newSpec(t)
	r.trace = func(step string) {
		if step != "4-boot" {
			return
		}
		cancel()
		for _, g := range groupsOf(t, spec.ID) {
			for len(g.PIDs()) > 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}
	done := make(chan error, 1)
	go func() {
		_, err := r.Start(ctx, spec)
		done <- err
	}()
	select {
	case err := <-done:
		if !nacre.IsCode(err, nacre.CodeDeadline) {
			t.Errorf("it was called off, and says %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the start hangs")
	}
	if len(groupsOf(t, spec.ID)) > 0 {
		t.Error("its cgroup is left")
	}
}

func TestFault10_PIDReuse(t *testing.T) {
	// Another process has the number that the handle names.
	other := exec.Command("sleep", "60")
	check(t, other.Start())
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	started, err := pidfd.StartTime(other.Process.Pid)
	check(t, err)
	boot := newRuntime(t).bootID
	for name, st := range map[string]machines.Trace{
		"later start": {BootID: boot, PID: other.Process.Pid, Start: started - 1},
		"other boot":  {BootID: "another", PID: other.Process.Pid, Start: started},
		"free number": {BootID: boot, PID: 1 << 22, Start: started},
	} {
		t.Run(name, func(t *testing.T) {
			st.Dir = t.TempDir()
			b, err := json.Marshal(st)
			check(t, err)
			m, err := newRuntime(t).Recover(t.Context(), nacre.Handle{Machine: nacre.NewMachineID(), Runtime: "gvisor", State: b})
			check(t, err)
			e, err := m.Wait(t.Context())
			check(t, err)
			if e.Reason != nacre.EndCrash {
				t.Errorf("%+v", e)
			}
			check(t, m.Stop(t.Context()))
			if _, err := pidfd.StartTime(other.Process.Pid); err != nil {
				t.Fatal("a foreign process was killed")
			}
		})
	}
}

func TestFault16_CPUSpin(t *testing.T) {
	r := newRuntime(t)
	var spinning []*nacretest.Guest
	var machines []*machine
	for range 2 {
		m := start(t, r, newSpec(t))
		machines = append(machines, m)
		spinning = append(spinning, nacretest.DialGuest(t, m))
	}
	quiet := nacretest.DialGuest(t, start(t, r, newSpec(t)))
	before := make([]nacre.Usage, 2)
	begin := time.Now()
	for i, g := range spinning {
		before[i], _ = machines[i].Usage(t.Context())
		for range 4 { // more than the one processor that it has
			nacretest.DialGuest(t, machines[i]).Send("spin", 1000)
		}
		g.Send("spin", 1000)
	}
	var slowest time.Duration
	for time.Since(begin) < 900*time.Millisecond {
		t0 := time.Now()
		quiet.Do("ping")
		slowest = max(slowest, time.Since(t0))
	}
	for i, g := range spinning {
		_, err := g.Answer()
		check(t, err)
		u, err := machines[i].Usage(t.Context())
		check(t, err)
		if used, wall := u.CPUTime-before[i].CPUTime, time.Since(begin); used > wall+wall/4+200*time.Millisecond {
			t.Errorf("a machine of one processor used %v in %v", used, wall)
		}
	}
	t.Logf("slowest answer of a quiet neighbour: %v", slowest)
}
