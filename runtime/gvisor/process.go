package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// process is a sandbox's process, held by a pidfd: whatever else gets its number
// later, no signal of ours reaches it.
type process struct {
	pid   int
	start uint64 // in clock ticks since the host booted
	child bool   // ours to reap
	fd    *os.File
}

// errClosed means that close ended a wait, not the process.
var errClosed = errors.New("gvisor: the driver was closed")

// newProcess takes over an open pidfd.
func newProcess(pid, fd int, child bool) (*process, error) {
	if err := unix.SetNonblock(fd, true); err != nil { // lets the Go poller have it
		unix.Close(fd)
		return nil, err
	}
	p := &process{pid: pid, child: child, fd: os.NewFile(uintptr(fd), "pidfd")}
	var err error
	if p.start, err = startTime(pid); err != nil {
		p.fd.Close()
		return nil, err
	}
	return p, nil
}

// findProcess opens the process that had this number and start time. It returns
// nil when that one is gone.
func findProcess(pid int, start uint64) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	// The start time is read while the pidfd is held: if it matches, the pidfd is
	// of the process that was asked for, or of a later one with the same number
	// and the same tick, which takes four million forks in 10 ms.
	p, err := newProcess(pid, fd, false)
	if err != nil || p.start != start {
		if p != nil {
			p.close()
		}
		return nil, nil
	}
	return p, nil
}

// startTime reads field 22 of /proc/<pid>/stat.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// Field 2 is the name in brackets, and may hold anything.
	_, rest, ok := bytes.Cut(b[bytes.LastIndexByte(b, ')')+1:], []byte(" "))
	f := bytes.Fields(rest)
	if !ok || len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has an unknown form", pid)
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

func (p *process) kill() {
	_ = p.control(func(fd int) error { return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
}

// dieFirst makes the kernel end this process and not one of its children when memory
// runs out: a guest's memory is mapped by all of them, and with the first one all
// end. Version 2 of cgroups can be told to end a group as a whole, version 1 cannot.
// It must be called when gVisor has its first child, which the others come from.
func (p *process) dieFirst() error {
	return write("/proc/"+strconv.Itoa(p.pid), "oom_score_adj", "1000")
}

func (p *process) close() { p.fd.Close() }

func (p *process) control(f func(fd int) error) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return errClosed
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return errClosed
	}
	return ferr
}

// wait returns when the process has ended, and how; known is false when the host
// cannot tell. It occupies no thread. Only one may call it.
func (p *process) wait() (status unix.WaitStatus, known bool, err error) {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return 0, false, errClosed
	}
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0
	})
	if err != nil {
		return 0, false, errClosed
	}
	err = p.control(func(fd int) error {
		if p.child {
			status, known = reap(fd)
		} else {
			status, known = exitInfo(fd)
		}
		return nil
	})
	return status, known, err
}

// reap collects a child that has ended.
func reap(fd int) (unix.WaitStatus, bool) {
	var info struct {
		signo, errno, code int32
		_                  int32
		pid                int32
		uid                uint32
		status             int32
		_                  [100]byte
	}
	for {
		_, _, e := unix.Syscall6(unix.SYS_WAITID, unix.P_PIDFD, uintptr(fd), uintptr(unsafe.Pointer(&info)), unix.WEXITED, 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return 0, false
		}
		const exited = 1 // CLD_EXITED; the others are signals
		if info.code == exited {
			return unix.WaitStatus(info.status << 8), true
		}
		return unix.WaitStatus(info.status & 0x7f), true
	}
}

// exitInfo asks how a process ended that is not our child, which Linux can tell
// since 6.15, and only after its parent (by then the host's init) has reaped it.
func exitInfo(fd int) (unix.WaitStatus, bool) {
	for wait := time.Millisecond; wait < 32*time.Millisecond; wait *= 2 {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		if err := unix.IoctlPidfdInfo(fd, &info); err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			return unix.WaitStatus(info.Exit_code), true
		} else if err == unix.EINVAL || err == unix.ENOTTY {
			break // an older kernel
		}
		time.Sleep(wait)
	}
	return 0, false
}

// killOnEnd kills the process when ctx ends, until the returned function is
// called; that tells whether ctx had not ended yet.
func (p *process) killOnEnd(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, p.kill)
}
