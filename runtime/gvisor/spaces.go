package gvisor

import (
	"sync"
	"sync/atomic"
	"unsafe" // and for go:linkname

	"gvisor.dev/gvisor/pkg/errors/linuxerr"
	"gvisor.dev/gvisor/pkg/sentry/platform"
)

// Each address space of a guest is two tasks of the host for good: gVisor keeps it for the
// next process. It makes one for a fork before the guest's limit of tasks refuses the fork,
// so of a fork bomb that tries again and again there are far more than the guest may have
// processes, until the host refuses a task, which ends the sandbox. So they have a limit of
// their own here, at which a fork is told EAGAIN as it is at the other.

// guestSpaces is how many address spaces a guest may have whose machine may have so many
// tasks on the host: what is left is for what a process needs beyond two (see guestTasks)
// and for gVisor itself.
func guestSpaces(host int) int { return max((host-64)*2/5, guestTasks(host)+4) }

// limitedConstructor makes a platform of so many address spaces.
type limitedConstructor struct {
	platform.Constructor
	limit int
}

// New implements platform.Constructor.
func (c limitedConstructor) New(opts platform.Options) (platform.Platform, error) {
	p, err := c.Constructor.New(opts)
	if err != nil {
		return nil, err
	}
	return limitedPlatform{p, &spaces{limit: int64(c.limit), spare: spareSpace}}, nil
}

type limitedPlatform struct {
	platform.Platform
	spaces *spaces
}

// NewAddressSpace implements platform.Platform.
func (p limitedPlatform) NewAddressSpace() (platform.AddressSpace, error) {
	return p.spaces.take(p.Platform.NewAddressSpace)
}

// spaces counts those that were made.
type spaces struct {
	limit int64
	spare func() bool // one waits to be used again

	seen    sync.Map // by platform.AddressSpace
	made    atomic.Int64
	making  atomic.Int64
	atLimit sync.Mutex // of those who want one then, one at a time: what is spare is for one
}

// take gets one that is spare or makes one.
func (s *spaces) take(get func() (platform.AddressSpace, error)) (platform.AddressSpace, error) {
	defer s.making.Add(-1)
	if s.making.Add(1)+s.made.Load() > s.limit {
		s.atLimit.Lock()
		defer s.atLimit.Unlock()
		if s.made.Load() >= s.limit && !s.spare() {
			return nil, linuxerr.EAGAIN
		}
	}
	as, err := get()
	if err != nil {
		return nil, err
	}
	if _, known := s.seen.LoadOrStore(as, struct{}{}); !known {
		s.made.Add(1)
	}
	return as, nil
}

// spareSpace tells whether gVisor keeps an address space that nobody uses.
func spareSpace() bool {
	globalPool.mu.Lock()
	defer globalPool.mu.Unlock()
	return len(globalPool.available) > 0
}

// globalPool is as gVisor has it, but for the types of what it points to.
//
//go:linkname globalPool gvisor.dev/gvisor/pkg/sentry/platform/systrap.globalPool
var globalPool struct {
	mu        sync.Mutex
	source    unsafe.Pointer
	available []unsafe.Pointer
}
