package gvisor

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"

	"github.com/nacrehq/nacre/internal/snapfile"
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

// TestPagesInTheCache: the daemon finds that a snapshot's pages are in the host's cache,
// and the sandbox, which may not ask, believes it.
func TestPagesInTheCache(t *testing.T) {
	dir := t.TempDir()
	for _, f := range loadFiles {
		check(t, os.WriteFile(filepath.Join(dir, f.name), make([]byte, 64<<10), 0o600))
	}
	l := &launch{snap: &snapshot{Snapshot: &snapfile.Snapshot{Dir: dir}}}
	defer l.close()
	check(t, l.giveSnapshot())
	b, err := json.Marshal(l.orders)
	check(t, err)
	var o orders
	check(t, json.Unmarshal(b, &o))
	if !isCached(int(l.own[len(l.own)-1].Fd()), 64<<10) {
		t.Skip("this kernel does not tell what is in its cache")
	}
	if !o.Cached {
		t.Error("the sandbox is not told that its pages are in the cache")
	}
	for _, cached := range []bool{true, false} {
		fd, err := unix.Open(filepath.Join(dir, pagesFile), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		check(t, err)
		r, err := loader{fds: map[string]int{checkpointfiles.PagesFileName: fd}, cached: cached}.OpenRead(checkpointfiles.PagesFileName)
		check(t, err)
		if _, copies := r.(*cacheReader); copies != cached {
			t.Errorf("%T for pages of which it is told %t", r, cached)
		}
		check(t, r.Close())
	}
}
