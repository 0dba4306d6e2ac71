package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/sparse"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// daemonEnv makes this test binary a daemon that starts the machines given on
// stdin and prints their handles.
const daemonEnv = "NACRE_TEST_DAEMON"

// What the tests' guest is made of is built elsewhere for a host that has no tools, see
// the folder cgroup2.
const (
	makeAssetsEnv = "NACRE_TEST_MAKE_ASSETS" // the directory to make it in
	assetsEnv     = "NACRE_TEST_ASSETS"      // where it is
)

// dieEnv is the step of a start at which such a daemon ends as kill -9 ends it.
const dieEnv = "NACRE_TEST_DIE_AT"

// host is what all tests share: the guest's program and root image, a static
// build of this test binary, and a cgroup of this test run.
var host struct {
	dir, image, agent, program, parent string
}

func TestMain(m *testing.M) {
	if Main() {
		return
	}
	if os.Getenv(daemonEnv) != "" {
		daemon()
	}
	if host.dir = os.Getenv(makeAssetsEnv); host.dir != "" {
		if err := buildGuest(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Println("SKIP: the gVisor driver needs root")
		return 0
	}
	guest := buildGuest
	if os.Getenv(assetsEnv) != "" {
		guest = findGuest
	} else if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		fmt.Println("SKIP: the gVisor driver's tests make an image with mkfs.erofs (erofs-utils), which is missing")
		return 0
	}
	dir, err := os.MkdirTemp("", "nacre-gvisor-")
	if err == nil {
		host.dir = dir
		defer os.RemoveAll(dir)
		host.parent = "nacre-test-" + strconv.Itoa(os.Getpid())
		if err = buildProgram(); err == nil {
			err = guest()
		}
	}
	if err != nil {
		fmt.Println("the guest could not be built:", err)
		return 1
	}
	code := m.Run()
	// The daemons that tests killed had sandboxes ahead, whose groups the next one
	// sweeps.
	r, err := New(Config{CgroupParent: host.parent, Program: host.program})
	if err == nil {
		err = errors.Join(r.Sweep(context.Background(), func(nacre.MachineID) bool { return true }), r.Close())
	}
	h, herr := cgroup.Find("/proc/self/mountinfo", host.parent)
	if err = errors.Join(err, herr); err != nil {
		panic(err)
	}
	for _, d := range h.Dirs("") {
		if err := os.Remove(d); err != nil && !os.IsNotExist(err) {
			fmt.Println("left behind:", err)
			code = 1
		}
	}
	return code
}

// buildProgram finds a static build of this binary, which a test with the race
// detector or with cgo is not.
func buildProgram() (err error) {
	if host.program, err = os.Executable(); err != nil || checkStatic(host.program) == nil {
		return err
	}
	host.program = filepath.Join(host.dir, "static.test")
	c := exec.Command("go", "test", "-c", "-o", host.program, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// findGuest is buildGuest where that was done before.
func findGuest() error {
	host.agent, host.image = filepath.Join(host.dir, "testguest"), filepath.Join(host.dir, "root.erofs")
	for _, f := range []string{host.agent, host.image} { // the driver keeps files beside them
		if err := sparse.Clone(filepath.Join(os.Getenv(assetsEnv), filepath.Base(f)), f, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func buildGuest() error {
	host.agent = filepath.Join(host.dir, "testguest")
	c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", host.agent, "github.com/nacrehq/nacre/nacretest/testguest")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	root := filepath.Join(host.dir, "root")
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "run", "root"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o1777); err != nil {
		return err
	}
	b, err := os.ReadFile(host.agent)
	if err != nil {
		return err
	}
	for name, mode := range map[string]os.FileMode{"tool": 0o755, "suid": 0o755 | os.ModeSetuid} {
		p := filepath.Join(root, "bin", name)
		if err := os.WriteFile(p, b, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(p, mode); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("image\n"), 0o644); err != nil {
		return err
	}
	host.image = filepath.Join(host.dir, "root.erofs")
	if out, err := exec.Command("mkfs.erofs", "-E", "noinline_data", host.image, root).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s", err, out)
	}
	return nil
}

// newRuntime returns a driver; its machines are gone when the test ends.
func newRuntime(t testing.TB) *Runtime {
	t.Helper()
	r, err := New(Config{CgroupParent: host.parent, Program: host.program, Log: nacretest.Log(t), Debug: os.Getenv("NACRE_GVISOR_DEBUG") != ""})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// newSpec returns the spec of a machine of the tests' guest.
func newSpec(t testing.TB) nacre.MachineSpec {
	t.Helper()
	kvmhost.Report(t)
	return nacretest.NewSpec(t, host.agent, host.image)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func daemon() {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "test daemon:", err)
			os.Exit(1)
		}
	}
	r, err := New(Config{CgroupParent: os.Getenv(daemonEnv), Log: slog.New(slog.DiscardHandler)})
	fail(err)
	if die := os.Getenv(dieEnv); die != "" {
		r.fillAhead()
		awaitAhead(r) // so that the start takes one of them
		r.trace = func(step string) {
			if step == die {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // until it has
			}
		}
	}
	var m nacre.Machine
	for in := json.NewDecoder(os.Stdin); ; {
		var o order
		fail(in.Decode(&o))
		switch {
		case o.RestoreDir != "":
			m, err = r.Restore(context.Background(), o.MachineSpec, o.RestoreDir)
		case o.SnapshotDir != "":
			_, err = m.Snapshot(context.Background(), o.SnapshotDir, nacre.SnapshotOptions{KeepRunning: o.KeepRunning})
		default:
			m, err = r.Start(context.Background(), o.MachineSpec)
		}
		fail(err)
		fail(json.NewEncoder(os.Stdout).Encode(m.Handle()))
	}
}

// order is what a daemon is told: to start a machine, to take a snapshot of the last
// one, or to restore one.
type order struct {
	nacre.MachineSpec
	RestoreDir  string
	SnapshotDir string
	KeepRunning bool
}

// errands sends a daemon an order and returns its answer.
type errands func(order) (nacre.Handle, error)

func (do errands) try(o order) { _, _ = do(o) }

// inDaemon starts the machine in a process of its own, which kill ends as kill -9
// does. It returns what the daemon would have kept on disk.
func inDaemon(t testing.TB, spec nacre.MachineSpec) (h nacre.Handle, kill func()) {
	t.Helper()
	start, kill := newDaemon(t, host.program)
	h, err := start(order{MachineSpec: spec})
	if err != nil {
		kill()
		t.Fatal("the daemon started no machine:", err)
	}
	return h, kill
}

// newDaemon runs the test binary as a daemon that does what it is told.
func newDaemon(t testing.TB, binary string) (do errands, kill func()) {
	t.Helper()
	c := exec.Command(binary)
	c.Env = append(os.Environ(), daemonEnv+"="+host.parent)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	check(t, err)
	out, err := c.StdoutPipe()
	check(t, err)
	check(t, c.Start())
	kill = func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	answers := json.NewDecoder(out)
	return func(o order) (h nacre.Handle, err error) {
		if err = json.NewEncoder(in).Encode(o); err == nil {
			err = answers.Decode(&h)
		}
		return h, err
	}, sync.OnceFunc(kill)
}

// groupsOf returns the groups of a machine, or with "" those of sandboxes that are no
// machine's.
func groupsOf(t testing.TB, id nacre.MachineID) []*cgroup.Group {
	t.Helper()
	h, err := cgroup.Find("/proc/self/mountinfo", host.parent)
	check(t, err)
	groups, err := labelled(h, id)
	check(t, err)
	return groups
}

func labelled(h *cgroup.Hierarchy, id nacre.MachineID) (out []*cgroup.Group, err error) {
	names, err := h.List()
	for _, name := range names {
		g := h.Group(name)
		label, err := g.Label()
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(name, groupPrefix) && label == string(id) {
			out = append(out, g)
		}
	}
	return out, err
}

// leftovers names what the host still holds of a machine.
func leftovers(spec nacre.MachineSpec) []string {
	var out []string
	h, err := cgroup.Find("/proc/self/mountinfo", host.parent)
	if err != nil {
		return []string{err.Error()}
	}
	groups, err := labelled(h, spec.ID)
	if err != nil {
		return []string{err.Error()}
	}
	for _, g := range append(groups, h.Group(string(spec.ID))) {
		if g.Exists() {
			out = append(out, "group "+g.Name())
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, _ := os.ReadFile(p); strings.Contains(string(b), string(spec.ID)) {
			out = append(out, p)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for l := range strings.Lines(string(mounts)) {
		// The test's own slot is a mount that carries the id.
		if strings.Contains(l, string(spec.ID)) && !strings.Contains(l, "/run/netns/") {
			out = append(out, strings.TrimSpace(l))
		}
	}
	return out
}
