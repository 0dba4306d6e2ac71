package main

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	rawBlock   = 4 << 20 // bytes of a write
	rawWriters = 4       // writes in flight
)

// writeDurably writes so many bytes to a file in dir and returns how long that took
// until they were on the disk: past the host's cache where the file system can, with
// several large writes in flight. This is what a pause of as much can at best take.
func writeDurably(dir string, size int64) (took time.Duration, err error) {
	block, err := unix.Mmap(-1, 0, rawBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return 0, os.NewSyscallError("mmap", err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(block)) }()
	_, _ = rand.Read(block)
	path := filepath.Join(dir, "raw-write")
	begin := time.Now()
	const flags = os.O_CREATE | os.O_EXCL | os.O_WRONLY
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) { // such as tmpfs
		if err = os.Remove(path); err == nil || errors.Is(err, fs.ErrNotExist) {
			f, err = os.OpenFile(path, flags, 0o600)
		}
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	blocks := (size + rawBlock - 1) / rawBlock
	if err := unix.Fallocate(int(f.Fd()), 0, 0, blocks*rawBlock); err != nil && err != unix.EOPNOTSUPP {
		return 0, os.NewSyscallError("fallocate", err)
	}
	var g errgroup.Group
	for w := range int64(rawWriters) {
		g.Go(func() error {
			for i := w; i < blocks; i += rawWriters {
				if _, err := f.WriteAt(block, i*rawBlock); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	err = f.Sync()
	return time.Since(begin), err
}
