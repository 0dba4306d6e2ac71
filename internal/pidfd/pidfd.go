// Package pidfd holds processes that are not children: whatever else gets a
// process's number later, no signal reaches it.
package pidfd

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

// Process is a machine's process, held by a pidfd: whatever else gets its number
// later, no signal of ours reaches it.
type Process struct {
	PID   int
	Start uint64 // in clock ticks since the host booted
	child bool   // ours to reap
	fd    *os.File
}

// ErrClosed means that Close ended a wait, not the process.
var ErrClosed = errors.New("the driver was closed")

// New takes over an open pidfd; child tells that Wait has to reap the process.
func New(pid, fd int, child bool) (*Process, error) {
	if err := unix.SetNonblock(fd, true); err != nil { // lets the Go poller have it
		unix.Close(fd)
		return nil, err
	}
	p := &Process{PID: pid, child: child, fd: os.NewFile(uintptr(fd), "pidfd")}
	var err error
	if p.Start, err = StartTime(pid); err != nil {
		p.fd.Close()
		return nil, err
	}
	return p, nil
}

// Find opens the process that had this number and start time. It returns
// nil when that one is gone.
func Find(pid int, start uint64) (*Process, error) {
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
	p, err := New(pid, fd, false)
	if err != nil || p.Start != start {
		if p != nil {
			p.Close()
		}
		return nil, nil
	}
	return p, nil
}

// StartTime reads field 22 of /proc/<pid>/stat.
func StartTime(pid int) (uint64, error) {
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

// Kill sends SIGKILL. A process that has ended is no error.
func (p *Process) Kill() {
	_ = p.control(func(fd int) error { return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
}

// Close lets go of the process, which lives on; a Wait under way ends with ErrClosed.
func (p *Process) Close() { p.fd.Close() }

func (p *Process) control(f func(fd int) error) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return ErrClosed
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return ErrClosed
	}
	return ferr
}

// Wait returns when the process has ended, and how; known is false when the host
// cannot tell. It occupies no thread. Only one may call it.
func (p *Process) Wait() (status unix.WaitStatus, known bool, err error) {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return 0, false, ErrClosed
	}
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0
	})
	if err != nil {
		return 0, false, ErrClosed
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

// Alive tells whether the process has not ended.
func (p *Process) Alive() bool {
	alive := false
	_ = p.control(func(fd int) error {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		alive = err == nil && n == 0 || err == unix.EINTR
		return nil
	})
	return alive
}

// Stopped tells whether somebody stopped the process, as SIGSTOP does.
func (p *Process) Stopped() bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/stat")
	if err != nil || !p.Alive() { // in this order: while it lives, the number is its own
		return false
	}
	at := bytes.LastIndexByte(b, ')') + 2
	return at < len(b) && (b[at] == 'T' || b[at] == 't')
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

// KillOnEnd kills the process when ctx ends, until the returned function is
// called; that tells whether ctx had not ended yet.
func (p *Process) KillOnEnd(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, p.Kill)
}
