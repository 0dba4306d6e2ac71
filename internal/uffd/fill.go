package uffd

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/internal/sparse"
)

// ErrGone means that the other process has ended.
var ErrGone = errors.New("the process whose memory it is has ended")

// Fill fills the regions, from a descriptor of Receive's, and returns when no fault will
// ever ask again: what somebody waits for first, then Order, then the rest of the file.
// Its holes are left to the kernel, which makes zeros of them.
type Fill struct {
	File *os.File
	// Order are the pages of the file that are filled first; wrong ones are passed over.
	Order []int
	// OnlyAsked leaves out all that nobody waits for; Run then goes on for as long as the
	// other process may wait.
	OnlyAsked bool
	// Asked, when it is set, is called with each page of the file that was waited for.
	Asked func(page int)

	uffd    descriptor
	regions []Region
	data    []bool // whether the page has any; in the file's order
	there   []bool
	buf     []byte
}

// Run does it.
func (f *Fill) Run(fd int, regions []Region) error {
	f.uffd, f.regions = descriptor(fd), regions
	last := regions[len(regions)-1]
	n := int((last.Offset + last.Size) / PageSize)
	f.data, f.there = make([]bool, n), make([]bool, n)
	err := sparse.Extents(f.File, func(off, length int64) error {
		for p := off / PageSize; p < int64(n) && p*PageSize < off+length; p++ {
			f.data[p] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	// By mmap, so that it is of whole pages.
	if f.buf, err = unix.Mmap(-1, 0, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON); err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	defer unix.Munmap(f.buf)
	if err = f.all(); errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	return err
}

func (f *Fill) all() error {
	for f.OnlyAsked {
		if err := f.serve(true); err != nil {
			return err
		}
	}
	for _, page := range f.Order {
		if page >= 0 && page < len(f.data) {
			if err := f.next(page); err != nil {
				return err
			}
		}
	}
	for page := range f.data {
		if err := f.next(page); err != nil {
			return err
		}
	}
	for _, r := range f.regions {
		if err := f.uffd.unregister(r); err != nil {
			return fmt.Errorf("unregister: %w", err)
		}
	}
	return nil
}

// next fills the page unless it is a hole or there, after those that are waited for.
func (f *Fill) next(page int) error {
	if err := f.serve(false); err != nil {
		return err
	}
	if !f.data[page] || f.there[page] {
		return nil
	}
	return f.fill(page)
}

// serve fills what is waited for; with wait it waits until something is.
func (f *Fill) serve(wait bool) error {
	waited, err := f.uffd.faults(wait)
	if err != nil {
		return err
	}
	for _, at := range waited {
		p, ok := f.pageOf(at)
		if !ok {
			return fmt.Errorf("a fault at %#x, outside of the regions", at)
		}
		if f.Asked != nil && !f.there[p] {
			f.Asked(p)
		}
		if err := f.fill(p); err != nil {
			return err
		}
	}
	return nil
}

// fill puts the page in its place. A repeat wakes who waits for it.
func (f *Fill) fill(page int) error {
	off := uint64(page) * PageSize
	if f.data[page] {
		if n, err := f.File.ReadAt(f.buf, int64(off)); n < PageSize {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	} else {
		clear(f.buf)
	}
	for _, r := range f.regions {
		if off >= r.Offset && off < r.Offset+r.Size {
			if err := f.uffd.place(r.Base+off-r.Offset, f.buf); err != nil {
				return fmt.Errorf("page %d: %w", page, err)
			}
		}
	}
	f.there[page] = true
	return nil
}

// pageOf is the page of the file that belongs at the address.
func (f *Fill) pageOf(at uint64) (page int, ok bool) {
	for _, r := range f.regions {
		if at >= r.Base && at < r.Base+r.Size {
			return int((at - r.Base + r.Offset) / PageSize), true
		}
	}
	return 0, false
}
