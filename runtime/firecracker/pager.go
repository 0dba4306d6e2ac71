package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/pidfd"
	"github.com/nacrehq/nacre/internal/uffd"
	"github.com/nacrehq/nacre/internal/workingset"
)

// A guest with pages of 2 MiB cannot map its snapshot's memory, as others do: somebody has
// to fill its own. That is a process beside its VMM, the pager, which the VMM sends a
// userfaultfd. It fills what the guest waits for, and all else as fast as it can; then it
// ends, and the guest needs nobody any more. Like the VMM it outlives this process.
//
// Until then a guest whose pager is gone would wait for ever: its VMM is killed then.
//
// A pager needs nothing but four descriptors: it has a user of its own, an empty root, and
// a filter that lets it make no others (see PagerMain).

const (
	pagerSocket = "pages.sock" // in the jail, where the VMM finds the pager
	pagerRoot   = "empty"      // the pager's own root, beside the jail's
)

// Files in a machine's state directory.
const (
	pagesFile = "pages"       // the pager's journal
	lostFile  = "memory-lost" // the pager ended too early, and the VMM was killed
)

// What a pager's journal says, a line each: the pages that were waited for, and how it
// ended.
const (
	wordPage   = "page "
	wordDone   = "done"    // the guest's memory is there
	wordGone   = "gone"    // the VMM ended first
	wordFailed = "failed " // and why
)

// pagerOrders is what a pager is told on its standard input.
type pagerOrders struct {
	User  int    // that it becomes
	VMM   int    // the user whose process it serves
	Root  string // an empty directory
	Order []int  // see uffd.Fill
	Lazy  bool   // for tests: fills nothing that is not waited for, and never ends
}

// mostOrder keeps the orders short of what a pipe takes without a reader.
const mostOrder = 8192

// pager is a machine's. It may have ended.
type pager struct {
	proc    *pidfd.Process // nil: gone before this process looked
	journal string
}

// startPager starts the pager of a guest that goes on, before there is a VMM: what it
// makes in the jail is nobody else's yet.
func (l *launch) startPager(g *cgroup.Group) (p *pager, err error) {
	root := filepath.Join(l.jail.base, pagerRoot)
	if err := os.Mkdir(root, 0o555); err != nil {
		return nil, err
	}
	p = &pager{journal: filepath.Join(l.spec.StateDir, pagesFile)}
	journal, err := os.OpenFile(p.journal, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer journal.Close()
	socket, err := listenSocket(l.jail.root, pagerSocket, l.jail.uid)
	if err != nil {
		return nil, fmt.Errorf("the pager's socket: %w", err)
	}
	defer socket.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	set, _ := l.r.sets.Recall(l.base)
	in, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	defer out.Close()
	orders, err := json.Marshal(pagerOrders{User: machineUser(l.spec.ID + " pager"), VMM: l.jail.uid, Root: root, Order: pagesOf(set), Lazy: l.r.lazy})
	if err != nil {
		return nil, err
	}
	held := -1
	child, err := l.r.startIn(g, program{
		path: "/proc/self/exe", args: []string{"nacre", PagerArg}, env: []string{"GOMAXPROCS=2"},
		files: []*os.File{in, null, null, socket, l.base, journal}, pidFD: &held,
	})
	if err != nil {
		return nil, fmt.Errorf("start the pager: %w", err)
	}
	if p.proc, err = pidfd.New(child.Pid, held, true); err != nil {
		_ = child.Kill()
		_, _ = child.Wait()
		return nil, err
	}
	_ = child.Release() // reaped by way of held
	_, err = out.Write(orders)
	if err != nil {
		p.end()
	}
	return p, err
}

// listenSocket makes a socket in the directory that the user may connect to.
func listenSocket(dir, name string, user int) (*os.File, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	s := os.NewFile(uintptr(fd), name)
	path := fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name) // see dialSocket
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		err = errors.Join(os.Chmod(path, 0o600), os.Chown(path, user, user), unix.Listen(fd, 1))
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// end ends a pager whose machine did not come to be.
func (p *pager) end() {
	if p == nil {
		return
	}
	p.proc.Kill()
	_, _, _ = p.proc.Wait()
	p.proc.Close()
}

// stopped tells whether somebody stopped the pager.
func (p *pager) stopped() bool { return p != nil && p.proc != nil && p.proc.Stopped() }

func (p *pager) kill() {
	if p != nil && p.proc != nil {
		p.proc.Kill()
	}
}

// close lets go of the pager, which goes on. It may be repeated.
func (p *pager) close() {
	if p != nil && p.proc != nil {
		p.proc.Close()
	}
}

// failure tells why a pager has ended that should not have, nil while it runs or is done.
func (p *pager) failure() error {
	if p == nil || p.proc != nil && p.proc.Alive() {
		return nil
	}
	switch last, _ := p.read(); {
	case last == wordDone:
		return nil
	case strings.HasPrefix(last, wordFailed):
		return errors.New("the pager failed: " + strings.TrimPrefix(last, wordFailed))
	default:
		return errors.New("the pager was killed")
	}
}

// read returns the journal's last word, and the pages that were waited for.
func (p *pager) read() (last string, pages []int) {
	b, err := os.ReadFile(p.journal)
	if err != nil {
		return "", nil
	}
	for line := range bytes.Lines(b) {
		word := strings.TrimSuffix(string(line), "\n")
		if n, err := strconv.Atoi(strings.TrimPrefix(word, wordPage)); err == nil {
			pages = append(pages, n)
			continue
		}
		last = word
	}
	return last, pages
}

// asked are the parts of the memory that were waited for until now, as a set.
func (p *pager) asked() (set workingset.Set) {
	_, pages := p.read()
	slices.Sort(pages)
	for _, n := range slices.Compact(pages) {
		off := int64(n) * uffd.PageSize
		if last := len(set) - 1; last >= 0 && set[last].Offset+set[last].Length == off {
			set[last].Length += uffd.PageSize
			continue
		}
		set = append(set, workingset.Extent{Offset: off, Length: uffd.PageSize})
	}
	return set
}

// pagesOf are the pages that the set is in.
func pagesOf(set workingset.Set) (pages []int) {
	for _, e := range set {
		for p := e.Offset / uffd.PageSize; p*uffd.PageSize < e.Offset+e.Length && len(pages) < mostOrder; p++ {
			if n := len(pages); n == 0 || pages[n-1] != int(p) {
				pages = append(pages, int(p))
			}
		}
	}
	return pages
}

// guardPager kills the VMM of a guest whose memory will never be there.
func (m *machine) guardPager(alive context.Context) {
	if m.pager == nil {
		return
	}
	if p := m.pager.proc; p != nil {
		if _, _, err := p.Wait(); err != nil { // the driver was closed
			return
		}
	}
	err := m.pager.failure()
	if last, _ := m.pager.read(); err == nil || last == wordGone || alive.Err() != nil || !m.Proc.Alive() {
		return // a machine's end takes its pager along
	}
	m.r.cfg.Log.Error("the memory of a machine cannot be filled any more", "machine", m.ID(), "error", err)
	if f, err := os.OpenFile(filepath.Join(m.st.Dir, lostFile), os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
		f.Close()
	}
	m.Proc.Kill()
}

// pagerTrace is what a handle says of a pager.
type pagerTrace struct {
	PID   int
	Start uint64
}

// findPager returns the pager of a machine that is taken back, nil for one that had none.
func (st state) findPager() (*pager, error) {
	if st.Pager == nil {
		return nil, nil
	}
	p := &pager{journal: filepath.Join(st.Dir, pagesFile)}
	var err error
	p.proc, err = pidfd.Find(st.Pager.PID, st.Pager.Start)
	return p, err
}
