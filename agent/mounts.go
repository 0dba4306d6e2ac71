package agent

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/nacrehq/nacre"
)

// mayRemove refuses the removal of a tree that another file system is mounted in, and of
// what is the kernel's. What is mounted is not what the caller means to delete, and in
// /proc of gVisor a walk leaves the tree: links there, such as self and PID/root, are
// opened as the directories behind them even by who follows no links, and the whole
// guest would be deleted.
func mayRemove(path string) error {
	if _, err := os.Lstat(path); err != nil {
		return nil
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return fileError(err, path)
	}
	path = filepath.Join(dir, filepath.Base(path))
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fileError(err, path)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	var within, kind string // the innermost mount that holds the path
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if len(fields) < 5 {
			continue
		}
		switch point := unescapeMount(fields[4]); {
		case point == path:
			return nacre.Invalidf("path", "a file system is mounted at '%s', which can be neither moved nor removed", validText(path))
		case strings.HasPrefix(point, path+"/"):
			return nacre.Invalidf("path", "'%s' can be neither removed nor moved to another file system: one is mounted at '%s'; unmount it first", validText(path), validText(point))
		case strings.HasPrefix(path, strings.TrimSuffix(point, "/")+"/") && len(point) >= len(within):
			within = point
			kind, _, _ = strings.Cut(after, " ")
		}
	}
	switch kind {
	case "proc", "sysfs", "cgroup", "cgroup2", "devpts":
		return nacre.Errorf(nacre.CodeForbidden, "'%s' belongs to the kernel, which can be neither moved nor removed", validText(path))
	}
	return fileError(lines.Err(), path)
}

// unescapeMount decodes the \040 of mountinfo.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
