// Command guestinit is the first program of a Firecracker guest. It puts the file
// system together, starts the agent as PID 1 of a namespace of its own, carries
// connections between the host's vsock and the guest's TCP ports, and leaves the
// last word when the agent ends. The sandbox's root is not in its namespaces: it
// can neither stop it nor change its files.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

const childArg = "agent"

func main() {
	if isChild() {
		die(child())
	}
	runtime.GOMAXPROCS(min(runtime.NumCPU(), 2))
	debug.SetGCPercent(25)
	debug.SetMemoryLimit(16 << 20)
	die(run())
}

func isChild() bool { return len(os.Args) > 1 && os.Args[1] == childArg }

// die ends the machine with a last word about why.
func die(err error) {
	if err == nil {
		err = fmt.Errorf("guestinit returned")
	}
	fmt.Println("guestinit:", err)
	if !isChild() {
		end(wire.LastWord{Failed: err.Error()})
	}
	os.Exit(127)
}

// end writes the last word and stops the machine.
func end(w wire.LastWord) {
	// Past the cache, and past the file system that is mounted from the same drive.
	if fd, err := unix.Open(wire.UpperDrive, unix.O_WRONLY|unix.O_DIRECT|unix.O_SYNC|unix.O_CLOEXEC, 0); err == nil {
		if size, err := unix.Seek(fd, 0, unix.SEEK_END); err == nil {
			_, _ = unix.Pwrite(fd, aligned(w.Encode()), size-wire.LastWordSize)
		}
	}
	for {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
}

// aligned copies b to where the drive can read it directly.
func aligned(b []byte) []byte {
	m, err := unix.Mmap(-1, 0, len(b), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return b
	}
	copy(m, b)
	return m
}

func run() error {
	if err := mountBase(); err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	boot, err := wire.ParseBoot(strings.Fields(string(cmdline)))
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(boot.Hostname)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := network(boot); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := mountRoot(); err != nil {
		return err
	}
	pid, err := startAgent(boot)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if err := serve(); err != nil {
		return err
	}
	return reap(pid)
}

// reap waits for the agent's end; the orphans of its namespace are its own.
func reap(agent int) error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		if pid != agent {
			continue
		}
		w := wire.LastWord{Exited: status.Exited()}
		if w.Exited {
			w.Status = status.ExitStatus()
		} else {
			w.Signal = int(status.Signal())
			w.OOM = status.Signal() == unix.SIGKILL && oomKills() > 0
		}
		end(w)
	}
}

// oomKills counts the sandbox's processes that the kernel killed for want of memory.
func oomKills() int {
	b, _ := os.ReadFile(cgroups + "/" + guestName + "/memory.events")
	for l := range strings.Lines(string(b)) {
		var n int
		if _, err := fmt.Sscanf(l, "oom_kill %d", &n); err == nil {
			return n
		}
	}
	return 0
}
