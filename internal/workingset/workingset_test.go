package workingset

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const mib = 1 << 20

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// file is 32 MiB on the disk.
func file(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	check(t, err)
	t.Cleanup(func() { f.Close() })
	b := make([]byte, mib)
	for i := range 32 {
		b[0] = byte(i)
		_, err = f.Write(b)
		check(t, err)
	}
	check(t, f.Sync())
	return f
}

// drop takes the file out of the cache; where there is no such cache the test ends.
func drop(t *testing.T, f *os.File) {
	t.Helper()
	check(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	if n := cached(t, f, 0, 32*mib); n > mib {
		t.Skipf("%d bytes stay in the cache of this file system", n)
	}
}

// cached is how much of a part is in the host's cache.
func cached(t *testing.T, f *os.File, off, n int64) (bytes int64) {
	t.Helper()
	b, err := unix.Mmap(int(f.Fd()), off, int(n), unix.PROT_READ, unix.MAP_SHARED)
	check(t, err)
	defer func() { check(t, unix.Munmap(b)) }()
	in := make([]byte, n/4096)
	check(t, mincore(b, in))
	for _, p := range in {
		bytes += int64(p&1) * 4096
	}
	return bytes
}

// TestWorkingSet: the first process's pages, read or written, are what the second one
// finds in the cache.
func TestWorkingSet(t *testing.T) {
	f := file(t)
	drop(t, f)
	b, err := unix.Mmap(int(f.Fd()), 4*mib, 24*mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	check(t, err)
	defer func() { check(t, unix.Munmap(b)) }()
	check(t, unix.Madvise(b, unix.MADV_RANDOM)) // as it is asked for, no more
	read := b[2*mib]                            // 6 MiB of the file
	b[10*mib+8192] = read                       // 14 MiB
	set, err := Of(os.Getpid(), f)
	check(t, err)
	for _, want := range []int64{6 * mib, 14*mib + 8192} {
		if !slices.ContainsFunc(set, func(e Extent) bool { return e.Offset <= want && want < e.Offset+e.Length }) {
			t.Errorf("the page at %d is not in %v", want, set)
		}
	}
	if n := set.Bytes(); n > mib {
		t.Errorf("two pages are %d bytes", n)
	}
	var m Memory
	if _, ok := m.Recall(f); ok {
		t.Error("a file is known that nobody told of")
	}
	m.Remember(f, set)

	drop(t, f) // what is mapped stays; the rest goes
	check(t, unix.Madvise(b, unix.MADV_DONTNEED))
	drop(t, f)
	known, ok := m.Recall(f)
	if !ok || !slices.Equal(known, set) {
		t.Fatalf("recalled %v, %t", known, ok)
	}
	check(t, Prefetch(f, known))
	for _, e := range known {
		// The disk answers in its own time.
		for end := time.Now().Add(30 * time.Second); cached(t, f, e.Offset, e.Length) != e.Length; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("of %v %d bytes are in the cache", e, cached(t, f, e.Offset, e.Length))
			}
		}
	}
	if n := cached(t, f, 20*mib, 8*mib); n > 0 {
		t.Errorf("%d bytes were read that nobody touched", n)
	}

	_, err = f.WriteAt([]byte("x"), 0)
	check(t, err)
	if _, ok := m.Recall(f); ok {
		t.Error("a file that was changed is known still")
	}
}

// TestPrefetchOfLongPieces: a piece is read to its end, however little the device takes
// in one go.
func TestPrefetchOfLongPieces(t *testing.T) {
	f := file(t)
	drop(t, f)
	const long = 24 * mib
	check(t, Prefetch(f, Set{{mib, long}}))
	for end := time.Now().Add(30 * time.Second); cached(t, f, mib, long) != long; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("of %d bytes %d are in the cache", long, cached(t, f, mib, long))
		}
	}
}

// TestSet: what is near is fetched together.
func TestSet(t *testing.T) {
	var s Set
	for _, at := range []int64{0, 4096, 8192, 72 << 10, 200 << 10, mib} {
		s = s.add(at, 4096)
	}
	want := Set{{0, 76 << 10}, {200 << 10, 4096}, {mib, 4096}}
	if !slices.Equal(s, want) || s.Bytes() != 84<<10 {
		t.Errorf("%v (%d), want %v", s, s.Bytes(), want)
	}
}

// TestMemoryIsBounded: of many files the oldest are forgotten.
func TestMemoryIsBounded(t *testing.T) {
	var m Memory
	var first *os.File
	for i := range most + 1 {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		check(t, err)
		defer f.Close()
		if i == 0 {
			first = f
		}
		m.Remember(f, Set{{0, 4096}})
	}
	if _, ok := m.Recall(first); ok || len(m.known) != most || len(m.order) != most {
		t.Errorf("%d of %d are known, the first %t", len(m.known), most+1, ok)
	}
}

func mincore(b, in []byte) error {
	if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&in[0]))); e != 0 {
		return e
	}
	return nil
}

// TestFaults: a first look at memory is a fault.
func TestFaults(t *testing.T) {
	before, err := FaultsOf(os.Getpid())
	check(t, err)
	b, err := unix.Mmap(-1, 0, mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	check(t, err)
	defer func() { check(t, unix.Munmap(b)) }()
	check(t, unix.Madvise(b, unix.MADV_NOHUGEPAGE))
	for at := 0; at < mib; at += 4096 {
		b[at] = 1
	}
	after, err := FaultsOf(os.Getpid())
	check(t, err)
	if n := after.Minor - before.Minor; n < mib/4096 {
		t.Errorf("%d faults of %d pages", n, mib/4096)
	}
}
