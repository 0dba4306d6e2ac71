// Package workingset finds out which pages of a file a process has in its memory, and
// has the host read such pages again in one go, before another process comes for them
// one by one.
package workingset

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Set is parts of a file, in its order and apart from each other.
type Set []Extent

// Extent is in bytes.
type Extent struct{ Offset, Length int64 }

// Bytes is how much of the file the set is.
func (s Set) Bytes() (n int64) {
	for _, e := range s {
		n += e.Length
	}
	return n
}

// gap is how far apart two pages are that one read fetches together: a disk is asked
// for what is between them sooner than a second time.
const gap = 64 << 10

func (s Set) add(off, n int64) Set {
	if last := len(s) - 1; last >= 0 && off >= s[last].Offset && off <= s[last].Offset+s[last].Length+gap {
		s[last].Length = max(s[last].Length, off+n-s[last].Offset)
		return s
	}
	return append(s, Extent{off, n})
}

// Of returns which parts of the open file the process has mapped and touched, whether
// it read or wrote them. It stops no one. The file is mapped in the order of its pages.
func Of(pid int, f *os.File) (Set, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	pages, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	defer pages.Close()
	var set Set
	for s := bufio.NewScanner(maps); s.Scan(); {
		// "7f12a000-7f13a000 rw-p 00001000 fe:00 131 /restore.mem"
		w := strings.Fields(s.Text())
		if len(w) < 5 || w[4] != strconv.FormatUint(st.Ino, 10) {
			continue
		}
		var begin, end, off int64
		if _, err := fmt.Sscanf(w[0]+" "+w[2], "%x-%x %x", &begin, &end, &off); err != nil {
			return nil, fmt.Errorf("/proc/%d/maps has an unknown form: %w", pid, err)
		}
		if set, err = touched(set, pages, begin, end, off); err != nil {
			return nil, err
		}
	}
	return set, nil
}

// touched adds the pages of one mapping.
func touched(set Set, pagemap io.ReaderAt, begin, end, off int64) (Set, error) {
	const present = 1<<63 | 1<<62 // in memory, or swapped out
	size := int64(os.Getpagesize())
	buf := make([]byte, 8*64<<10)
	for at := begin; at < end; {
		b := buf[:min(int64(len(buf)), (end-at)/size*8)]
		n, err := pagemap.ReadAt(b, at/size*8)
		if n < 8 {
			return set, errors.Join(errors.New("pagemap is short"), err)
		}
		for i := 0; i+8 <= n; i += 8 {
			if binary.NativeEndian.Uint64(b[i:])&present != 0 {
				set = set.add(off+at-begin+int64(i)/8*size, size)
			}
		}
		at += int64(n) / 8 * size
	}
	return set, nil
}

// oneCall is how much the host is asked for at a time: of a longer piece the kernel
// reads what the device takes in one go, and forgets the rest (force_page_cache_ra).
// This is its default for devices that say nothing.
const oneCall = 128 << 10

// Prefetch has the host read the set into its cache. It returns when the disk was
// asked, not when it has answered. A file system without a cache is no error.
func Prefetch(f *os.File, s Set) error {
	for _, e := range s {
		for off, end := e.Offset, e.Offset+e.Length; off < end; off += oneCall {
			if err := unix.Fadvise(int(f.Fd()), off, min(oneCall, end-off), unix.FADV_WILLNEED); err != nil && err != unix.EINVAL {
				return os.NewSyscallError("fadvise", err)
			}
		}
	}
	return nil
}

// Faults are the pages that a process had to wait for in its life.
type Faults struct {
	Minor int64 // the host had them
	Major int64 // the disk had to be asked
}

// FaultsOf reads a process's account.
func FaultsOf(pid int) (f Faults, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return f, err
	}
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	w := strings.Fields(rest) // from field 3 on
	if len(w) < 10 {
		return f, fmt.Errorf("/proc/%d/stat has an unknown form", pid)
	}
	f.Minor, err = strconv.ParseInt(w[7], 10, 64)
	if err == nil {
		f.Major, err = strconv.ParseInt(w[9], 10, 64)
	}
	return f, err
}

// most is how many files' sets are remembered.
const most = 256

// Memory remembers the sets of files. The zero value is empty; all methods may run at
// once. What it knows ends with this process: the next one finds it out again.
type Memory struct {
	mu    sync.Mutex
	known map[identity]Set
	order []identity // oldest first
}

// identity tells a file from others that had its name or its number.
type identity struct {
	dev, ino uint64
	size     int64
	written  time.Time
}

func identify(f *os.File) (identity, error) {
	st, err := f.Stat()
	if err != nil {
		return identity{}, err
	}
	sys := st.Sys().(*syscall.Stat_t)
	return identity{uint64(sys.Dev), sys.Ino, st.Size(), st.ModTime()}, nil
}

// Recall returns what was remembered of the file.
func (m *Memory) Recall(f *os.File) (s Set, ok bool) {
	id, err := identify(f)
	if err != nil {
		return nil, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok = m.known[id]
	return s, ok
}

// Remember keeps the set of the file; the oldest of many is forgotten.
func (m *Memory) Remember(f *os.File, s Set) {
	id, err := identify(f)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known = map[identity]Set{}
	}
	if _, again := m.known[id]; !again {
		m.order = append(m.order, id)
	}
	m.known[id] = s
	if len(m.order) > most {
		delete(m.known, m.order[0])
		m.order = m.order[1:]
	}
}
