package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// needed are the controllers that a machine's group has on version 2.
var needed = []string{"cpu", "memory", "pids"}

// delegate has version 2 offer controllers to the machines' groups.
func (h *Hierarchy) delegate(controllers []string) error {
	offered, err := os.ReadFile(filepath.Join(h.root, "cgroup.controllers"))
	if err != nil {
		return nacre.Wrap(nacre.CodeUnavailable, err, "the host's cgroups cannot be read")
	}
	for _, c := range controllers {
		if !slices.Contains(strings.Fields(string(offered)), c) {
			return nacre.Errorf(nacre.CodeUnavailable, "%s offers no %s controller; enable it in the kernel, or for the container that this is", h.root, c)
		}
	}
	dir := h.root
	for _, part := range append([]string{""}, strings.Split(h.parent, "/")...) {
		dir = filepath.Join(dir, part)
		err := enable(dir, controllers)
		if dir == h.root && errors.Is(err, unix.EBUSY) {
			if err = evacuate(dir); err == nil {
				err = enable(dir, controllers)
			}
		}
		if err != nil {
			return nacre.Wrap(nacre.CodeUnavailable, err, "controllers cannot be enabled in "+dir+"; no process may be in that cgroup itself")
		}
	}
	return nil
}

// enable is for all at once: with some alone, which the kernel allows beside processes,
// no child of the group could have the others.
func enable(dir string, controllers []string) error {
	return write(dir, "cgroup.subtree_control", "+"+strings.Join(controllers, " +"))
}

// evacuated is where the processes of a container go, as other software has it that makes
// cgroups in one.
const evacuated = "init"

// evacuate empties the cgroup that is a container's root, for controllers are enabled
// only where no process is. On a host's own root they may be beside processes.
func evacuate(root string) error {
	dir := filepath.Join(root, evacuated)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for range 10 { // a process may start another one meanwhile
		all := procs(root)
		if len(all) == 0 {
			return nil
		}
		for _, pid := range all {
			if err := write(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("process %d cannot be moved to %s: %w", pid, dir, err)
			}
		}
	}
	return nil // enable tells
}
