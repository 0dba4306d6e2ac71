package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/sparse"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/nacretest/kvmhost"
	"github.com/nacrehq/nacre/nacretest/reach"
)

// daemonEnv makes this test binary a daemon that starts the machines given on
// stdin and prints their handles.
const daemonEnv = "NACRE_TEST_DAEMON"

const parent = "nacre-test-firecracker"

// The guest that tries the network, and its root.
const (
	reachGuest = "reach"
	reachRoot  = "reach.erofs"
)

// host is what all tests share.
var host struct {
	dir string
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ProbeArg {
		os.Exit(ProbeMain())
	}
	if len(os.Args) > 1 && os.Args[1] == PagerArg {
		os.Exit(PagerMain())
	}
	if os.Getenv(daemonEnv) != "" {
		daemon()
	}
	code := kvmhost.Main(m, kvmhost.Config{Files: files, Fit: fit, Run: run, Check: []string{ProbeArg}, Timeout: 40 * time.Minute})
	if host.dir != "" {
		_ = os.RemoveAll(host.dir)
	}
	os.Exit(code)
}

// fit decides as the product does.
func fit(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return Probe(ctx, self)
}

// files brings the guest's kernel, its programs and a root image.
func files() (map[string]string, error) {
	kernel, err := kvmhost.Script(`exec ../../guest/kernel/build.sh`)
	if err != nil {
		return nil, fmt.Errorf("the guest's kernel: %w", err)
	}
	dir, err := os.MkdirTemp("", "nacre-firecracker-")
	if err != nil {
		return nil, err
	}
	host.dir = dir
	for name, pkg := range map[string]string{"testguest": "nacretest/testguest", "guestinit": "runtime/firecracker/guestinit"} {
		c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, name), "github.com/nacrehq/nacre/"+pkg)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
	}
	if err := rootImage(dir); err != nil {
		return nil, err
	}
	netDir := filepath.Join(dir, "reach")
	if err := os.Mkdir(netDir, 0o755); err != nil {
		return nil, err
	}
	netGuest, netRoot, err := reach.Build(netDir)
	if err != nil {
		return nil, err
	}
	resolv := filepath.Join(netDir, "resolv.conf") // which fakenet covers
	if err := os.WriteFile(resolv, nil, 0o644); err != nil {
		return nil, err
	}
	m := map[string]string{"/etc/resolv.conf": resolv, "/assets/vmlinux": kernel, "/assets/" + reachGuest: netGuest, "/assets/" + reachRoot: netRoot}
	for _, f := range []string{"testguest", "guestinit", "root.erofs"} {
		m["/assets/"+f] = filepath.Join(dir, f)
	}
	return m, errors.Join(kvmhost.WithLibraries(m, "mkfs.ext4"), kvmhost.WithLibraries(m, "e2fsck"))
}

func rootImage(dir string) error {
	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "run", "root"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o1777); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, "testguest"))
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "bin/tool"), b, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("image\n"), 0o644)
	}
	if err != nil {
		return err
	}
	out, err := exec.Command("mkfs.erofs", "-E", "noinline_data", filepath.Join(dir, "root.erofs"), root).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s", err, out)
	}
	return nil
}

// run runs the tests on the host that has KVM, in a network of their own.
func run(m *testing.M) int {
	if fakenet.Inside() {
		if err := setup(); err != nil {
			fmt.Println("the tests' host could not be set up:", err)
			return 1
		}
	}
	return fakenet.Main(m)
}

func setup() (err error) {
	if host.dir, err = os.MkdirTemp("", "fc-"); err != nil {
		return err
	}
	// The driver keeps files beside the agent and the image.
	for _, f := range []string{"testguest", "root.erofs", reachGuest, reachRoot} {
		if err := sparse.Clone("/assets/"+f, filepath.Join(host.dir, f), 0o700); err != nil {
			return err
		}
	}
	return nil
}

func config(log *slog.Logger) Config {
	return Config{Firecracker: kvmhost.Firecracker, Jailer: kvmhost.Jailer, Kernel: "/assets/vmlinux", Init: "/assets/guestinit",
		AllowHoles: true, CgroupParent: parent, Log: log, Debug: os.Getenv("NACRE_FIRECRACKER_DEBUG") != "",
		Boots:       2, // of one emulated processor
		BootTimeout: 5 * time.Minute,
		CacheMiB:    1024, // its files are in memory here, and none can be taken back
		BootArgs:    "mitigations=off tsc=reliable no_timer_check i8042.noaux i8042.nokbd"}
}

// newRuntime returns a driver; its machines are gone when the test ends.
func newRuntime(t testing.TB) *Runtime {
	t.Helper()
	kvmhost.Report(t)
	r, err := New(config(nacretest.Log(t)))
	if err != nil {
		t.Fatal(err)
	}
	r.slow = 6
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
	return nacretest.NewSpec(t, filepath.Join(host.dir, "testguest"), filepath.Join(host.dir, "root.erofs"))
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
	r, err := New(config(slog.New(slog.DiscardHandler)))
	fail(err)
	for in := json.NewDecoder(os.Stdin); ; {
		var o order
		fail(in.Decode(&o))
		r.lazy = o.Lazy
		var m nacre.Machine
		if o.From == "" {
			m, err = r.Start(context.Background(), o.MachineSpec)
		} else {
			m, err = r.Restore(context.Background(), o.MachineSpec, o.From)
		}
		fail(err)
		fail(json.NewEncoder(os.Stdout).Encode(m.Handle()))
	}
}

// order is what a daemon is told to make.
type order struct {
	nacre.MachineSpec
	From string // a snapshot; "" boots
	Lazy bool   // its pager is
}

// inDaemon starts the machine in a process of its own, which kill ends as kill -9
// does. It returns what the daemon would have kept on disk.
func inDaemon(t testing.TB, spec nacre.MachineSpec) (h nacre.Handle, kill func()) {
	t.Helper()
	return ordered(t, order{MachineSpec: spec})
}

func ordered(t testing.TB, o order) (h nacre.Handle, kill func()) {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	c := exec.Command(self)
	c.Env = append(os.Environ(), daemonEnv+"=1")
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	check(t, err)
	out, err := c.StdoutPipe()
	check(t, err)
	check(t, c.Start())
	kill = sync.OnceFunc(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	t.Cleanup(kill)
	check(t, json.NewEncoder(in).Encode(o))
	if err := json.NewDecoder(out).Decode(&h); err != nil {
		t.Fatal("the daemon started no machine:", err)
	}
	return h, kill
}

// leftovers names what the host still holds of a machine.
func leftovers(spec nacre.MachineSpec) []string {
	var out []string
	h, err := cgroup.Find("/proc/self/mountinfo", parent)
	if err != nil {
		return []string{err.Error()}
	}
	for _, d := range h.Dirs(string(spec.ID)) {
		if _, err := os.Stat(d); err == nil {
			out = append(out, d)
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
