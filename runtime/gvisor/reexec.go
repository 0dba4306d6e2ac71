package gvisor

import (
	"debug/elf"
	"os"
	"path/filepath"
	"strings"

	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"

	"github.com/nacrehq/nacre"
)

// argv0 names the sandbox process in process lists and tells Main what it is:
// its environment is empty, so only argv can.
const argv0 = "runsc-sandbox"

// Main becomes a sandbox when this process was started as one, and then does not
// return. Otherwise it returns false at once. Every program that makes machines
// calls it first thing in main, for the driver starts the program that it is
// part of; package initialisation before it costs time in every start.
func Main() bool {
	// The sandbox itself starts a helper as /proc/self/exe, to unmount /proc.
	if !strings.HasPrefix(filepath.Base(os.Args[0]), "runsc") && os.Args[0] != selfExe {
		return false
	}
	if os.Args[0] != selfExe {
		prepareSandbox()
	}
	cli.Run(nil, map[util.SubCommand]string{
		new(sentrycmd.Boot):   "internal",
		new(sentrycmd.Umount): "internal",
	}, nil)
	return true
}

// selfExe is this program as the kernel holds it: still the running version
// after the file on disk was replaced by an upgrade.
const selfExe = "/proc/self/exe"

// openProgram holds the program that becomes the sandbox: the file may be
// replaced, or be where nobody (as whom the sandbox runs) may not look.
func openProgram(path string) (*os.File, error) {
	if err := checkStatic(path); err != nil {
		return nil, err
	}
	return os.Open(path)
}

// checkStatic refuses a program that needs a dynamic linker: the sandbox starts
// it again from inside an empty root.
func checkStatic(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return nacre.Wrap(nacre.CodeUnavailable, err, "the program "+program+" cannot be read")
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nacre.Errorf(nacre.CodeUnavailable, "the program %s is not static; build it with CGO_ENABLED=0", program)
		}
	}
	return nil
}
