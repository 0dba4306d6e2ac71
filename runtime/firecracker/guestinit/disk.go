package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// Requests of linux/fs.h and linux/fsmap.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
	getFSMap = 0xc0c0583b
)

// openUpper opens the directory that the upper drive is mounted on.
func openUpper() (fd int, err error) {
	return unix.Open(rwDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

func syncUpper() error {
	fd, err := openUpper()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

// usedDisk is what files and directories have of the upper drive, in MiB.
func usedDisk() (int, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(rwDir, &s); err != nil {
		return 0, err
	}
	overhead, err := overheadBlocks()
	if err != nil {
		return 0, err
	}
	// With "minixdf" the file system counts itself among the blocks.
	return int(int64(s.Blocks-s.Bfree-overhead) * s.Bsize >> 20), nil
}

// overheadBlocks is what the file system needs for itself: s_overhead_clusters of its
// superblock, which the kernel fills in where mkfs did not.
func overheadBlocks() (uint64, error) {
	const superblock, field = 1024, 0x248
	f, err := os.Open(wire.UpperDrive)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [4]byte
	if _, err := f.ReadAt(b[:], superblock+field); err != nil {
		return 0, err
	}
	return uint64(binary.LittleEndian.Uint32(b[:])), nil
}

// freeze holds the upper drive's file system still while the host gives back what it
// does not use, of which it gets a list: until the host says something, or hangs up, or
// wire.FreezeFor has passed. The sandbox's programs wait when they write.
func freeze(c *os.File) (err error) {
	fd, err := openUpper()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := onFile(fd, fiFreeze, nil); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	until := time.Now().Add(wire.FreezeFor)
	defer func() {
		if terr := onFile(fd, fiThaw, nil); terr != nil && err == nil {
			err = fmt.Errorf("thaw: %w", terr)
		}
	}()
	list, err := freeExtents(fd, time.Now().Add(wire.FreezeFor/4))
	if err != nil {
		return err
	}
	if err := c.SetDeadline(until); err != nil {
		return err
	}
	if _, err := c.WriteString("ok\n"); err != nil {
		return err
	}
	if err := wire.WriteExtents(c, list); err != nil {
		return err
	}
	_, err = readLine(c)
	return err
}

// fsmap is struct fsmap of linux/fsmap.h, fsmapQuery its struct fsmap_head with room for
// answers.
type fsmap struct {
	device, flags                   uint32
	physical, owner, offset, length uint64
	_                               [3]uint64
}

type fsmapQuery struct {
	iflags, oflags, count, entries uint32
	_                              [6]uint64
	low, high                      fsmap
	recs                           [1024]fsmap
}

const (
	ownerFree    = 1
	specialOwner = 0x10 // flags
	lastRecord   = 0x20
	allOnes      = 1<<64 - 1
)

// freeExtents lists what the file system does not use, as far as it gets in the time.
func freeExtents(fd int, until time.Time) (list []wire.Extent, err error) {
	q := &fsmapQuery{count: 1024}
	q.high = fsmap{device: 1<<32 - 1, flags: 1<<32 - 1, physical: allOnes, owner: allOnes, offset: allOnes}
	for time.Now().Before(until) {
		if err := onFile(fd, getFSMap, unsafe.Pointer(q)); err != nil {
			return nil, fmt.Errorf("map of the file system: %w", err)
		}
		for _, r := range q.recs[:q.entries] {
			if r.flags&specialOwner == 0 || r.owner != ownerFree || r.length < wire.LeastExtent*wire.ExtentBlock {
				continue
			}
			if list = append(list, wire.Extent{Start: uint32(r.physical / wire.ExtentBlock), Count: uint32(r.length / wire.ExtentBlock)}); len(list) == wire.MaxExtents {
				return list, nil
			}
		}
		if q.entries == 0 || q.recs[q.entries-1].flags&lastRecord != 0 {
			break
		}
		q.low = q.recs[q.entries-1] // the next answer begins behind it
	}
	return list, nil
}

func onFile(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); e != 0 {
		return e
	}
	return nil
}
