package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// benchMemory: what a sandbox costs that runs and does nothing: its cgroup's
// account, and its processes' proportional share of what they map. Its processor
// time is taken over the same seconds.
func benchMemory(ctx context.Context, b *bench) error {
	d, err := b.withStandbys(ctx)
	if err != nil {
		return err
	}
	var used, pss, cpu series
	var boxes []box
	defer func() {
		for _, s := range boxes {
			_ = d.kill(context.WithoutCancel(ctx), s)
		}
	}()
	for range 5 {
		s, err := d.create(ctx)
		if err != nil {
			return err
		}
		boxes = append(boxes, s)
	}
	if err := pause(ctx, 6*time.Second); err != nil { // the agent gives back what its start took
		return err
	}
	before := make([]float64, len(boxes))
	groups := make([]group, len(boxes))
	for i, s := range boxes {
		h, err := d.handle(s)
		if err != nil {
			return err
		}
		if groups[i], err = groupOf(h.Handle.State.PID); err != nil {
			return err
		}
		before[i] = groups[i].cpu()
	}
	const watched = 5 * time.Second
	if err := pause(ctx, watched); err != nil {
		return err
	}
	for i, g := range groups {
		cpu.add((g.cpu() - before[i]) / watched.Seconds())
		used.add(g.memory() / (1 << 20))
		pss.add(g.pss())
	}
	b.report.add("idle sandbox, its cgroup's memory", "MiB", used, "<= 15", "")
	b.report.add("idle sandbox, proportional set size", "MiB", pss, "", "includes its share of the program, which all share")
	b.report.add("idle sandbox, processor time", "ms/s", cpu, "", "")
	return nil
}

// group is a machine's cgroup: one directory, or with version 1 one a controller.
type group struct{ memoryDir, cpuDir string }

func groupOf(pid int) (group, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return group{}, err
	}
	var g group
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) < 3 {
			continue
		}
		for _, c := range strings.Split(f[1], ",") {
			switch c {
			case "memory":
				g.memoryDir = filepath.Join("/sys/fs/cgroup/memory", f[2])
			case "cpuacct":
				g.cpuDir = filepath.Join("/sys/fs/cgroup/cpuacct", f[2])
			case "":
				if dir := filepath.Join("/sys/fs/cgroup", f[2]); g.memoryDir == "" && f[2] != "/" {
					g.memoryDir, g.cpuDir = dir, dir
				}
			}
		}
	}
	if g.memoryDir == "" {
		return g, fmt.Errorf("process %d is in no memory cgroup", pid)
	}
	return g, nil
}

func first(paths ...string) []byte {
	for _, p := range paths {
		if data, err := os.ReadFile(p); err == nil {
			return bytes.TrimSpace(data)
		}
	}
	return nil
}

// memory is in bytes.
func (g group) memory() float64 {
	v, _ := strconv.ParseFloat(string(first(g.memoryDir+"/memory.current", g.memoryDir+"/memory.usage_in_bytes")), 64)
	return v
}

// cpu is in milliseconds since the machine started.
func (g group) cpu() float64 {
	if ns, err := strconv.ParseFloat(string(first(g.cpuDir+"/cpuacct.usage")), 64); err == nil {
		return ns / 1e6
	}
	us, _ := strconv.ParseFloat(field(g.cpuDir+"/cpu.stat", "usage_usec"), 64)
	return us / 1e3
}

// pss is in MiB.
func (g group) pss() float64 {
	sum := 0.0
	for _, pid := range bytes.Fields(first(g.memoryDir + "/cgroup.procs")) {
		sum += kib("/proc/"+string(pid)+"/smaps_rollup", "Pss:") / 1024
	}
	return sum
}
