// Package agentfs makes the small read-only file systems in which guests get their
// agent. All guests with the same agent have the same file, beside the agent's binary
// and named after its content: its pages are shared, and nobody in a guest can change
// it.
package agentfs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/atomicfile"
	"github.com/nacrehq/nacre/internal/snapfile"
)

// Images are the file systems of one driver. The zero value but for Prefix is ready;
// all methods may run at once.
type Images struct {
	Prefix string // of their names: PREFIX-<32 hex digits>.erofs

	mu   sync.Mutex
	made map[identity]string
}

// identity tells a binary from what the same path held before.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// Of returns the path of the file system that build makes of the binary. The sum
// names what the file system holds.
func (i *Images) Of(binary string, build func(program []byte) (sum [16]byte, image []byte, err error)) (string, error) {
	f, err := os.Open(binary)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	key := identity{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}
	i.mu.Lock()
	defer i.mu.Unlock()
	if path := i.made[key]; path != "" {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil || string(magic[:]) != "\x7fELF" {
		return "", nacre.Errorf(nacre.CodeInvalid, "the agent %s is no program", binary)
	}
	program, err := io.ReadAll(f)
	if err != nil {
		return "", err
	}
	sum, img, err := build(program)
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(binary), i.name(hex.EncodeToString(sum[:])))
	if old, err := os.ReadFile(path); err != nil || !bytes.Equal(old, img) {
		if err := atomicfile.Write(path, img, 0o444); err != nil {
			return "", err
		}
	}
	if i.made == nil {
		i.made = map[identity]string{}
	}
	i.made[key] = path
	return path, nil
}

func (i *Images) name(sum string) string { return i.Prefix + "-" + sum + ".erofs" }

// named tells whether a file may be one of ours.
func (i *Images) named(file string) bool {
	sum, ok := strings.CutSuffix(strings.TrimPrefix(file, i.Prefix+"-"), ".erofs")
	return ok && len(sum) == 32 && strings.Trim(sum, "0123456789abcdef") == "" && file == i.name(sum)
}

// Keep brings the file system of a snapshot's guest, when verify finds it whole, to
// the others in dir: so that it is there when the snapshot is not.
func (i *Images) Keep(src, name, dir string, verify func() error) (string, error) {
	if !i.named(name) {
		return "", snapfile.Damaged(snapfile.Manifest, fmt.Errorf("it names the agent %q", name))
	}
	path := filepath.Join(dir, name)
	st, err := os.Stat(src)
	if err != nil {
		return "", err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if own, err := os.Stat(path); err == nil && own.Size() == st.Size() {
		now := time.Now()
		return path, os.Chtimes(path, now, now)
	}
	if err := verify(); err != nil {
		return "", err
	}
	b, err := os.ReadFile(src)
	if err != nil {
		return "", err
	}
	return path, atomicfile.Write(path, b, 0o444)
}

// Grace is how long a file system stays that no machine uses: a start that was given
// its path may not have opened it yet.
const Grace = 10 * time.Minute

// Sweep removes the directory's file systems that are neither used, nor of an agent
// that Of was asked for, nor younger than Grace. Snapshots have copies of their own.
func (i *Images) Sweep(dir string, used map[string]bool, now time.Time) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	mine := map[string]bool{}
	for _, path := range i.made {
		mine[path] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !i.named(e.Name()) || used[path] || mine[path] {
			continue
		}
		if st, err := e.Info(); err == nil && st.ModTime().Before(now.Add(-Grace)) {
			failed = append(failed, os.Remove(path))
		}
	}
	return errors.Join(failed...)
}
