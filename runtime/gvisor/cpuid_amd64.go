package gvisor

import (
	"fmt"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/cpuid"
	"gvisor.dev/gvisor/pkg/seccomp"
)

// letCPUID lets the guest's programs ask the processor what it is (CPUID), as they do on
// hosts whose processor cannot keep it from them. gVisor would have each question fault,
// to answer it itself: 30 µs a time, and glibc asks some 70 times whenever a program
// starts, about its caches. What gVisor's answers are for, guests that go on with another
// processor, restoreKey refuses.
//
// The guest's processes inherit the filter, under which gVisor's attempt fails as it does
// on such a host (arch_prctl(2), ARCH_SET_CPUID). It must come before the first of them.
func letCPUID() error {
	p := seccomp.Program{
		RuleSets: []seccomp.RuleSet{{
			Rules: seccomp.MakeSyscallRules(map[uintptr]seccomp.SyscallRule{
				unix.SYS_ARCH_PRCTL: seccomp.PerArg{seccomp.EqualTo(linux.ARCH_SET_CPUID)},
			}),
			Action: seccomp.ReturnError.Code(uint16(unix.ENODEV)),
		}},
		Options: seccomp.ProgramOptions{DefaultAction: seccomp.Allow, BadArchAction: seccomp.Allow},
	}
	instrs, _, err := p.Build()
	if err != nil {
		return err
	}
	return seccomp.SetFilter(instrs)
}

// unnamedFeatures are those that gVisor has no names for: all of CPUID's leaf 7 but its
// first part. Empty where there are none.
func unnamedFeatures(fs cpuid.FeatureSet) (features string) {
	for part := uint32(1); part <= 2; part++ {
		if f := fs.Query(cpuid.In{Eax: 7, Ecx: part}); f != (cpuid.Out{}) {
			features += fmt.Sprintf(" %d:%08x", part, f)
		}
	}
	return features
}
