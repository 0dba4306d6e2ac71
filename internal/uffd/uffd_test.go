package uffd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// memoryFile has two pages of data around two that are holes, each data page full of its
// number.
func memoryFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	check(t, err)
	t.Cleanup(func() { f.Close() })
	check(t, f.Truncate(4*PageSize))
	for _, p := range []int{0, 3} {
		_, err = f.WriteAt(bytes.Repeat([]byte{byte(p + 1)}, PageSize), int64(p)*PageSize)
		check(t, err)
	}
	return f
}

// guarded is memory whose faults a descriptor tells of, as a VMM makes it, in ordinary
// pages: the calls are the same.
func guarded(t *testing.T, pages int) (fd int, mem []byte) {
	t.Helper()
	n, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if e != 0 {
		t.Skip("this host lets nobody have a userfaultfd: ", e)
	}
	fd = int(n)
	t.Cleanup(func() { unix.Close(fd) })
	d := descriptor(fd)
	const ioctlAPI, ioctlRegister = 0xc018aa3f, 0xc020aa00
	check(t, d.ioctl(ioctlAPI, unsafe.Pointer(&[3]uint64{0xaa, 1 << 3}))) // with UFFD_EVENT_REMOVE
	all, err := unix.Mmap(-1, 0, (pages+1)*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	check(t, err)
	t.Cleanup(func() { check(t, unix.Munmap(all)) })
	skip := PageSize - int(uintptr(unsafe.Pointer(&all[0]))%PageSize)
	mem = all[skip:][:pages*PageSize]
	check(t, d.ioctl(ioctlRegister, unsafe.Pointer(&[4]uint64{address(mem), uint64(len(mem)), 1})))
	return fd, mem
}

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

// look reads a byte as a system call does: a goroutine that waited for a page itself would
// stand in the way of the collector.
func look(b []byte) (byte, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	var got [1]byte
	_, err := unix.Write(p[1], b[:1])
	if err == nil {
		_, err = unix.Read(p[0], got[:])
	}
	return got[0], err
}

// TestFill: all of the file is where it belongs, holes are zeros, and nobody is needed any
// more when it is done. Two regions are filled from one file.
func TestFill(t *testing.T) {
	f := memoryFile(t)
	fd, mem := guarded(t, 4)
	regions := []Region{
		{Base: address(mem) + 3*PageSize, Size: PageSize, Offset: 0, Page: PageSize}, // the first page is the last
		{Base: address(mem), Size: 3 * PageSize, Offset: PageSize, Page: PageSize},
	}
	check(t, (&Fill{File: f, Order: []int{3, 99, -1, 3}}).Run(fd, regions))
	for i, want := range []byte{0, 0, 4, 1} {
		if page := mem[i*PageSize:][:PageSize]; !bytes.Equal(page, bytes.Repeat([]byte{want}, PageSize)) {
			t.Errorf("page %d does not have %d everywhere", i, want)
		}
	}
}

// TestFillAsked: who waits gets what belongs there, be it a hole, and is noted.
func TestFillAsked(t *testing.T) {
	f := memoryFile(t)
	fd, mem := guarded(t, 4)
	asked := make(chan int, 16)
	ended := make(chan error, 1)
	go func() {
		ended <- (&Fill{File: f, OnlyAsked: true, Asked: func(p int) { asked <- p }}).Run(fd, []Region{{Base: address(mem), Size: 4 * PageSize, Page: PageSize}})
	}()
	for _, c := range []struct {
		page int
		want byte
	}{{3, 4}, {1, 0}, {0, 1}} {
		got, err := look(mem[c.page*PageSize+PageSize/2:])
		if err != nil || got != c.want {
			t.Errorf("page %d: %d, %v, want %d", c.page, got, err, c.want)
		}
		if p := <-asked; p != c.page {
			t.Errorf("page %d was noted, %d was waited for", p, c.page)
		}
	}
	// Memory that is taken away is no part of the bargain: it would be wrong, so it ends.
	go func() { _ = unix.Madvise(mem[:PageSize], unix.MADV_DONTNEED) }()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "event") {
		t.Errorf("memory was taken away: %v", err)
	}
}

// TestFillRefusesFaultOutside: a descriptor that tells of other memory than was said.
func TestFillRefusesFaultOutside(t *testing.T) {
	f := memoryFile(t)
	fd, mem := guarded(t, 6)
	ended := make(chan error, 1)
	go func() {
		ended <- (&Fill{File: f, OnlyAsked: true}).Run(fd, []Region{{Base: address(mem), Size: 4 * PageSize, Page: PageSize}})
	}()
	go func() { _, _ = look(mem[5*PageSize:]) }()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "outside") {
		t.Errorf("%v", err)
	}
	check(t, descriptor(fd).unregister(Region{Base: address(mem), Size: 6 * PageSize}))
}

// TestParseRegions: what is not exactly a guest's memory and its file is refused.
func TestParseRegions(t *testing.T) {
	const p = PageSize
	region := func(base, size, offset uint64) Region { return Region{base, size, offset, p} }
	for name, c := range map[string]struct {
		list []Region
		size int64
		ok   bool
	}{
		"one":                {[]Region{region(p, 2*p, 0)}, 2 * p, true},
		"two":                {[]Region{region(8*p, p, 0), region(p, 2*p, p)}, 3 * p, true},
		"none":               {nil, 0, false},
		"empty":              {[]Region{region(p, 0, 0)}, 0, false},
		"small pages":        {[]Region{{p, p, 0, 4096}}, p, false},
		"not aligned":        {[]Region{region(p+4096, p, 0)}, p, false},
		"half a page":        {[]Region{region(p, p/2, 0)}, p / 2, false},
		"beyond the file":    {[]Region{region(p, 2*p, 0)}, p, false},
		"less than the file": {[]Region{region(p, p, 0)}, 2 * p, false},
		"offset":             {[]Region{region(p, p, p)}, p, false},
		"the same twice":     {[]Region{region(p, p, 0), region(p, p, p)}, 2 * p, false},
		"overlap":            {[]Region{region(2*p, 2*p, 0), region(p, 2*p, 2*p)}, 4 * p, false},
		"around the end":     {[]Region{region(1<<64-p, 2*p, 0)}, 2 * p, false},
		"huge":               {[]Region{region(p, 1<<63, 0)}, p, false},
		"many":               {slices.Repeat([]Region{region(p, p, 0)}, 17), 17 * p, false},
	} {
		text, err := json.Marshal(c.list)
		check(t, err)
		if _, err := ParseRegions(text, c.size); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	// As Firecracker 1.12 and 1.16 write it.
	text := `[{"base_host_virt_addr":139637976727552,"size":142606336,"offset":0,"page_size":2097152,"page_size_kib":2097152}]`
	if _, err := ParseRegions([]byte(text), 142606336); err != nil {
		t.Error(err)
	}
}

// FuzzParseRegions: whatever is accepted lies in the file and in a process, apart from
// each other.
func FuzzParseRegions(f *testing.F) {
	f.Add([]byte(`[{"base_host_virt_addr":4194304,"size":4194304,"offset":0,"page_size":2097152}]`), int64(4194304))
	f.Add([]byte(`[{"base_host_virt_addr":18446744073709551615,"size":2097152,"offset":0,"page_size":2097152}]`), int64(2097152))
	f.Fuzz(func(t *testing.T, text []byte, size int64) {
		list, err := ParseRegions(text, size)
		if err != nil {
			return
		}
		total := uint64(0)
		for i, r := range list {
			total += r.Size
			if r.Size == 0 || r.Base+r.Size < r.Base || r.Offset+r.Size > uint64(size) || (r.Base|r.Size|r.Offset)%PageSize != 0 {
				t.Fatalf("%+v of %d bytes was accepted", r, size)
			}
			for _, o := range list[i+1:] {
				if r.Base < o.Base+o.Size && o.Base < r.Base+r.Size || r.Offset < o.Offset+o.Size && o.Offset < r.Offset+r.Size {
					t.Fatalf("%+v and %+v were accepted", r, o)
				}
			}
		}
		if total != uint64(size) {
			t.Fatalf("%d bytes for a file of %d", total, size)
		}
	})
}

// FuzzParseFaults: strange messages are errors.
func FuzzParseFaults(f *testing.F) {
	f.Add(make([]byte, messageSize))
	f.Add(append([]byte{eventPagefault}, make([]byte, messageSize)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if list, err := parseFaults(b); err == nil && len(list)*messageSize != len(b) {
			t.Fatalf("%d faults of %d bytes", len(list), len(b))
		}
	})
}

// TestReceive: the message has one descriptor, and that is a userfaultfd.
func TestReceive(t *testing.T) {
	text := fmt.Appendf(nil, `[{"base_host_virt_addr":%d,"size":%d,"offset":0,"page_size":%d}]`, 4*PageSize, PageSize, PageSize)
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer null.Close()
	one := []int{int(null.Fd())}
	for _, c := range []struct {
		name string
		text []byte
		fds  []int
		uffd bool
		ok   bool
	}{
		{"good", text, one, true, true},
		{"another file", text, one, false, false},
		{"no descriptor", text, nil, true, false},
		{"two", text, []int{one[0], one[0]}, true, false},
		{"many", text, slices.Repeat(one, 200), true, false},
		{"no regions", []byte("[]"), one, true, false},
		{"rubbish", []byte("\x00\xff{"), one, true, false},
		{"long", bytes.Repeat([]byte(" "), 2*mostMessage), one, true, false},
		{"nothing", nil, nil, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			check(t, err)
			defer unix.Close(pair[0])
			var oob []byte
			if len(c.fds) > 0 {
				oob = unix.UnixRights(c.fds...)
			}
			if len(c.text) > 0 {
				check(t, unix.Sendmsg(pair[1], c.text, oob, nil, 0))
			}
			unix.Close(pair[1])
			before := open(t)
			fd, regions, err := Receive(pair[0], PageSize, func(int) bool { return c.uffd })
			if (err == nil) != c.ok {
				t.Errorf("%d, %v, %v", fd, regions, err)
			}
			if err == nil {
				unix.Close(fd)
			}
			if after := open(t); after != before {
				t.Errorf("%d descriptors are open, %d were before", after, before)
			}
		})
	}
}

func open(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(all)
}
