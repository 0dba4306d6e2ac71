package firecracker

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/runtime/firecracker/wire"

	"github.com/nacrehq/nacre/internal/thread"
)

// dialPort connects to a TCP port of the guest whose slot's namespace is at path: to
// its first program, which connects to the port and carries on.
func dialPort(ctx context.Context, path string, port int) (*net.TCPConn, error) {
	return tell(ctx, path, "dial "+strconv.Itoa(port))
}

// tell says one thing to the first program of a guest that runs, and reads the answer.
// What follows on the connection is the caller's. It goes by TCP because a connection
// over vsock ends with every snapshot, also in the guest that goes on, and because
// 1.16's vsock takes none after a pause without a snapshot; and from inside the
// namespace, so that no rule of the host's has to let it through.
func tell(ctx context.Context, path, what string) (*net.TCPConn, error) {
	f, err := socketIn(path)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	err = connect(f)
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	c, err := net.FileConn(f) // a copy
	f.Close()
	if err != nil {
		return nil, err
	}
	t := c.(*net.TCPConn)
	stop = context.AfterFunc(ctx, func() { _ = t.SetDeadline(time.Unix(1, 0)) })
	err = exchange(t, what)
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// socketIn makes a TCP socket of the namespace; it stays one wherever it is used.
func socketIn(path string) (*os.File, error) {
	fd := -1
	err := thread.InNetwork(path, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "guest"), nil
}

func connect(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Port: wire.DialPort, Addr: netip.MustParseAddr(wire.GuestAddr).As4()}
	begun, cerr := false, error(nil)
	err = raw.Write(func(fd uintptr) bool {
		if !begun {
			begun = true
			if cerr = unix.Connect(int(fd), to); cerr == unix.EINPROGRESS {
				return false // until it can be written to
			}
			return true
		}
		cerr = nil
		if n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || n != 0 {
			cerr = errors.Join(err, unix.Errno(n))
		}
		return true
	})
	return errors.Join(err, cerr)
}
