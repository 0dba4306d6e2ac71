package gvisor

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"
)

// TestCacheReader: what is read comes to the ranges that it is for, in their order,
// also when several reads are under way; a file that is shorter than it was told ends
// the read that meets its end, and no other.
func TestCacheReader(t *testing.T) {
	const page = 4096
	pages := make([]byte, 8*page)
	_, _ = rand.Read(pages)
	path := filepath.Join(t.TempDir(), "pages")
	check(t, os.WriteFile(path, pages, 0o600))
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	check(t, err)
	guest, err := memFile("guest", make([]byte, 16*page))
	check(t, err)
	defer guest.Close()

	r := &cacheReader{fd: fd}
	to, err := r.RegisterDestinationFD(int32(guest.Fd()), 16*page, nil)
	check(t, err)
	at := func(first, n uint64) memmap.FileRange {
		return memmap.FileRange{Start: first * page, End: (first + n) * page}
	}
	r.AddReadv(0, 2*page, 3*page, to, []memmap.FileRange{at(9, 1), at(4, 2)}, nil)
	r.AddRead(1, 0, to, at(0, 2), nil)
	r.AddRead(2, 7*page, to, at(14, 2), nil)
	done, err := r.Wait(nil, 1)
	check(t, err)
	if len(done) != 3 {
		t.Fatalf("%d reads of 3 are done", len(done))
	}
	want := map[int]stateio.Completion{0: {ID: 0, N: 3 * page}, 1: {ID: 1, N: 2 * page}, 2: {ID: 2, Err: io.EOF}}
	for _, c := range done {
		if w := want[c.ID]; c.N != w.N || !errors.Is(c.Err, w.Err) {
			t.Errorf("%+v, want %+v", c, w)
		}
	}
	got := make([]byte, 16*page)
	_, err = guest.ReadAt(got, 0)
	check(t, err)
	for _, p := range []struct{ from, to int }{{2, 9}, {3, 4}, {4, 5}, {0, 0}, {1, 1}} {
		if !bytes.Equal(got[p.to*page:(p.to+1)*page], pages[p.from*page:(p.from+1)*page]) {
			t.Errorf("page %d of the guest is not page %d of the file", p.to, p.from)
		}
	}
	if more, err := r.Wait(nil, 0); len(more) != 0 || err != nil {
		t.Errorf("%d reads more, %v", len(more), err)
	}
	check(t, r.Close())
}
