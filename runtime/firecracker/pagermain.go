package firecracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/internal/uffd"
)

// PagerArg, as a program's first argument, asks it to call PagerMain and nothing else.
const PagerArg = "machine-pager"

// Descriptors of a pager beside the standard ones.
const (
	pagerListener = 3 // where the VMM connects
	pagerMemory   = 4 // the snapshot's
	pagerJournal  = 5
)

// PagerMain fills the memory of one guest, and returns the exit code. What it reads of
// others, after it has given up all that a process can, is one message of the VMM's.
func PagerMain() int {
	journal := os.NewFile(pagerJournal, "journal")
	say := func(word string) { _, _ = journal.WriteString(word + "\n") }
	switch err := page(say); {
	case err == nil:
		say(wordDone)
		return 0
	case errors.Is(err, uffd.ErrGone):
		say(wordGone)
		return 0
	default:
		say(wordFailed + strconv.Quote(err.Error()))
		return 1
	}
}

func page(say func(string)) error {
	var orders pagerOrders
	if err := json.NewDecoder(os.Stdin).Decode(&orders); err != nil {
		return fmt.Errorf("orders: %w", err)
	}
	own, err := unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := lockUp(orders); err != nil {
		return fmt.Errorf("give up privileges: %w", err)
	}
	memory := os.NewFile(pagerMemory, "memory")
	st, err := memory.Stat()
	if err != nil {
		return err
	}
	vmm, err := acceptFrom(pagerListener, orders.VMM)
	if err != nil {
		return err
	}
	fd, regions, err := uffd.Receive(vmm, st.Size(), func(fd int) bool {
		b := make([]byte, 64)
		n, err := unix.Readlinkat(own, strconv.Itoa(fd), b)
		return err == nil && string(b[:n]) == "anon_inode:[userfaultfd]"
	})
	if err != nil {
		return err
	}
	f := uffd.Fill{File: memory, Order: orders.Order, OnlyAsked: orders.Lazy, Asked: func(page int) { say(wordPage + strconv.Itoa(page)) }}
	return f.Run(fd, regions)
}

// acceptFrom takes the first connection, which must be the user's, and no other after it.
func acceptFrom(listener, user int) (fd int, err error) {
	defer unix.Close(listener)
	for {
		fd, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return -1, fmt.Errorf("accept: %w", err)
	}
	who, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return -1, err
	}
	if int(who.Uid) != user {
		return -1, fmt.Errorf("user %d connected, who is not the VMM's", who.Uid)
	}
	return fd, nil
}

// lockUp takes all from the process that it does not need.
func lockUp(o pagerOrders) error {
	for _, err := range []error{
		unix.Chroot(o.Root), unix.Chdir("/"),
		syscall.Setgroups(nil), syscall.Setresgid(o.User, o.User, o.User), syscall.Setresuid(o.User, o.User, o.User), // all threads
	} {
		if err != nil {
			return err
		}
	}
	return filterCalls()
}

// pagerCalls are what a pager does itself, and what Go does for any program.
var pagerCalls = [...]uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_PREAD64, unix.SYS_LSEEK, unix.SYS_CLOSE, unix.SYS_PPOLL, unix.SYS_FSTAT, unix.SYS_FCNTL,
	unix.SYS_ACCEPT4, unix.SYS_RECVMSG, unix.SYS_GETSOCKOPT, unix.SYS_READLINKAT,
	unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_SCHED_YIELD,
	unix.SYS_SCHED_GETAFFINITY, unix.SYS_CLONE, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_TGKILL,
	unix.SYS_SIGALTSTACK, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_RESTART_SYSCALL,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_GETRANDOM,
}

// filterCalls refuses all other system calls to every thread, with EPERM: a part of Go
// that tries one does without.
func filterCalls() error {
	const (
		load, equal, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
		allow, refuse    = 0x7fff0000, 0x00050000 | uint32(unix.EPERM)
		offNumber        = 0 // in struct seccomp_data
		offArch          = 4
		offSecondArg     = 24 // its lower half
	)
	// A call of another architecture has other numbers.
	program := []unix.SockFilter{{Code: load, K: offArch}, {Code: equal, K: auditArch(), Jt: 1}, {Code: ret, K: refuse}, {Code: load, K: offNumber}}
	let := func(values ...uint32) {
		for _, v := range values {
			program = append(program, unix.SockFilter{Code: equal, K: v, Jf: 1}, unix.SockFilter{Code: ret, K: allow})
		}
	}
	let(pagerCalls[:]...)
	program = append(program, unix.SockFilter{Code: equal, K: unix.SYS_IOCTL, Jt: 1}, unix.SockFilter{Code: ret, K: refuse}, unix.SockFilter{Code: load, K: offSecondArg})
	let(uffd.Ioctls()...)
	program = append(program, unix.SockFilter{Code: ret, K: refuse})

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	p := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	thread, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&p)))
	if e != 0 {
		return fmt.Errorf("seccomp: %w", e)
	}
	if thread != 0 {
		return fmt.Errorf("seccomp: thread %d has another filter", thread)
	}
	return nil
}

func auditArch() uint32 {
	if runtime.GOARCH == "arm64" {
		return unix.AUDIT_ARCH_AARCH64
	}
	return unix.AUDIT_ARCH_X86_64
}
