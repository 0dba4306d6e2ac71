package firecracker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/uffd"
)

// Pages of 2 MiB are set apart by the host's operator and are no part of what Linux calls
// available. A VMM does not reserve its guest's: it takes each at the first touch, and is
// killed where there is none. So the driver promises no more of them than there are.

// hugePagesDir is what Linux says of them.
const hugePagesDir = "/sys/kernel/mm/hugepages/hugepages-2048kB"

// faultDevice makes userfaultfds for processes without privileges, since Linux 6.1.
const faultDevice = "/dev/userfaultfd"

// HugePages tells how many pages of 2 MiB the host has set apart, and how many of these
// are free.
func HugePages() (free, total int, err error) {
	free, err = pagesIn("free_hugepages")
	if err == nil {
		total, err = pagesIn("nr_hugepages")
	}
	return free, total, err
}

func pagesIn(file string) (int, error) {
	b, err := os.ReadFile(filepath.Join(hugePagesDir, file))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // the host's kernel has none
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// pool is who was promised the host's pages. The zero value is empty.
type pool struct {
	mu    sync.Mutex
	given map[*promise]bool
}

// promise is one machine's, from before its start until after its end.
type promise struct {
	pages int
	pid   int // of its VMM; 0 while there is none. Guarded by pool.mu
}

// promisePages finds room for a guest's memory, or says that there is none. It is nil for a
// guest with ordinary pages.
func (r *Runtime) promisePages(s nacre.MachineSpec) (*promise, error) {
	if !s.Resources.HugePages {
		return nil, nil
	}
	if s.Resources.MemoryMiB%2 != 0 {
		return nil, nacre.Invalidf("Resources.MemoryMiB", "with pages of 2 MiB a sandbox has an even number of MiB of memory")
	}
	if !r.large {
		return nil, nacre.Errorf(nacre.CodeUnsupported, "this host makes no microVMs with pages of 2 MiB: it has no "+faultDevice+" (Linux 6.1 or later does)")
	}
	p := &promise{pages: HugePagesFor(s.Resources.MemoryMiB)}
	return p, r.pool.take(p)
}

// HugePagesFor is how many of them a sandbox with so much memory takes.
func HugePagesFor(memoryMiB int) int { return int(memorySize(memoryMiB) / uffd.PageSize) }

func (p *pool) take(b *promise) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	free, total, err := HugePages()
	reserved, rerr := pagesIn("resv_hugepages")
	if err = errors.Join(err, rerr); err != nil {
		return nacre.Wrap(nacre.CodeUnavailable, err, "the host's free pages of 2 MiB could not be counted; try again")
	}
	free -= reserved
	for g := range p.given {
		free -= g.pages - g.taken()
	}
	if free < b.pages {
		return nacre.Errorf(nacre.CodeExhausted, "this host is short of memory in pages of 2 MiB: %d of %d are free and promised to nobody, and the sandbox needs %d; end one or try again later, or have the host's operator set more apart (vm.nr_hugepages)",
			max(0, free), total, b.pages)
	}
	p.keep(b)
	return nil
}

// keep notes a promise; p.mu is held.
func (p *pool) keep(b *promise) {
	if p.given == nil {
		p.given = map[*promise]bool{}
	}
	p.given[b] = true
}

// adopt is take for a machine that runs already.
func (p *pool) adopt(pages, pid int) *promise {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &promise{pages, pid}
	p.keep(b)
	return b
}

// began says which process takes the pages.
func (p *pool) began(b *promise, pid int) {
	if b != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		b.pid = pid
	}
}

// release ends a promise. A repeat, and nil, are no error.
func (p *pool) release(b *promise) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.given, b)
}

// taken is how many of its pages the machine has by now; of one that has ended none is
// still to be taken.
func (b *promise) taken() int {
	if b.pid == 0 {
		return 0
	}
	n, err := hugePagesOf(b.pid)
	if err != nil {
		return b.pages
	}
	return min(n, b.pages)
}

// hugePagesOf is how many pages of 2 MiB a process has.
func hugePagesOf(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, line, _ := strings.Cut(string(b), "\nHugetlbPages:")
	var kib int
	if _, err := fmt.Sscan(line, &kib); err != nil {
		return 0, fmt.Errorf("/proc/%d/status has an unknown form: %w", pid, err)
	}
	return kib / (uffd.PageSize >> 10), nil
}
