package agent

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/nacrehq/nacre"
)

// noMounts refuses to remove a tree that another file system is mounted in. What is
// mounted is not what the caller means to delete, and in /proc of gVisor a walk
// leaves the tree: it opens the links /proc/PID/root and cwd even when told not to
// follow links, and would delete the whole guest behind them.
func noMounts(path string) error {
	if fi, err := os.Lstat(path); err != nil || !fi.IsDir() {
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
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		switch point := unescapeMount(fields[4]); {
		case point == path:
			return nacre.Invalidf("path", "a file system is mounted at '%s', which can be neither moved nor removed", validText(path))
		case strings.HasPrefix(point, path+"/"):
			return nacre.Invalidf("path", "'%s' can be neither removed nor moved to another file system: one is mounted at '%s'; unmount it first", validText(path), validText(point))
		}
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
