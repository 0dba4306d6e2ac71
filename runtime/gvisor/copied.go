package gvisor

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/sparse"
)

// A guest that goes on after its snapshot stands still for as long as its memory is
// copied: nothing makes copies of a page at its next write. The memory is mapped shared,
// by the sandbox and by each of the guest's processes, so neither a private mapping nor a
// forked sandbox keeps what was; userfaultfd's write protection is for one address
// space, which would have to ask for it itself, and the sandbox's filter forbids that;
// and which pages have changed since an earlier snapshot the kernel forgets with the
// mapping that they were changed through. Files that share blocks (FICLONE) would have
// the memory on a disk, and what is not written yet is written first. gVisor copies on
// write what its guest's processes have in common after a fork, which is private memory
// alone: what is in files would be copied as before, each page would be a fault
// afterwards, what is copied would count for the guest, and gVisor's search for pages of
// zeros takes as long as a copy beside it. So where the host has the room the copy is
// made in memory first, several times as fast as a disk, and goes to the disk from there
// while the guest runs.
//
// The memory is this process's: the guest's own limit must not be charged. It is had,
// and filled, before the guest stops, in pages of 2 MiB where the kernel has them, and
// ends with the last descriptor, so that nothing is left by a process that is killed.

// copied is a pages' file in memory.
type copied struct {
	file  *os.File
	bytes []byte   // the file's mapping, which only the kernel reads: the sandbox could truncate the file
	mark  [16]byte // begins each page that was not written to
	give  func()   // tells the account
}

const (
	pageSize = 4 << 10
	hugeSize = 2 << 20
	// copiedSlack is the part of a copy that it may grow by until the guest stops.
	copiedSlack = 8
)

// copies is the account of the memory that copies take at the moment.
type copies struct {
	mu    sync.Mutex
	taken int64
	// rooms are the host's memory and each limit of this process's.
	rooms func() ([]cgroup.Room, error)
}

// take refuses what would leave less than a quarter free, or make all copies more than
// that: machines start and grow meanwhile.
func (c *copies) take(size int64) (give func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rooms, err := c.rooms()
	if err != nil {
		return nil, false
	}
	for _, r := range rooms {
		if c.taken+size > min(r.Total/4, r.Free-r.Total/4) {
			return nil, false
		}
	}
	c.taken += size
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.taken -= size
	}), true
}

// newCopied makes a file in memory that has room for size bytes, nil where there is none.
func (r *Runtime) newCopied(ctx context.Context, size int64) (*copied, error) {
	size += size/copiedSlack + hugeSize
	size -= size % hugeSize
	give, ok := r.copies.take(size)
	if !ok {
		return nil, nil
	}
	c := &copied{give: give}
	err := c.fill(ctx, size)
	if err == nil {
		return c, nil
	}
	c.close()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	r.cfg.Log.Debug("a snapshot goes to the disk without a copy in memory", "error", err)
	return nil, nil
}

// fill has the kernel find all the memory, and marks each page.
func (c *copied) fill(ctx context.Context, size int64) (err error) {
	_, _ = rand.Read(c.mark[:])
	if c.file, err = hugeFile(size); err != nil {
		return err
	}
	if err = c.file.Truncate(size); err != nil {
		return err
	}
	if c.bytes, err = unix.Mmap(int(c.file.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	// Memory that is not to be had is an error here, and a signal at the first touch.
	if err := unix.Fallocate(int(c.file.Fd()), 0, 0, size); err != nil {
		return os.NewSyscallError("fallocate", err)
	}
	// Below a virtual machine the host may have to find it, too, which can take longer than
	// to write as much to a disk.
	touches, going := errgroup.WithContext(ctx)
	parts := int64(runtime.NumCPU())
	for part := range parts {
		touches.Go(func() error {
			for at := part * hugeSize; at < size && going.Err() == nil; at += parts * hugeSize {
				for p := at; p < at+hugeSize; p += pageSize {
					copy(c.bytes[p:], c.mark[:])
				}
			}
			return ctx.Err()
		})
	}
	return touches.Wait()
}

// hugeFile makes a file without a name in a file system of its own, which has no place
// either: both end with the descriptor.
func hugeFile(size int64) (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	err = errors.Join(
		unix.FsconfigSetString(fs, "huge", "always"),
		unix.FsconfigSetString(fs, "size", strconv.FormatInt(size, 10)),
		unix.FsconfigSetString(fs, "mode", "0700"),
		unix.FsconfigCreate(fs))
	if err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	return os.NewFile(uintptr(fd), "pages"), nil
}

// size is how much was written to it: gVisor writes whole pages, from the front, and
// does not say how many.
func (c *copied) size() (int64, error) {
	var failed error
	pages := sort.Search(len(c.bytes)/pageSize, func(i int) bool {
		var b [len(c.mark)]byte
		if _, err := c.file.ReadAt(b[:], int64(i)*pageSize); err != nil {
			failed = err
		}
		return b == c.mark
	})
	return int64(pages) * pageSize, failed
}

const (
	copiedStep     = 4 << 20  // of a write to the disk
	copiedParallel = 4        // as much as a disk needs to be busy
	copiedAhead    = 64 << 20 // the file grows by so much: a write that lets it grow waits for all others
)

// writeTo writes it to an empty file, and gives the memory back on the way.
func (c *copied) writeTo(ctx context.Context, to *os.File) error {
	size, err := c.size()
	if err != nil {
		return err
	}
	writes, going := errgroup.WithContext(ctx)
	writes.SetLimit(copiedParallel)
	for at := int64(0); at < size && going.Err() == nil; at += copiedStep {
		if at%copiedAhead == 0 {
			if err := to.Truncate(min(at+copiedAhead, size)); err != nil {
				return errors.Join(err, writes.Wait())
			}
		}
		writes.Go(func() error {
			n := min(copiedStep, size-at)
			if _, err := to.WriteAt(c.bytes[at:at+n], at); err != nil {
				return err
			}
			return sparse.Release(c.file, at, n)
		})
	}
	return errors.Join(writes.Wait(), ctx.Err())
}

// close gives the memory back. gVisor may hold a file open that it failed to write.
func (c *copied) close() {
	if c.bytes != nil {
		_ = unix.Munmap(c.bytes)
	}
	if c.file != nil {
		_ = c.file.Truncate(0)
		c.file.Close()
	}
	c.give()
}

// rooms is what this process's memory comes from.
func (r *Runtime) rooms() ([]cgroup.Room, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	_, rest, _ := bytes.Cut(b, []byte("MemAvailable:"))
	var free int64
	if _, err := fmt.Sscan(string(rest), &free); err != nil {
		return nil, fmt.Errorf("/proc/meminfo: MemAvailable: %w", err)
	}
	rooms, err := r.cgroup.Rooms()
	return append(rooms, cgroup.Room{Total: int64(r.memory), Free: free << 10}), err
}

// makeCopy makes room in memory for a guest that has so many bytes there, and for its
// writable layer.
func (s *saving) makeCopy(ctx context.Context, memory int64) (err error) {
	var layer unix.Stat_t
	if !s.byItself() || s.outgrown || unix.Stat(s.birth.Upper, &layer) != nil {
		return nil
	}
	s.copy, err = s.m.r.newCopied(ctx, memory+layer.Blocks*512)
	return err
}

func (s *saving) dropCopy() {
	if s.copy != nil {
		s.copy.close()
		s.copy = nil
	}
}

// outgrew tells whether the guest had grown beyond its copy when it stopped. The next
// try goes to the disk.
func (s *saving) outgrew(err error) bool {
	if s.copy == nil || err == nil || !strings.Contains(err.Error(), unix.ENOSPC.Error()) {
		return false
	}
	s.outgrown = true
	return true
}
