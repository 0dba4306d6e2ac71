package gvisor

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/pidfd"
	"github.com/nacrehq/nacre/internal/thread"
)

// sandbox is a process that is to become a machine. It has done what every start
// has in common and waits for its orders; it knows nothing of any guest. It ends when
// this process does.
type sandbox struct {
	proc   *pidfd.Process
	group  *cgroup.Group
	orders *os.File // our end of the socket
}

// end makes sure that nothing but the group is left.
func (s *sandbox) end(ctx context.Context) {
	s.orders.Close()
	s.proc.Kill()
	_, _, _ = s.proc.Wait()
	s.proc.Close()
}

// alive tells whether the process still waits.
func (s *sandbox) alive() bool {
	fds := []unix.PollFd{{Fd: int32(s.orders.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 0
}

// ahead is a pool of sandboxes that were started before anybody needed them: their
// start is half of a machine's.
type ahead struct {
	kick chan struct{} // wakes the filler

	mu     sync.Mutex
	ready  []*sandbox
	want   int       // how many should wait; more after a restore that found none
	last   time.Time // when a machine's start began or ended
	filler bool      // one is at work
	closed bool
}

// The names of groups say nothing of machines: a sandbox that waits is in its group
// before there is one, and version 2 of cgroups renames none. A group's label is the
// machine's id, once it has one.
const (
	groupPrefix = "gvisor-"
	// Older servers named a machine's group by its id, and those that waited like this.
	oldAheadPrefix = "ahead-"
)

const (
	// aheadQuiet is how long no start may have begun or ended before the pool is
	// filled again: starts go first.
	aheadQuiet = 100 * time.Millisecond
	// aheadIdle is how long the pool stays larger than configured without a start.
	aheadIdle = 2 * time.Minute
	// aheadMost is how large a pool becomes that restores found empty: who forks ten
	// sandboxes at once does it again. Small hosts have less.
	aheadMost = 10
)

// sandboxFor returns a sandbox, one that waits when there is one, whose group has the
// machine's label.
func (r *Runtime) sandboxFor(id nacre.MachineID, restore bool) (*sandbox, error) {
	s := r.takeAhead(restore)
	for s != nil && !s.alive() {
		r.endAhead([]*sandbox{s})
		s = r.takeAhead(restore)
	}
	if s == nil {
		var err error
		if s, err = r.newSandbox(); err != nil {
			return nil, err
		}
	}
	r.trace("0-taken")
	if err := s.group.SetLabel(string(id)); err != nil {
		r.endAhead([]*sandbox{s})
		return nil, err
	}
	return s, nil
}

// takeAhead takes a sandbox that waits out of the pool, nil when there is none. Then
// the pool becomes larger if it is for a restore: these come in numbers.
func (r *Runtime) takeAhead(restore bool) *sandbox {
	a := &r.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = time.Now()
	if len(a.ready) == 0 {
		if a.want > 0 && restore {
			a.want = max(a.want, min(a.want+1, aheadMost, int(r.memory>>30)))
		}
		return nil
	}
	s := a.ready[0]
	a.ready = a.ready[1:]
	return s
}

// fillAhead has the pool filled in the background, when a start has ended.
func (r *Runtime) fillAhead() {
	a := &r.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = time.Now()
	if a.closed || a.want <= 0 {
		return
	}
	if !a.filler {
		a.filler = true
		r.work.Go(r.keepAhead)
		return
	}
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// keepAhead makes and ends sandboxes until the pool is as configured.
func (r *Runtime) keepAhead() {
	for {
		wait, done := r.stepAhead()
		if done {
			return
		}
		select {
		case <-time.After(wait):
		case <-r.ahead.kick:
		case <-r.life.Done():
		}
	}
}

// stepAhead makes a sandbox, or ends those that are too many, when it is time; else
// it tells how long to wait, or that there is no more to do.
func (r *Runtime) stepAhead() (wait time.Duration, done bool) {
	a := &r.ahead
	a.mu.Lock()
	since := time.Since(a.last)
	switch {
	case a.closed, len(a.ready) >= a.want && a.want == r.cfg.Ahead:
		a.filler = false
		a.mu.Unlock()
		return 0, true
	case len(a.ready) < a.want && since < aheadQuiet:
		wait = aheadQuiet - since
	case len(a.ready) < a.want:
		a.mu.Unlock()
		s, err := r.newSandbox()
		a.mu.Lock()
		if err != nil {
			r.cfg.Log.Warn("a sandbox could not be started ahead; the next start is slower", "error", err)
			a.filler = false
			a.mu.Unlock()
			return 0, true
		}
		a.ready = append(a.ready, s)
	case since < aheadIdle:
		wait = aheadIdle - since
	default:
		a.want = r.cfg.Ahead
		extra := a.ready[a.want:]
		a.ready = a.ready[:a.want:a.want]
		a.mu.Unlock()
		r.endAhead(extra)
		return 0, false
	}
	a.mu.Unlock()
	return wait, false
}

// closeAhead ends the pool; what it holds is ended with endAhead, once nobody makes any.
func (r *Runtime) closeAhead() {
	a := &r.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed, a.want = true, 0
}

// endAhead ends sandboxes that are not needed.
func (r *Runtime) endAhead(all []*sandbox) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, s := range all {
		s.end(ctx)
		if err := s.group.Destroy(ctx); err != nil {
			r.cfg.Log.Warn("a sandbox that was started ahead left something behind", "error", err)
		}
	}
}

// newSandbox starts a sandbox in a group of its own, which has no label yet.
func (r *Runtime) newSandbox() (_ *sandbox, err error) {
	s := &sandbox{group: r.cgroup.Group(r.own + strconv.FormatInt(r.groups.Add(1), 10))}
	if err := s.group.Create(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.group.Destroy(context.Background())
		}
	}()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "orders")
	defer theirs.Close()
	s.orders = os.NewFile(uintptr(fds[0]), "orders")
	if s.proc, err = r.spawn(s.group, theirs); err != nil {
		s.orders.Close()
		return nil, err
	}
	return s, nil
}

// spawn makes a sandbox's process, in its group and in namespaces of its own.
func (r *Runtime) spawn(g *cgroup.Group, orders *os.File) (*pidfd.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	filter, err := r.filter()
	if err != nil {
		return nil, err
	}
	files := []*os.File{null, null, null, filterFD: filter, ordersFD: orders}
	const nobody = 65534
	one := []syscall.SysProcIDMap{{ContainerID: nobody, HostID: nobody, Size: 1}}
	held := -1
	attr := &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET,
		Credential:  &syscall.Credential{Uid: nobody, Gid: nobody},
		UidMappings: one,
		GidMappings: one,
		// To make an empty root for itself; it drops every capability before it waits.
		// Without CAP_SETPCAP it leaves the bounding set alone, for which it would stop
		// all its threads forty times (30 ms): the set bounds what a program gains when
		// it is executed, and here none ever gains anything.
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT},
		PidFD:       &held,
	}
	if r.cgroup.V2() {
		dir, err := os.OpenFile(g.Dir(""), os.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	}
	var p *os.Process
	err = thread.Do(func() error {
		if !r.cgroup.V2() {
			if err := g.JoinThread(); err != nil {
				return err
			}
		}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl", err)
		}
		program, err := r.programFD(files)
		if err != nil {
			return err
		}
		defer unix.Close(program)
		keepFiles()
		p, err = os.StartProcess("/proc/self/fd/"+strconv.Itoa(program), []string{argv0, nameless}, &os.ProcAttr{Env: []string{}, Files: files, Sys: attr})
		return err
	})
	runtime.KeepAlive(files)
	if err != nil {
		return nil, err
	}
	pid := p.Pid
	_ = p.Release() // waiting is done with the pidfd
	proc, err := pidfd.New(pid, held, true)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // not reaped yet, so the number is still its own
		_, _ = unix.Wait4(pid, nil, 0, nil)
	}
	return proc, err
}

// programFD returns a descriptor of the program that the child still has when it
// executes it, and then no more. Between fork and exec the child moves its files to
// their places, through numbers above the highest of them; ours is above those.
//
// It is so high, too, that the child's table of files has room for the numbers that
// gVisor moves the guest's streams to, up to 255: the child's threads share the table,
// and to enlarge it then waits until each processor of the host has passed by (an RCU
// grace period, 5 to 20 ms), which every boot did.
func (r *Runtime) programFD(files []*os.File) (int, error) {
	const last64 = 256 - 64 // fork copies a table in steps of 64, as far as it is used
	above := len(files)
	for _, f := range files {
		above = max(above, int(f.Fd()))
	}
	fd, err := unix.FcntlInt(r.program.Fd(), unix.F_DUPFD_CLOEXEC, max(above+2*len(files)+16, last64))
	if err == unix.EINVAL { // such a number is above the limit of open files
		err = unix.EMFILE
	}
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, nil
}
