package gvisor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"
)

// handshake waits until the sandbox has booted, gives it its network and starts
// the guest's first process.
func (l *launch) handshake() error {
	// So that the sandbox's end ends every wait: as long as the socket was open
	// here as well, a call to a sandbox that died would wait for its answer for ever.
	l.syncEnd.Close()
	l.control.Close()
	if n, err := l.sync.Read(make([]byte, 1)); n != 1 {
		return fmt.Errorf("the sandbox ended while it booted: %w", err)
	}
	l.r.trace("4-boot")
	if err := dieFirst(l.proc.PID); err != nil {
		return err
	}
	c, err := dialControl(l.spec.StateDir)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	defer c.Close()
	if err := c.Call(boot.ContMgrSetNetworkArgs, l.links, nil); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	tasks := guestTasks(l.spec.Resources.MaxPIDs)
	if !l.fresh() {
		defer l.r.trace("5-restore")
		if err := l.load(c); err != nil {
			return err
		}
		if l.snap.birth.Tasks == tasks {
			return nil // the limit is in its kernel, and the guest's own from here on
		}
		// With the new kernel comes a new control server.
		again, err := dialControl(l.spec.StateDir)
		if err != nil {
			return fmt.Errorf("control socket: %w", err)
		}
		defer again.Close()
		return limitTasks(again, l.snap.birth.Group, tasks)
	}
	id := string(l.spec.ID)
	if err := c.Call(boot.ContMgrRootContainerStart, &id, nil); err != nil {
		return fmt.Errorf("first process: %w", err)
	}
	l.r.trace("5-start")
	return limitTasks(c, id, tasks)
}

// goneOr tells whether a call failed because the machine has ended, which the
// caller may notice before the driver does: then it is not gVisor's answer.
func (m *machine) goneOr(err error) error {
	var failed callError
	if errors.As(err, &failed) && !failed.answered {
		select {
		case <-m.Over():
		case <-time.After(5 * time.Second):
		}
	}
	if gone := m.Gone(); gone != nil {
		return gone
	}
	return err
}

// callError is a call to gVisor's control server that failed.
type callError struct {
	error
	answered bool // by the server, else the connection broke
}

func (e callError) Unwrap() error { return e.error }

func call(c *urpc.Client, method string, arg, result any) error {
	err := c.Call(method, arg, result)
	if err == nil {
		return nil
	}
	var remote urpc.RemoteError
	return callError{err, errors.As(err, &remote)}
}

// dieFirst makes the kernel end this process and not one of its children when memory
// runs out: a guest's memory is mapped by all of them, and with the first one all
// end. Version 2 of cgroups can be told to end a group as a whole, version 1 cannot.
// It must be called when gVisor has its first child, which the others come from.
func dieFirst(pid int) error {
	return os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("1000"), 0)
}
