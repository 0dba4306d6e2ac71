package firecracker

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/thread"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// startMachine starts a machine that is stopped when the test ends.
func startMachine(t *testing.T) (*machine, nacre.MachineSpec) {
	t.Helper()
	return startMachineOf(t, newRuntime(t))
}

func startMachineOf(t *testing.T, r *Runtime) (*machine, nacre.MachineSpec) {
	t.Helper()
	spec := newSpec(t)
	m, err := r.Start(t.Context(), spec)
	check(t, err)
	t.Cleanup(func() {
		if err := m.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		if left := leftovers(spec); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if _, err := os.Stat(filepath.Join(spec.StateDir, "jail")); err == nil {
			t.Error("the jail is left behind")
		}
	})
	return m.(*machine), spec
}

// TestMachine: one machine, to spare boots.
func TestMachine(t *testing.T) {
	m, spec := startMachine(t)
	g := nacretest.DialGuest(t, m)
	t.Run("Jail", func(t *testing.T) { testJail(t, m) })
	t.Run("Fault40_NetworkIsTheSlots", func(t *testing.T) { testNetwork(t, g, spec) })
	t.Run("GuestCannotStopTheFirstProgram", func(t *testing.T) {
		if got := g.Do("read", "/proc/1/comm").Out; strings.TrimSpace(got) != "agent" && strings.TrimSpace(got) != "nacre-agent" {
			t.Errorf("PID 1 of the sandbox is %q", got)
		}
		if r := g.Try("read", "/proc/2/comm"); r.Err == "" {
			t.Errorf("the sandbox sees %q, which is none of its own", r.Out)
		}
	})
}

func testJail(t *testing.T, m *machine) {
	proc := "/proc/" + strconv.Itoa(m.Proc.PID)
	b, err := os.ReadFile(proc + "/status")
	check(t, err)
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d", machineUser(m.ID())),
		fmt.Sprintf("Gid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d", machineUser(m.ID())),
		"Seccomp:\t2", "CapEff:\t0000000000000000", fmt.Sprintf("NSpid:\t%d\t1\n", m.Proc.PID),
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the VMM's status lacks %q", want)
		}
	}
	root, err := os.Stat(proc + "/root")
	check(t, err)
	jail, err := os.Stat(m.jail.root)
	check(t, err)
	if !os.SameFile(root, jail) {
		t.Error("the VMM's root is not its jail")
	}
	own, _ := os.Readlink("/proc/self/ns/net")
	if its, _ := os.Readlink(proc + "/ns/net"); its == own {
		t.Error("the VMM is in the host's network namespace")
	}
	for fd := range 3 {
		if to, _ := os.Readlink(proc + "/fd/" + strconv.Itoa(fd)); to != os.DevNull && to != "/" && !strings.HasSuffix(to, "/null") {
			t.Errorf("descriptor %d of the VMM is %s", fd, to)
		}
	}
}

// testNetwork: what the guest sends has the slot's address, and the namespace itself
// does not answer it.
func testNetwork(t *testing.T, g *nacretest.Guest, spec nacre.MachineSpec) {
	l, err := net.Listen("tcp4", spec.Slot.Gateway.String()+":0")
	check(t, err)
	defer l.Close()
	from := make(chan string, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			from <- c.RemoteAddr().String()
			c.Close()
		}
	}()
	g.Do("outside", l.Addr().String())
	if host, _, _ := net.SplitHostPort(<-from); host != spec.Slot.Guest.Addr().String() {
		t.Errorf("the host sees %s, want the slot's %s", host, spec.Slot.Guest.Addr())
	}
	// Every address of the namespace, where somebody listens.
	var inside net.Listener
	check(t, thread.InNetwork(spec.Slot.Path, func() (err error) {
		inside, err = net.Listen("tcp4", "0.0.0.0:8099")
		return err
	}))
	defer inside.Close()
	if r := g.Try("outside", wire.HostAddr+":8099"); r.Err == "" {
		t.Error("the namespace answers the guest")
	}
}

// TestFault20_SerialConsoleFlood: what a guest writes there ends nowhere.
func TestFault20_SerialConsoleFlood(t *testing.T) {
	m, spec := startMachine(t)
	g := nacretest.DialGuest(t, m)
	size := func() (n int64) {
		_ = filepath.WalkDir(spec.StateDir, func(_ string, d os.DirEntry, err error) error {
			if i, ierr := d.Info(); err == nil && ierr == nil && d.Type().IsRegular() {
				n += i.Size()
			}
			return nil
		})
		return n
	}
	before := size()
	g.Do("append", "/dev/ttyS0", strings.Repeat("flood", 2000))
	if after := size(); after != before {
		t.Errorf("the machine's files grew by %d bytes", after-before)
	}
	g.Do("ping")
}

// TestFault05_VMMKilledOrStopped: it is noticed, said, and nothing is left.
func TestFault05_VMMKilledOrStopped(t *testing.T) {
	signal := func(s unix.Signal) func(*machine) error {
		return func(m *machine) error { return unix.Kill(m.Proc.PID, s) }
	}
	for _, c := range []struct {
		name   string
		do     func(*machine) error
		want   string
		within time.Duration
	}{
		{"killed", signal(unix.SIGKILL), "", 5 * time.Second}, {"stopped", signal(unix.SIGSTOP), "did not answer", 5 * time.Second},
		// It sleeps then, as far as anybody sees, and answers nothing.
		{"frozen", func(m *machine) error {
			return os.WriteFile(filepath.Join(m.Group.Dir(""), "cgroup.freeze"), []byte("1"), 0)
		}, "did not answer", 15 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "frozen" && os.Getenv("NACRE_CGROUP_V1") != "" {
				t.Skip("version 1 of cgroups has no such file")
			}
			r := newRuntime(t)
			if c.name == "frozen" {
				r.askEvery, r.askWithin = 500*time.Millisecond, 3*time.Second
			}
			m, spec := startMachineOf(t, r)
			check(t, c.do(m))
			ctx, cancel := context.WithTimeout(t.Context(), c.within)
			defer cancel()
			e, err := m.Wait(ctx)
			if err != nil || e.Reason != nacre.EndCrash || !strings.Contains(e.Detail, c.want) {
				t.Errorf("%+v, %v; want a crash that %s", e, err, c.want)
			}
			if left := leftovers(spec); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
