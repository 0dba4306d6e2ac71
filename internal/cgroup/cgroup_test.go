package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

func TestFindHierarchy(t *testing.T) {
	const (
		v2    = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
		unif  = "31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
		both  = "32 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
		mem   = "33 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
		pids  = "34 23 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
		noise = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\nnonsense\n\n"
	)
	for name, c := range map[string]struct {
		mountinfo string
		dirs      []string
	}{
		"version 2":            {noise + v2, []string{"/sys/fs/cgroup/p/m"}},
		"version 1":            {noise + both + mem + pids, []string{"/sys/fs/cgroup/cpu,cpuacct/p/m", "/sys/fs/cgroup/memory/p/m", "/sys/fs/cgroup/pids/p/m"}},
		"hybrid":               {unif + both + mem + pids, []string{"/sys/fs/cgroup/cpu,cpuacct/p/m", "/sys/fs/cgroup/memory/p/m", "/sys/fs/cgroup/pids/p/m"}},
		"none":                 {noise, nil},
		"version 1 is partial": {mem, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := filepath.Join(t.TempDir(), "mountinfo")
			check(t, os.WriteFile(f, []byte(c.mountinfo), 0o600))
			h, err := Find(f, "/p/")
			if c.dirs == nil {
				if !nacre.IsCode(err, nacre.CodeUnavailable) {
					t.Errorf("error %v, want unavailable", err)
				}
				return
			}
			check(t, err)
			if got := h.Dirs("m"); !reflect.DeepEqual(got, c.dirs) {
				t.Errorf("groups in %v, want %v", got, c.dirs)
			}
		})
	}
}

// TestRooms: each limit counts that is seen from here, the process's own and those
// around it.
func TestRooms(t *testing.T) {
	for name, c := range map[string]struct {
		v1    bool
		self  string
		files map[string]string
		want  []Room
	}{
		"version 2": {self: "0::/a/b\n", files: map[string]string{
			"a/b/memory.max": "max\n", "a/b/memory.current": "7\n", "a/memory.max": "100\n", "a/memory.current": "30\n"}, want: []Room{{100, 70}}},
		"a container":  {self: "0::/\n", files: map[string]string{"memory.max": "100\n", "memory.current": "130\n"}, want: []Room{{100, 0}}},
		"out of sight": {self: "0::/../other\n", files: map[string]string{"memory.max": "9\n", "memory.current": "3\n"}, want: []Room{{9, 6}}},
		"version 1": {v1: true, self: "9:cpu,cpuacct:/c\n4:memory:/a\n0::/\n", files: map[string]string{
			"a/memory.limit_in_bytes": "50\n", "a/memory.usage_in_bytes": "20\n", "memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": "1\n"}, want: []Room{{50, 30}}},
		"no limits": {self: "0::/a\n"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &Hierarchy{root: t.TempDir()}
			if c.v1 {
				h = &Hierarchy{roots: map[string]string{"memory": h.root}}
			}
			for f, text := range c.files {
				path := filepath.Join(h.root+h.roots["memory"], f)
				check(t, os.MkdirAll(filepath.Dir(path), 0o700))
				check(t, os.WriteFile(path, []byte(text), 0o600))
			}
			if got := h.rooms([]byte(c.self)); !reflect.DeepEqual(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	get := func(h *Hierarchy, l Limits) map[string]string {
		out := map[string]string{}
		for _, s := range h.settings(l) {
			out[s.file] = s.value
		}
		return out
	}
	l := Limits{CPUs: 2, Memory: 512 << 20, PIDs: 300}
	v1 := get(&Hierarchy{roots: map[string]string{}}, l)
	v2 := get(&Hierarchy{root: "/"}, l)
	for file, want := range map[string]string{
		"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000", "cpu.shares": "2048",
		"memory.limit_in_bytes": "536870912", "memory.memsw.limit_in_bytes": "536870912", "pids.max": "300",
	} {
		if v1[file] != want {
			t.Errorf("version 1: %s is %q, want %q", file, v1[file], want)
		}
	}
	for file, want := range map[string]string{
		"cpu.max": "200000 100000", "cpu.weight": "200", "memory.max": "536870912",
		"memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "300",
	} {
		if v2[file] != want {
			t.Errorf("version 2: %s is %q, want %q", file, v2[file], want)
		}
	}
	if w := get(&Hierarchy{root: "/"}, Limits{CPUs: 1000})["cpu.weight"]; w != "10000" {
		t.Errorf("cpu.weight %s is out of its range", w)
	}
}

// TestAccounts reads accounts as version 2 writes them.
func TestAccounts(t *testing.T) {
	h := &Hierarchy{root: t.TempDir(), parent: "p"}
	g := h.Group("m")
	dir := g.Dir("")
	check(t, os.MkdirAll(dir, 0o755))
	for file, content := range map[string]string{
		"cpu.stat":       "usage_usec 1500\nuser_usec 1000\n",
		"memory.current": "1000000\n",
		"memory.stat":    "anon 5\ninactive_file 300000\n",
		"memory.events":  "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 1\n",
		"pids.current":   "12\n",
		"pids.events":    "max 4\n",
	} {
		check(t, os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644))
	}
	u, err := g.Usage()
	check(t, err)
	if u.CPUTime.Microseconds() != 1500 || u.MemoryBytes != 700000 || u.PIDs != 12 {
		t.Errorf("usage %+v", u)
	}
	if !g.OOMKilled() || !g.PIDsExceeded() {
		t.Error("the events are not seen")
	}
	if none := h.Group("none"); none.OOMKilled() || none.PIDsExceeded() || none.Exists() {
		t.Error("a group that is not there tells of events")
	}
}

// TestLabel: what is written on a group is read by whoever finds it, until it is removed.
func TestLabel(t *testing.T) {
	h := host(t)
	g, other := h.Group("labelled"), h.Group("other")
	for _, g := range []*Group{g, other} {
		check(t, g.Create())
		t.Cleanup(func() { check(t, g.Destroy(context.Background())) })
	}
	is := func(g *Group, want string) {
		t.Helper()
		if got, err := h.Group(g.Name()).Label(); err != nil || got != want {
			t.Errorf("label %q, %v; want %q", got, err, want)
		}
	}
	is(g, "")
	check(t, g.SetLabel("whose it is"))
	is(g, "whose it is")
	is(other, "")
	check(t, g.Destroy(t.Context()))
	is(g, "")
	if g.SetLabel("late") == nil {
		t.Error("a group that is not there takes a label")
	}
	check(t, g.Create())
	is(g, "")
}

// host is the cgroups of this host, with a parent of the test's own.
func host(t *testing.T) *Hierarchy {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	h, err := Find("/proc/self/mountinfo", "nacre-test-"+strconv.Itoa(os.Getpid()))
	check(t, err)
	check(t, h.Prepare())
	t.Cleanup(func() {
		for _, d := range h.Dirs("") {
			check(t, os.Remove(d))
		}
	})
	return h
}

const containerEnv = "NACRE_TEST_CONTAINER" // where a container's cgroups are to be mounted

// TestPrepareInContainer: where the root of all that can be seen holds the processes
// themselves, as in a container with cgroups of its own. A host with both versions has
// the machines' controllers in version 1; another one then stands for them.
func TestPrepareInContainer(t *testing.T) {
	root := version2(t)
	b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	check(t, err)
	offered, controllers := strings.Fields(string(b)), needed
	if !slices.Contains(offered, "memory") {
		controllers = []string{"hugetlb"}
	}
	if !slices.Contains(offered, controllers[0]) {
		t.Skipf("version 2 of this host offers %q; make test-cgroup2 has another one", offered)
	}
	if dir := os.Getenv(containerEnv); dir != "" {
		inContainer(t, dir, controllers)
		return
	}
	before, err := os.ReadFile(filepath.Join(root, "cgroup.subtree_control"))
	check(t, err)
	h := &Hierarchy{root: root, parent: "nacre-test-" + strconv.Itoa(os.Getpid())}
	g := h.Group("container")
	check(t, os.MkdirAll(g.Dir(""), 0o755))
	t.Cleanup(func() {
		for _, d := range []string{"container/nacre/m", "container/nacre", "container/init", "container", ""} {
			_ = os.Remove(filepath.Join(root, h.parent, d))
		}
		for _, c := range controllers {
			if !slices.Contains(strings.Fields(string(before)), c) {
				_ = write(root, "cgroup.subtree_control", "-"+c) // unless somebody needs it since
			}
		}
		if _, err := os.Stat(filepath.Join(root, h.parent)); err == nil {
			t.Error("the groups are left")
		}
	})
	check(t, h.delegate(controllers))
	fd, err := os.Open(g.Dir(""))
	check(t, err)
	defer fd.Close()
	c := exec.Command("/proc/self/exe", "-test.run=^TestPrepareInContainer$", "-test.v")
	c.Env = append(os.Environ(), containerEnv+"="+t.TempDir())
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func inContainer(t *testing.T, dir string, controllers []string) {
	runtime.LockOSThread() // and the thread ends with the test
	check(t, unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_NEWCGROUP))
	check(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	check(t, unix.Mount("cgroup2", dir, "cgroup2", 0, ""))
	if err := enable(dir, controllers); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("this is no container: %v", err)
	}
	h := &Hierarchy{root: dir, parent: "nacre"}
	g := h.Group("m")
	check(t, os.MkdirAll(g.Dir(""), 0o755))
	for range 2 {
		check(t, h.delegate(controllers))
	}
	if got, err := os.ReadFile(filepath.Join(g.Dir(""), "cgroup.controllers")); err != nil || len(strings.Fields(string(got))) < len(controllers) {
		t.Errorf("a machine's group has the controllers %q, %v", got, err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil || !strings.Contains(string(own), "0::/init\n") {
		t.Errorf("this process is in %q, %v", own, err)
	}
	if err := h.delegate([]string{"none-such"}); !nacre.IsCode(err, nacre.CodeUnavailable) || !strings.Contains(err.Error(), "none-such") {
		t.Errorf("a controller that is not offered: %v", err)
	}
}

// version2 is where the host has version 2, alone or beside version 1.
func version2(t *testing.T) string {
	t.Helper()
	for _, d := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(d, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC && os.Getuid() == 0 {
			return d
		}
	}
	t.Skip("needs root and a cgroup2 mount")
	return ""
}

// TestVersion2 starts a process in a group of version 2 and removes both. A host
// with both versions has the controllers in version 1; processes move all the same.
func TestVersion2(t *testing.T) {
	root := version2(t)
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("needs a shell")
	}
	h := &Hierarchy{root: root, parent: "nacre-test-" + strconv.Itoa(os.Getpid())}
	g := h.Group("m")
	check(t, os.MkdirAll(g.Dir(""), 0o755))
	defer os.Remove(filepath.Join(root, h.parent))
	fd, err := os.Open(g.Dir(""))
	check(t, err)
	defer fd.Close()
	c := exec.Command("sh", "-c", "sleep 60 & sleep 60")
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	check(t, c.Start())
	if n := procs(g.Dir("")); len(n) == 0 {
		t.Error("the process is not in the group")
	}
	done := make(chan struct{})
	go func() { _ = c.Wait(); close(done) }()
	check(t, g.Destroy(t.Context()))
	<-done
	check(t, g.Destroy(t.Context()))
	if g.Exists() {
		t.Error("the group is left")
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
