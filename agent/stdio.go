package agent

import (
	"io"
	"os"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// stdio are the ends of a new process's standard streams.
type stdio struct {
	child  []uintptr   // for descriptors 0, 1, 2
	close  []io.Closer // the child's ends, closed here after the fork
	parent []*os.File  // our ends
}

func (s *stdio) closeChild() {
	for _, f := range s.close {
		_ = f.Close()
	}
}

func (s *stdio) closeParent() {
	for _, f := range s.parent {
		_ = f.Close()
	}
}

// openStdio makes the streams of p and the pumps that will read them.
func openStdio(p *process) (*stdio, error) {
	s := &stdio{}
	var err error
	if p.spec.term != nil {
		err = s.terminal(p)
	} else {
		err = s.pipes(p)
	}
	if err != nil {
		s.closeChild()
		s.closeParent()
		return nil, err
	}
	return s, nil
}

func (s *stdio) terminal(p *process) error {
	master, tty, err := pty.Open()
	if err != nil {
		return err
	}
	s.close, s.parent = append(s.close, tty), append(s.parent, master)
	if err := setSize(master, unix.Winsize{Col: clampSize(p.spec.term.Cols), Row: clampSize(p.spec.term.Rows)}); err != nil {
		return err
	}
	// The user may open the terminal by its name too, as after a login.
	_ = tty.Chown(int(p.spec.acc.uid), int(p.spec.acc.gid))
	_ = tty.Chmod(0o620)
	fd := tty.Fd() // also makes it blocking, as programs expect
	s.child = []uintptr{fd, fd, fd}
	// What is written to and what is read end at different times: a background job may
	// hold the terminal long after the shell.
	in, err := duplicate(master)
	if err != nil {
		return err
	}
	s.parent = append(s.parent, in)
	out, err := pollable(master)
	if err != nil {
		return err
	}
	s.parent[0] = out
	p.tty = &terminal{f: in}
	p.input = newProcessInput(in)
	p.pumps = []*pump{newPump(p, streamTerm, out)}
	return nil
}

// pipes is what nearly every command waits for: each call of the kernel counts, of
// which a guest's is slower than the host's.
func (s *stdio) pipes(p *process) error {
	if p.spec.stdin {
		w, err := s.pipe(1)
		if err != nil {
			return err
		}
		p.input = newProcessInput(w)
	} else {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		s.give(fd)
	}
	for _, kind := range []streamKind{streamStdout, streamStderr} {
		r, err := s.pipe(0)
		if err != nil {
			return err
		}
		pm := newPump(p, kind, r)
		pm.holds = widen(r)
		p.pumps = append(p.pumps, pm)
	}
	return nil
}

// pipe makes the child's next stream and returns our end of it, 0 to read or 1 to write,
// which alone is in the runtime's poller: the child would inherit what that demands.
func (s *stdio) pipe(ours int) (*os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	s.give(fds[1-ours])
	if err := unix.SetNonblock(fds[ours], true); err != nil {
		_ = unix.Close(fds[ours])
		return nil, err
	}
	f := os.NewFile(uintptr(fds[ours]), "pipe")
	s.parent = append(s.parent, f)
	return f, nil
}

// give makes fd the child's next stream.
func (s *stdio) give(fd int) {
	s.close = append(s.close, closer(fd))
	s.child = append(s.child, uintptr(fd))
}

// closer is a descriptor that is to be closed.
type closer int

func (fd closer) Close() error { return unix.Close(int(fd)) }

// widen lets a pipe hold a whole event, and returns what it holds.
func widen(f *os.File) (holds int) {
	rc, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	_ = rc.Control(func(fd uintptr) {
		var err error
		if holds, err = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, outputChunk); err != nil { // a user may have too many: then it stays
			holds, _ = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0)
		}
	})
	return max(holds, 0)
}

// pollable gives our end of a stream to the runtime's poller, so that reads and
// writes take no thread and know deadlines. f is used up.
func pollable(f *os.File) (*os.File, error) {
	out, err := duplicate(f)
	_ = f.Close()
	return out, err
}

// duplicate is f again, in the runtime's poller.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
