package gvisor

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	_ "unsafe" // for go:linkname

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	"gvisor.dev/gvisor/runsc/boot/filter"
	filterconfig "gvisor.dev/gvisor/runsc/boot/filter/config"
)

// gVisor compiles its seccomp program anew in every sandbox that starts, which takes
// a fifth of a cold start: its own releases have it compiled when they are built,
// which a Go module cannot. Here the daemon compiles it once and hands it to each
// sandbox, which fills in its own values (see filter.Install).

// withVars is a platform whose variables have these values.
type withVars struct {
	platform.SeccompInfo
	vars precompiledseccomp.Values
}

// Variables implements platform.SeccompInfo.
func (p withVars) Variables() precompiledseccomp.Values { return p.vars }

// compileFilter returns the program for sandboxes as sandboxConfig makes them. A
// sandbox whose options are others compiles its own.
func compileFilter(platformName string) ([]byte, error) {
	constructor, err := platform.Lookup(platformName)
	if err != nil {
		return nil, err
	}
	infos := constructor.PrecompiledSeccompInfo()
	if len(infos) == 0 {
		return nil, fmt.Errorf("platform %s has no fixed rules", platformName)
	}
	opt := filterconfig.Options{Platform: infos[0]}
	names := slices.Collect(maps.Keys(opt.Vars()))
	program, err := precompiledseccomp.Precompile(opt.ConfigKey(), names, func(v precompiledseccomp.Values) *seccomp.Program {
		// The platform's variables come last, so these replace all.
		opt := filterconfig.Options{Platform: withVars{infos[0], v}}
		rules, deny := filterconfig.Rules(opt)
		return &seccomp.Program{
			RuleSets: []seccomp.RuleSet{{Rules: deny}, {Rules: rules, Action: seccomp.Allow}},
			Options:  filterconfig.SeccompOptions(opt),
		}
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(program)
}

//go:linkname precompiledPrograms gvisor.dev/gvisor/runsc/boot/filter.precompiledPrograms
var precompiledPrograms map[string]precompiledseccomp.Program

// useFilter takes over the program that the daemon compiled. It runs in the
// sandbox's process; without a program, gVisor compiles it.
func useFilter() {
	f := os.NewFile(filterFD, "seccomp")
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return
	}
	b := make([]byte, st.Size())
	if _, err := unix.Pread(filterFD, b, 0); err != nil {
		return
	}
	var p precompiledseccomp.Program
	if json.Unmarshal(b, &p) != nil {
		return
	}
	filter.ListPrecompiled() // makes the map, which has none
	precompiledPrograms[p.Name] = p
}
