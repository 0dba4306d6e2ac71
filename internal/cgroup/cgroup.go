// Package cgroup limits, counts and ends the processes of a machine, on hosts with
// version 1 or version 2 of Linux's control groups.
package cgroup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// Hierarchy is where the host keeps its cgroups: one tree (version 2), or one a
// controller (version 1).
type Hierarchy struct {
	parent string            // name of the directory that holds the machines' groups
	roots  map[string]string // version 1: mount point of each controller we need
	root   string            // version 2: the mount point
}

var controllers = []string{"cpu", "cpuacct", "memory", "pids"}

// Find reads where cgroups are mounted. A host that has version 1's
// memory controller is taken as version 1.
func Find(mountinfo, parent string) (*Hierarchy, error) {
	b, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, err
	}
	h := &Hierarchy{parent: strings.Trim(parent, "/"), roots: map[string]string{}}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		// "36 35 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
		before, after, ok := strings.Cut(s.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		switch g[0] {
		case "cgroup2":
			if h.root == "" || f[4] == "/sys/fs/cgroup" {
				h.root = f[4]
			}
		case "cgroup":
			for _, o := range strings.Split(g[2], ",") {
				if slices.Contains(controllers, o) && h.roots[o] == "" {
					h.roots[o] = f[4]
				}
			}
		}
	}
	if h.roots["memory"] == "" {
		h.roots = nil
		if h.root == "" {
			return nil, nacre.Errorf(nacre.CodeUnavailable, "no cgroups are mounted on this host; mount cgroup2 on /sys/fs/cgroup")
		}
		return h, nil
	}
	for _, c := range controllers {
		if h.roots[c] == "" {
			return nil, nacre.Errorf(nacre.CodeUnavailable, "the host's cgroups lack the %s controller; enable it", c)
		}
	}
	return h, nil
}

// V2 tells whether the host has version 2: one tree, into which a process can be born.
func (h *Hierarchy) V2() bool { return h.roots == nil }

// Dirs returns the directory of a group in each tree, "" for the parent's.
func (h *Hierarchy) Dirs(name string) []string {
	if h.V2() {
		return []string{filepath.Join(h.root, h.parent, name)}
	}
	var out []string
	for _, c := range controllers {
		if d := filepath.Join(h.roots[c], h.parent, name); !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out
}

// Prepare makes the parent.
func (h *Hierarchy) Prepare() error {
	for _, d := range h.Dirs("") {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nacre.Wrap(nacre.CodeUnavailable, err, "the cgroup "+d+" cannot be made; nacre needs write access to the host's cgroups")
		}
	}
	if !h.V2() {
		return nil
	}
	return h.delegate(needed)
}

// List returns the names of all groups in the parent.
func (h *Hierarchy) List() ([]string, error) {
	var names []string
	for _, d := range h.Dirs("") {
		entries, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}

// Group names one that may exist or not.
func (h *Hierarchy) Group(name string) *Group { return &Group{h, name} }

// Group is one machine's cgroup.
type Group struct {
	h    *Hierarchy
	name string
}

// Limits of a group. Memory is in bytes.
type Limits struct {
	CPUs, Memory, PIDs int64
}

// CPUPeriod is the time, in microseconds, that CPU quotas are counted over.
const CPUPeriod = 100000

// Create makes the group, which must not exist yet (fs.ErrExist). It has no limits.
func (g *Group) Create() error {
	for i, d := range g.h.Dirs(g.name) {
		if err := os.Mkdir(d, 0o755); err != nil {
			for _, made := range g.h.Dirs(g.name)[:i] {
				_ = os.Remove(made)
			}
			return err
		}
	}
	return nil
}

// labelAttr holds a group's label. The kernel keeps such attributes of cgroups since
// Linux 5.7, in both versions, and forgets them with the group.
const labelAttr = "user.nacre"

// SetLabel writes a few words on the group, such as whose it is, for this process and
// later ones. It is there whole or not at all.
func (g *Group) SetLabel(text string) error {
	dir := g.h.Dirs(g.name)[0] // which Destroy removes first
	if err := unix.Setxattr(dir, labelAttr, []byte(text), 0); err != nil {
		return fmt.Errorf("label %s: %w", dir, err)
	}
	return nil
}

// Label returns what SetLabel wrote, "" for a group that has none or is not there.
func (g *Group) Label() (string, error) {
	dir, b := g.h.Dirs(g.name)[0], make([]byte, 256)
	n, err := unix.Getxattr(dir, labelAttr, b)
	if err == unix.ENODATA || err == unix.ENOENT {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("label of %s: %w", dir, err)
	}
	return string(b[:n]), nil
}

// Name is what Hierarchy.Group was given.
func (g *Group) Name() string { return g.name }

// Limit bounds what the group may use from now on.
func (g *Group) Limit(l Limits) error { return g.set(g.h.settings(l)) }

func (g *Group) set(settings []setting) error {
	for _, s := range settings {
		if err := write(g.Dir(s.controller), s.file, s.value); err != nil && !(s.optional && errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// LimitCPUs changes the group's share of the processors.
func (g *Group) LimitCPUs(n int) error { return g.set(g.h.cpuSettings(int64(n))) }

// setting is one file of a group.
type setting struct {
	controller, file, value string
	optional                bool // not every kernel has it
}

// settings are the limits in the words of the host's version.
func (h *Hierarchy) settings(l Limits) []setting {
	mem, pids := strconv.FormatInt(l.Memory, 10), strconv.FormatInt(l.PIDs, 10)
	if h.V2() {
		return append(h.cpuSettings(l.CPUs),
			setting{"memory", "memory.max", mem, false},
			setting{"memory", "memory.swap.max", "0", true},
			setting{"memory", "memory.oom.group", "1", true},
			setting{"pids", "pids.max", pids, false})
	}
	return append(h.cpuSettings(l.CPUs),
		setting{"memory", "memory.limit_in_bytes", mem, false},
		setting{"memory", "memory.memsw.limit_in_bytes", mem, true},
		setting{"pids", "pids.max", pids, false})
}

// cpuSettings are the processors' part. A machine may save up one period of CPU
// time, so that a short command is not stopped in the middle; the kernel wants that
// to be no more than the quota at any moment.
func (h *Hierarchy) cpuSettings(cpus int64) []setting {
	quota, period := strconv.FormatInt(cpus*CPUPeriod, 10), strconv.Itoa(CPUPeriod)
	if h.V2() {
		return []setting{
			{"cpu", "cpu.max.burst", "0", true},
			{"cpu", "cpu.max", quota + " " + period, false},
			{"cpu", "cpu.max.burst", quota, true},
			{"cpu", "cpu.weight", strconv.FormatInt(min(cpus*100, 10000), 10), false},
		}
	}
	return []setting{
		{"cpu", "cpu.cfs_period_us", period, false},
		{"cpu", "cpu.cfs_burst_us", "0", true},
		{"cpu", "cpu.cfs_quota_us", quota, false},
		{"cpu", "cpu.cfs_burst_us", quota, true},
		{"cpu", "cpu.shares", strconv.FormatInt(min(cpus*1024, 262144), 10), false},
	}
}

// Dir is where the group's files of a controller are.
func (g *Group) Dir(controller string) string {
	root := g.h.root
	if !g.h.V2() {
		root = g.h.roots[controller]
	}
	return filepath.Join(root, g.h.parent, g.name)
}

// JoinThread puts the calling thread, and so what it forks, into the group
// (version 1). "0" and not a number: the kernel then need not stop the whole
// process, which takes it tens of milliseconds.
func (g *Group) JoinThread() error {
	for _, d := range g.h.Dirs(g.name) {
		if err := write(d, "tasks", "0"); err != nil {
			return err
		}
	}
	return nil
}

// Exists tells whether any part of the group is there.
func (g *Group) Exists() bool {
	return slices.ContainsFunc(g.h.Dirs(g.name), func(d string) bool {
		_, err := os.Stat(d)
		return err == nil
	})
}

// OOMKilled tells whether the kernel killed anything in the group because it
// used more memory than its limit.
func (g *Group) OOMKilled() bool {
	file := "memory.oom_control"
	if g.h.V2() {
		file = "memory.events"
	}
	return field(g.Dir("memory"), file, "oom_kill") > 0
}

// PIDsExceeded tells whether a task could not be made because of the limit.
func (g *Group) PIDsExceeded() bool { return field(g.Dir("pids"), "pids.events", "max") > 0 }

// Usage reads the group's accounts.
func (g *Group) Usage() (u nacre.Usage, err error) {
	var mem, cache int64
	if g.h.V2() {
		u.CPUTime = time.Duration(field(g.Dir("cpu"), "cpu.stat", "usage_usec")) * time.Microsecond
		mem, err = number(g.Dir("memory"), "memory.current")
		cache = field(g.Dir("memory"), "memory.stat", "inactive_file")
	} else {
		var ns int64
		if ns, err = number(g.Dir("cpuacct"), "cpuacct.usage"); err != nil {
			return u, err
		}
		u.CPUTime = time.Duration(ns)
		mem, err = number(g.Dir("memory"), "memory.usage_in_bytes")
		cache = field(g.Dir("memory"), "memory.stat", "total_inactive_file")
	}
	if err != nil {
		return u, err
	}
	u.MemoryBytes = max(mem-max(cache, 0), 0)
	pids, err := number(g.Dir("pids"), "pids.current")
	u.PIDs = int(pids)
	return u, err
}

// Destroy kills what is in the group and removes it. It may be repeated.
func (g *Group) Destroy(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		left := error(nil)
		for _, d := range g.h.Dirs(g.name) {
			// Removing comes first: in the ordinary case the group is empty.
			if err := unix.Rmdir(d); err != nil && err != unix.ENOENT {
				left = fmt.Errorf("remove %s: %w", d, err)
				killAll(d)
			}
		}
		if left == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(left, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// killAll kills every process in a group. A number read from the list could be
// another process's by the time the signal is sent, so it is held first and
// looked up again.
func killAll(dir string) {
	if write(dir, "cgroup.kill", "1") == nil { // version 2, since Linux 5.14
		return
	}
	for _, pid := range procs(dir) {
		if pid == os.Getpid() { // a thread of ours that started something here is about to end
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if slices.Contains(procs(dir), pid) {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		unix.Close(fd)
	}
}

// PIDs lists the processes in the group.
func (g *Group) PIDs() []int { return procs(g.Dir("pids")) }

func procs(dir string) []int {
	b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func number(dir, file string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// field returns the number after key in a file of "key value" lines, or -1.
func field(dir, file, key string) int64 {
	b, _ := os.ReadFile(filepath.Join(dir, file))
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		k, v, _ := strings.Cut(s.Text(), " ")
		if n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64); k == key && err == nil {
			return n
		}
	}
	return -1
}
