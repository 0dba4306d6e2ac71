package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// dialSocket connects to a socket in the directory, by way of a descriptor: a socket's
// path has at most 107 bytes. The directory is the VMM's, which is not trusted: a link in
// the socket's place would lead to one of the host's.
func dialSocket(ctx context.Context, dir, name string) (net.Conn, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Openat(int(d.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	s := os.NewFile(uintptr(fd), name)
	defer s.Close()
	if st, err := s.Stat(); err != nil || st.Mode().Type() != os.ModeSocket {
		return nil, errors.Join(fmt.Errorf("%s is no socket", name), err)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}
