package gvisor

import (
	"fmt"
	"strconv"

	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"
)

// cgroupDir is where the guest sees its own cgroup: gVisor's kernel has cgroups of
// its own, which have nothing to do with the host's.
const cgroupDir = "/sys/fs/cgroup"

// guestTasks is how many tasks a guest may have whose machine may have so many on
// the host. gVisor cannot go on when the host refuses it a task, so a guest that
// makes too many must meet a limit of its own first, where it gets an ordinary
// EAGAIN. A process of the guest takes two tasks on the host (measured; more when its
// threads run at once), and one of gVisor's while it waits for the disk; gVisor by
// itself has about twenty.
func guestTasks(host int) int { return max((host-64)/3, 8) }

// limitTasks sets how many tasks the guest may have. They are counted by gVisor's
// own cgroup of the guest, which it does not see and whose files it cannot change.
func limitTasks(c *urpc.Client, group string, tasks int) error {
	args := control.CgroupsWriteArgs{Args: []control.CgroupsWriteArg{{
		File:  control.CgroupControlFile{Controller: "pids", Path: "/" + group, Name: "pids.max"},
		Value: strconv.Itoa(tasks),
	}}}
	var out control.CgroupsResults
	err := c.Call(boot.CgroupsWriteControlFiles, &args, &out)
	if err == nil && len(out.Results) != 1 {
		err = fmt.Errorf("%d results", len(out.Results))
	}
	if err == nil {
		err = out.Results[0].AsError()
	}
	if err != nil {
		return fmt.Errorf("limit of tasks: %w", err)
	}
	return nil
}
