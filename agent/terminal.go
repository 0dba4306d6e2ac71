package agent

import (
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A shell that edits lines reads the size of its terminal before each prompt and sets
// what it read (readline's set_winsize), on every kernel: a resize between the two is
// undone by it, and nobody told. So a resize is looked after for a while, and a size
// that the terminal had before it taken for that and not for anybody's wish.
const (
	sizeOften  = 2 * time.Millisecond  // between looks, for sizeSoon
	sizeRarely = 20 * time.Millisecond // and then, for sizeLong
	sizeSoon   = 100 * time.Millisecond
	sizeLong   = 2 * time.Second
	sizesKept  = 16
)

// terminal is what is written to of a terminal's master side, and its size.
type terminal struct {
	f *os.File // also the process's input, which closes it

	mu      sync.Mutex
	want    unix.Winsize
	before  []unix.Winsize // newest last
	resized time.Time
	look    *time.Timer
}

// resize changes the size, which the processes in the foreground are told, and sees
// that it stays.
func (t *terminal) resize(cols, rows int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, err := t.size()
	if err != nil {
		return err
	}
	if t.look == nil {
		t.look = time.AfterFunc(sizeOften, t.again)
	}
	t.want = unix.Winsize{Col: clampSize(cols), Row: clampSize(rows)}
	t.before = slices.DeleteFunc(append(t.before, old), func(s unix.Winsize) bool { return s == t.want })
	t.before = t.before[max(0, len(t.before)-sizesKept):]
	t.resized = time.Now()
	t.look.Reset(sizeOften)
	return setSize(t.f, t.want)
}

// again sets the size once more where it was undone, until nobody does any more or
// the terminal is closed.
func (t *terminal) again() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, err := t.size()
	if err == nil && slices.Contains(t.before, now) {
		err = setSize(t.f, t.want)
	}
	since := time.Since(t.resized)
	switch {
	case err != nil || since > sizeLong:
		t.before = nil
	case since > sizeSoon:
		t.look.Reset(sizeRarely)
	default:
		t.look.Reset(sizeOften)
	}
}

// forget ends the looks.
func (t *terminal) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.look != nil {
		t.look.Stop()
	}
}

func (t *terminal) size() (size unix.Winsize, err error) {
	err = control(t.f, func(fd int) error {
		s, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err == nil {
			size = *s
		}
		return err
	})
	return size, err
}

func setSize(f *os.File, s unix.Winsize) error {
	return control(f, func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &s) })
}

// control calls fn while f cannot be closed.
func control(f *os.File, fn func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ioctl error
	err = rc.Control(func(fd uintptr) { ioctl = fn(int(fd)) })
	return errors.Join(err, ioctl)
}

// clampSize keeps a size within what a terminal can have.
func clampSize(n int) uint16 { return uint16(min(max(n, 1), 1<<16-1)) }
