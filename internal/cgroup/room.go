package cgroup

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Room is how much memory something has in all, and how much of it is free, in bytes.
type Room struct{ Total, Free int64 }

// Rooms returns the limits of this process's memory: its own group's and those of the
// groups around it, as far as they can be seen from here.
func (h *Hierarchy) Rooms() ([]Room, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	return h.rooms(b), nil
}

func (h *Hierarchy) rooms(self []byte) (out []Room) {
	root, limit, used := h.root, "memory.max", "memory.current"
	if !h.V2() {
		root, limit, used = h.roots["memory"], "memory.limit_in_bytes", "memory.usage_in_bytes"
	}
	for dir := h.own(self); ; dir = filepath.Dir(dir) {
		at := filepath.Join(root, dir)
		total, err := number(at, limit) // "max" is no number
		if err == nil && total < unlimited {
			if n, err := number(at, used); err == nil {
				out = append(out, Room{total, max(total-n, 0)})
			}
		}
		if dir == "/" {
			return out
		}
	}
}

// unlimited is less than what version 1 says of a group without a limit.
const unlimited = 1 << 62

// own is this process's group, as /proc tells it: "4:memory:/a/b", or "0::/a/b".
func (h *Hierarchy) own(self []byte) string {
	for s := bufio.NewScanner(bytes.NewReader(self)); s.Scan(); {
		f := strings.SplitN(s.Text(), ":", 3)
		if len(f) == 3 && (h.V2() && f[1] == "" || !h.V2() && slices.Contains(strings.Split(f[1], ","), "memory")) {
			return filepath.Join("/", f[2])
		}
	}
	return "/"
}
