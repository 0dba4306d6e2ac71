package gvisor

import (
	"sync"
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
	return limitedPlatform{p, newSpaces(c.limit, spareSpace)}, nil
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
	limit int
	spare func() bool // one waits to be used again

	mu     sync.Mutex
	made   map[platform.AddressSpace]struct{}
	making int
}

func newSpaces(limit int, spare func() bool) *spaces {
	return &spaces{limit: limit, spare: spare, made: map[platform.AddressSpace]struct{}{}}
}

// take gets one that is spare or makes one.
func (s *spaces) take(get func() (platform.AddressSpace, error)) (platform.AddressSpace, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.made)+s.making < s.limit {
		s.making++
		s.mu.Unlock() // others make theirs meanwhile
		as, err := get()
		s.mu.Lock()
		s.making--
		if err == nil {
			s.made[as] = struct{}{}
		}
		return as, err
	}
	// One at a time: what is spare is for one. Who makes one meanwhile and finds that
	// instead leaves room for this one.
	if !s.spare() {
		return nil, linuxerr.EAGAIN
	}
	as, err := get()
	if err == nil {
		s.made[as] = struct{}{}
	}
	return as, err
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
