package gvisor

import (
	"os"
	"path/filepath"
	"strings"

	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
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
	cli.Run(nil, map[util.SubCommand]string{
		new(sentrycmd.Boot):   "internal",
		new(sentrycmd.Umount): "internal",
	}, nil)
	return true
}

// selfExe is this program as the kernel holds it: still the running version
// after the file on disk was replaced by an upgrade.
const selfExe = "/proc/self/exe"
