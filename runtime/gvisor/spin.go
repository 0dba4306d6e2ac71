package gvisor

import (
	"sync/atomic"
	"time"
	_ "unsafe" // for go:linkname

	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/gohacks"
	"gvisor.dev/gvisor/pkg/hostarch"
	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/platform"
)

// A sandbox and its guest's processes hand each system call and page fault over to one
// another. gVisor lets whoever waits spin for a while before it sleeps: with a processor
// for each a system call then takes 2 µs and not 60, which are the host's for waking a
// processor. But the kernel of a virtual machine takes a processor for busy that its own
// host has put to sleep (available_idle_cpu in kernel/sched): what follows a request runs
// on the processor that the request came in on, guest and sandbox in turns, and there
// each spins away the other's time: a shell takes a third longer. Only after some
// milliseconds with both of them ready are they taken apart. gVisor begins to spin within
// half a millisecond, measures, and where nothing else has run keeps what it finds: some
// sandboxes are slow for good, some not.
//
// So spinning waits here until the guest has been at work for a while.

const (
	// spinAfter is how long a guest is at work before anything spins: a shell's command is
	// over by then, and the kernel has taken guest and sandbox apart.
	spinAfter = 25 * time.Millisecond
	// restAfter without a hand-over ends a time of work. It is more than the two periods
	// of 0.4 ms after which gVisor stops spinning by itself.
	restAfter = 5 * time.Millisecond
	// workPulse is how exactly both are measured; more often no time is written, for all
	// of the guest's threads read it.
	workPulse = 50 * time.Microsecond
)

// spinLatePlatform is gVisor's platform, which tells when a guest works.
type spinLatePlatform struct {
	platform.Platform
	spin *spin
}

// spinLateConstructor makes it.
type spinLateConstructor struct{ platform.Constructor }

// New implements platform.Constructor.
func (c spinLateConstructor) New(opts platform.Options) (platform.Platform, error) {
	p, err := c.Constructor.New(opts)
	if err != nil {
		return nil, err
	}
	return spinLatePlatform{p, newSpin(allowSpinning)}, nil
}

// NewContext implements platform.Platform.
func (p spinLatePlatform) NewContext(ctx context.Context) platform.Context {
	return &spinLateContext{p.Platform.NewContext(ctx), p.spin}
}

// spinLateContext is a thread of the guest.
type spinLateContext struct {
	platform.Context
	spin *spin
}

// Switch implements platform.Context.
func (c *spinLateContext) Switch(ctx context.Context, mm platform.MemoryManager, ac *arch.Context64, cpu int32) (*linux.SignalInfo, hostarch.AccessType, error) {
	c.spin.works(gohacks.Nanotime())
	return c.Context.Switch(ctx, mm, ac, cpu)
}

// spin knows since when a guest has been at work, in nanoseconds of the host's
// monotonic clock.
type spin struct {
	allow       func(bool)
	last, since atomic.Int64
	allowed     atomic.Bool
}

// newSpin is a guest's that boots or is restored: gVisor is at work by then.
func newSpin(allow func(bool)) *spin {
	s := &spin{allow: allow}
	s.allowed.Store(true)
	return s
}

// works is told of each hand-over, by all of the guest's threads at once.
func (s *spin) works(now int64) {
	last := s.last.Load()
	gap := time.Duration(now - last)
	if gap < workPulse || !s.last.CompareAndSwap(last, now) || last == 0 {
		return
	}
	if gap > restAfter {
		s.since.Store(now)
		if s.allowed.CompareAndSwap(true, false) {
			s.allow(false)
		}
	} else if time.Duration(now-s.since.Load()) > spinAfter && s.allowed.CompareAndSwap(false, true) {
		s.allow(true)
	}
}

// allowSpinning lets gVisor try it. What it has measured meanwhile is forgotten: while
// guest and sandbox have one processor each is there at once for the other, beside which
// spinning on two looks slow.
func allowSpinning(allow bool) {
	if allow {
		for i := range latencies {
			atomic.StoreUint64(&latencies[i], 0)
		}
	}
	neverEnableFastPath = !allow
}

// latencies are two rows of 80 counters.
//
//go:linkname latencies gvisor.dev/gvisor/pkg/sentry/platform/systrap.latencies
var latencies [2 * 80]uint64

//go:linkname neverEnableFastPath gvisor.dev/gvisor/pkg/sentry/platform/systrap.neverEnableFastPath
var neverEnableFastPath bool
