package gvisor

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/unet"
	"gvisor.dev/gvisor/pkg/urpc"
)

// The control socket is made and dialled here and not by gVisor's helpers, whose
// descriptors have no close-on-exec flag: a sandbox that is started at the same
// moment would inherit them, and with them a hold on its neighbour.

// bindControl makes the control socket in the directory, for the sandbox to listen on.
func bindControl(dir string) (*os.File, error) {
	d, fd, err := controlSocket(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := unix.Bind(fd, controlAddr(d)); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "control"), nil
}

// dialControl connects to the sandbox that listens in the directory.
func dialControl(dir string) (*urpc.Client, error) {
	d, fd, err := controlSocket(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := unix.Connect(fd, controlAddr(d)); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	s, err := unet.NewSocket(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return urpc.NewClient(s), nil
}

func controlSocket(dir string) (*os.File, int, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, -1, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		d.Close()
		return nil, -1, os.NewSyscallError("socket", err)
	}
	return d, fd, nil
}

// controlAddr goes by way of the directory, for a socket's path has at most 107 bytes.
func controlAddr(dir *os.File) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketFile)}
}

// keepFiles marks whatever this process has open as not for its children, but for
// the standard streams: gVisor's packages open some files without saying so.
// Kernels before 5.11 cannot; there every file of our own is marked all the same.
func keepFiles() { _ = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) }
