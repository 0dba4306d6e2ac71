package gvisor

import (
	"fmt"
	"runtime"
	_ "unsafe" // for go:linkname

	"gvisor.dev/gvisor/pkg/cpuid"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	_ "gvisor.dev/gvisor/pkg/sentry/platform/systrap" // whose variables these are
	"gvisor.dev/gvisor/pkg/sentry/platform/systrap/sysmsg"
	"gvisor.dev/gvisor/pkg/sentry/usage"
)

// maxCPUs is how many processors a machine may have. A sandbox does not know yet how
// many its own will when it keeps room in its address space for what each needs.
const maxCPUs = 1024

// spareProcesses are made before the guest has any, for it to use: its agent, a shell
// and what the shell's profile runs take one each, and one more until it is executed.
const spareProcesses = 4

// preparePlatform makes the process that all of a guest's processes are forked from,
// as gVisor would when it boots: 5 ms of each start; and the first ones, 3 ms of it.
func preparePlatform() error {
	cpuid.Initialize()
	if err := usage.Init(); err != nil {
		return err
	}
	if err := letCPUID(); err != nil {
		return err
	}
	constructor, err := platform.Lookup("systrap")
	if err != nil {
		return err
	}
	archState.Init()
	maxSysmsgThreads, maxChildThreads = maxCPUs, maxCPUs+1
	// What depends on the machine's processors waits for sizePlatform.
	p, err := constructor.New(platform.Options{DisableFastPath: true})
	if err != nil {
		return err
	}
	var spare [spareProcesses]platform.AddressSpace
	for i := range spare {
		if spare[i], err = p.NewAddressSpace(); err != nil {
			return err
		}
	}
	for _, s := range spare {
		s.Release() // gVisor keeps it
	}
	return nil
}

// sizePlatform fits the platform that is there to a machine's processors, as gVisor
// does when it makes the first one, and to how many tasks it may have on the host.
func sizePlatform(cpus, tasks int) error {
	if cpus < 1 || cpus > maxCPUs {
		return fmt.Errorf("%d processors", cpus)
	}
	maxSysmsgThreads, maxChildThreads = 0, 0 // gVisor's next platform sets them
	constructor, err := platform.Lookup("systrap")
	if err != nil {
		return err
	}
	constructor = limitedConstructor{constructor, guestSpaces(tasks)}
	if min(runtime.NumCPU(), cpus) > 1 { // or it never spins
		neverEnableFastPath = false // for gVisor to begin to measure
		constructor = spinLateConstructor{constructor}
	}
	platform.Register("systrap", constructor)
	return nil
}

//go:linkname archState gvisor.dev/gvisor/pkg/sentry/platform/systrap.archState
var archState sysmsg.ArchState

//go:linkname maxSysmsgThreads gvisor.dev/gvisor/pkg/sentry/platform/systrap.maxSysmsgThreads
var maxSysmsgThreads int

//go:linkname maxChildThreads gvisor.dev/gvisor/pkg/sentry/platform/systrap.maxChildThreads
var maxChildThreads int
