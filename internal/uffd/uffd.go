// Package uffd fills the memory of another process from a file, page by page, as its
// faults ask for them and otherwise in an order that is given: what Linux calls
// userfaultfd, for memory in pages of 2 MiB. The other process registers its memory and
// sends the descriptor; that is all that it is trusted with.
package uffd

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PageSize is that of all memory here.
const PageSize = 2 << 20

// The ioctls and messages of linux/userfaultfd.h, the same on amd64 and arm64.
const (
	ioctlUnregister = 0x8010aa01
	ioctlWake       = 0x8010aa02
	ioctlCopy       = 0xc028aa03

	messageSize    = 32
	eventPagefault = 0x12
)

// Ioctls are the numbers of all that Fill calls.
func Ioctls() []uint32 { return []uint32{ioctlUnregister, ioctlWake, ioctlCopy} }

// descriptor is a userfaultfd. It does not block.
type descriptor int

// copyTo is one of ioctlCopy's arguments.
type copyTo struct {
	dst, src, length, mode uint64
	copied                 int64
}

// place puts a page at the address, and wakes whoever waits for it. One that is there
// already is left alone.
func (d descriptor) place(at uint64, page []byte) error {
	for {
		c := copyTo{dst: at, src: uint64(uintptr(unsafe.Pointer(&page[0]))), length: uint64(len(page))}
		switch err := d.ioctl(ioctlCopy, unsafe.Pointer(&c)); err {
		case unix.EAGAIN, unix.EINTR: // its memory is being changed
		case unix.EEXIST:
			return d.rangeOf(ioctlWake, at, uint64(len(page)))
		default:
			return err
		}
	}
}

// unregister lets the kernel handle the faults of a range again: what is not there
// becomes zeros. Those who wait are woken.
func (d descriptor) unregister(r Region) error { return d.rangeOf(ioctlUnregister, r.Base, r.Size) }

func (d descriptor) rangeOf(call uintptr, start, length uint64) error {
	return d.ioctl(call, unsafe.Pointer(&[2]uint64{start, length}))
}

func (d descriptor) ioctl(call uintptr, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(d), call, uintptr(arg)); e != 0 {
		return e
	}
	return nil
}

// faults returns the addresses that somebody waits for; with wait it waits for one. Any
// other event is an error: memory that was taken away would have to come back as zeros,
// and nobody here takes any.
func (d descriptor) faults(wait bool) (addresses []uint64, err error) {
	until := &unix.Timespec{}
	if wait {
		until = nil
	}
	poll := []unix.PollFd{{Fd: int32(d), Events: unix.POLLIN}}
	if _, err := unix.Ppoll(poll, until, nil); err != nil && err != unix.EINTR {
		return nil, fmt.Errorf("poll: %w", err)
	}
	if poll[0].Revents == 0 {
		return nil, nil
	}
	if poll[0].Revents&unix.POLLIN == 0 {
		return nil, fmt.Errorf("the descriptor tells of no faults (%#x)", poll[0].Revents)
	}
	var b [16 * messageSize]byte
	n, err := unix.Read(int(d), b[:])
	if err == unix.EAGAIN || err == unix.EINTR {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	return parseFaults(b[:max(0, n)])
}

func parseFaults(b []byte) (addresses []uint64, err error) {
	for ; len(b) >= messageSize; b = b[messageSize:] {
		if b[0] != eventPagefault {
			return nil, fmt.Errorf("event %#x is none that is expected", b[0])
		}
		addresses = append(addresses, binary.NativeEndian.Uint64(b[16:]))
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("a message of %d bytes", len(b))
	}
	return addresses, nil
}
