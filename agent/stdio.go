package agent

import (
	"os"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// stdio are the ends of a new process's standard streams.
type stdio struct {
	child  []uintptr  // for descriptors 0, 1, 2
	close  []*os.File // the child's ends, closed here after the fork
	parent []*os.File // our ends
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

func (s *stdio) pipes(p *process) error {
	var in *os.File
	var err error
	if p.spec.stdin {
		var w *os.File
		if in, w, err = pipe(); err != nil {
			return err
		}
		s.parent = append(s.parent, w)
		if err := unix.SetNonblock(int(w.Fd()), true); err != nil {
			return err
		}
		if w, err = pollable(w); err != nil {
			return err
		}
		s.parent[len(s.parent)-1] = w
		p.input = newProcessInput(w)
	} else if in, err = os.Open(os.DevNull); err != nil {
		return err
	}
	s.close = append(s.close, in)
	s.child = append(s.child, in.Fd())
	for _, kind := range []streamKind{streamStdout, streamStderr} {
		r, w, err := pipe()
		if err != nil {
			return err
		}
		s.close = append(s.close, w)
		if r, err = pollable(r); err != nil {
			return err
		}
		s.parent = append(s.parent, r)
		s.child = append(s.child, w.Fd())
		pm := newPump(p, kind, r)
		pm.holds = widen(r)
		p.pumps = append(p.pumps, pm)
	}
	return nil
}

// pipe returns two blocking ends: os.Pipe's are not, and a child would inherit that.
func pipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// widen lets a pipe hold a whole event, and returns what it holds.
func widen(f *os.File) (holds int) {
	rc, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	_ = rc.Control(func(fd uintptr) {
		_, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, outputChunk) // a user may have too many: then it stays
		holds, _ = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0)
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
