package server

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/network"
	"github.com/nacrehq/nacre/runtime/firecracker"
)

// need is something that a host must offer, with the Debian package that brings it.
type need struct {
	what    string // for people
	pkg     string
	present func() bool
	why     string
}

func inPath(name string) func() bool {
	return func() bool { _, err := exec.LookPath(name); return err == nil }
}

// needs lists what `nacre up` requires of the host. Building the base image asks
// for two tools more, but only while the image is not in the cache.
func needs(buildBase bool) []need {
	list := []need{{
		what: "names below *.localhost resolve", pkg: "libnss-myhostname", present: localhostResolves,
		why: "https://<port>-<id>.nacre.localhost must lead to this host",
	}}
	if buildBase {
		list = append(list,
			need{"mmdebstrap", "mmdebstrap", inPath("mmdebstrap"), "makes the base template's file system"},
			need{"mkfs.erofs", "erofs-utils", inPath("mkfs.erofs"), "makes the base template's image"})
	}
	return list
}

func localhostResolves() bool {
	// The C library's view counts: it is what the clients' languages use.
	out, err := exec.Command("getent", "hosts", "probe.nacre.localhost").Output()
	return err == nil && len(bytes.TrimSpace(out)) > 0
}

// provide installs what the host lacks, or says in one list what to install.
// Name resolution is a comfort and never stops a start.
func provide(ctx context.Context, list []need, install bool, progress func(string)) error {
	missing := slices.DeleteFunc(slices.Clone(list), func(n need) bool { return n.present() })
	if len(missing) == 0 {
		return nil
	}
	pkgs := make([]string, len(missing))
	for i, n := range missing {
		pkgs[i] = n.pkg
	}
	if install && os.Geteuid() == 0 && inPath("apt-get")() {
		progress("installing " + strings.Join(pkgs, ", "))
		if err := aptInstall(ctx, pkgs); err != nil {
			return fmt.Errorf("%w\ninstall by hand and start again:\n%s", err, installList(missing))
		}
		missing = slices.DeleteFunc(missing, func(n need) bool { return n.present() || n.pkg == "libnss-myhostname" })
	} else {
		missing = slices.DeleteFunc(missing, func(n need) bool { return n.pkg == "libnss-myhostname" })
	}
	if len(missing) > 0 {
		return fmt.Errorf("this host lacks what Nacre needs; install it and start again:\n%s", installList(missing))
	}
	return nil
}

func installList(missing []need) string {
	var b strings.Builder
	pkgs := []string{}
	for _, n := range missing {
		fmt.Fprintf(&b, "  %-28s %s\n", n.pkg, n.why)
		pkgs = append(pkgs, n.pkg)
	}
	fmt.Fprintf(&b, "on Debian: apt-get update && apt-get install -y %s", strings.Join(pkgs, " "))
	return b.String()
}

func aptInstall(ctx context.Context, pkgs []string) error {
	run := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		out, err := cmd.CombinedOutput()
		if err != nil {
			tail := out[max(0, len(out)-2000):]
			return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, tail)
		}
		return nil
	}
	args := append([]string{"install", "-y", "-q", "--no-install-recommends"}, pkgs...)
	if run(args...) == nil {
		return nil
	}
	if err := run("update", "-q"); err != nil { // lists may be missing or old
		return err
	}
	return run(args...)
}

// Finding is one result of Doctor.
type Finding struct {
	ID     string `json:"id"`
	Level  string `json:"level"` // ok, warn, fail
	What   string `json:"what"`
	Advice string `json:"advice,omitempty"` // what to do, when not ok
}

// Doctor looks at the host and says what Nacre would find wrong, each with what
// to do. It changes nothing.
func Doctor(ctx context.Context, c Config) []Finding {
	var out []Finding
	add := func(id string, ok bool, level, what, advice string) {
		f := Finding{ID: id, Level: "ok", What: what}
		if !ok {
			f.Level, f.Advice = level, advice
		}
		out = append(out, f)
	}
	add("platform", runtime.GOOS == "linux" && runtime.GOARCH == "amd64", "fail",
		runtime.GOOS+"/"+runtime.GOARCH, "Nacre runs on linux/amd64")
	add("root", os.Geteuid() == 0, "fail", fmt.Sprintf("running as uid %d", os.Geteuid()),
		"start it as root: it makes network namespaces and cgroups")
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	release := unix.ByteSliceToString(uts.Release[:])
	add("kernel", kernelAtLeast(release, 5, 10), "fail", "Linux "+release, "use a kernel of 5.10 or newer")
	add("cgroups", cgroupsUsable(), "fail", "cgroup controllers cpu, memory and pids",
		"mount cgroup v2 (or the v1 controllers) at /sys/fs/cgroup and enable cpu, memory and pids")
	add("nftables", nftUsable(), "fail", "nftables in the kernel", "load the nf_tables module: modprobe nf_tables")
	out = append(out, runtimeFindings(ctx, c.Runtime, hostVirtualization(c.DataDir))...)
	out = append(out, pageFindings(c, firecracker.HugePages)...)
	for _, n := range needs(true) {
		add(n.pkg, n.present(), "warn", n.what, "apt-get install -y "+n.pkg+"  ("+n.why+")")
	}
	for _, dir := range []string{c.DataDir, c.CacheDir} {
		free, err := freeBytes(dir)
		add("disk "+dir, err == nil && free > 5<<30, "warn", fmt.Sprintf("%.1f GiB free below %s", float64(free)/(1<<30), dir),
			"free some space or move it with --data-dir and --cache-dir: an image takes 1 GiB, a sandbox up to its disk size")
	}
	mem := memTotal()
	add("memory", mem > 2<<30, "warn", fmt.Sprintf("%.1f GiB of memory", float64(mem)/(1<<30)), "2 GiB or more make sense")
	server := statusOf(c.DataDir)
	if server != nil {
		out = append(out, server.Findings...)
	} else {
		out = append(out, networkFindings(c)...)
	}
	for name, addr := range map[string]string{"http": c.HTTP, "https": c.HTTPS} {
		if addr == "" || server != nil {
			continue
		}
		add("port "+name, canListen(addr), "fail", "--"+name+" "+addr+" is free", "stop what listens there or choose another address with --"+name)
	}
	slices.SortStableFunc(out, func(a, b Finding) int { return strings.Compare(rank(a.Level), rank(b.Level)) })
	return out
}

// networkFindings are what a server with that configuration would find in its way.
func networkFindings(c Config) []Finding {
	list, err := network.Inspect(network.Config{Instance: instanceOf(c.DataDir), Pool: c.pool()})
	out := networkReport(list)
	if err != nil {
		what := err.Error()
		if nacre.IsCode(err, nacre.CodeInvalid) {
			what = nacre.ErrorMessage(err)
		}
		out = append(out, Finding{ID: "network", Level: "fail", What: what, Advice: "a server would not start; see docs/configuration.md, --network-pool"})
	}
	return out
}

func networkReport(list []network.Finding) []Finding {
	var out []Finding
	for i, f := range list {
		level := "ok"
		if f.Problem {
			level = "warn"
		}
		out = append(out, Finding{ID: fmt.Sprintf("network %s %d", f.Subject, i), Level: level, What: f.Message})
	}
	return out
}

func rank(level string) string { return map[string]string{"fail": "0", "warn": "1", "ok": "2"}[level] }

func kernelAtLeast(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}

func cgroupsUsable() bool {
	if text, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		have := strings.Fields(string(text))
		return slices.Contains(have, "cpu") && slices.Contains(have, "memory") && slices.Contains(have, "pids")
	}
	for _, c := range []string{"cpu", "memory", "pids"} {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", c, "cgroup.procs")); err != nil {
			return false
		}
	}
	return true
}

func nftUsable() bool {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return false
	}
	return unix.Close(fd) == nil
}

// freeBytes asks the nearest directory that exists.
func freeBytes(dir string) (int64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, nil
		}
		if dir == "/" || dir == "." {
			return 0, err
		}
		dir = filepath.Dir(dir)
	}
}

func memTotal() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}

func canListen(addr string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	l.Close()
	return true
}
