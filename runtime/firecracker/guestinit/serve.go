package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// serve listens for the host: on the network first, for the host begins with vsock and
// takes an answer there for a guest that can be reached.
func serve() error {
	conns := &carried{open: map[*os.File]bool{}}
	dials, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		_ = unix.SetsockoptInt(dials, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		err = unix.Bind(dials, &unix.SockaddrInet4{Port: wire.DialPort, Addr: [4]byte(addr4(wire.GuestAddr))})
	}
	if err == nil {
		err = unix.Listen(dials, 1024)
	}
	if err != nil {
		return fmt.Errorf("dial port: %w", err)
	}
	go accept(dials, conns, func(from unix.Sockaddr) bool {
		in, ok := from.(*unix.SockaddrInet4)
		return ok && in.Addr == [4]byte(addr4(wire.HostAddr))
	})
	control, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(control, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: wire.Port})
	}
	if err == nil {
		err = unix.Listen(control, 1024)
	}
	if err != nil {
		return fmt.Errorf("control port: %w", err)
	}
	go accept(control, conns, func(from unix.Sockaddr) bool {
		vm, ok := from.(*unix.SockaddrVM)
		return ok && vm.CID == unix.VMADDR_CID_HOST
	})
	return nil
}

// accept answers the connections that come from the host, and hangs up on programs of
// the sandbox.
func accept(fd int, conns *carried, fromHost func(unix.Sockaddr) bool) {
	for {
		// Blocking: the poller does not know of sockets that are reset by a restore.
		c, from, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of memory or descriptors
			continue
		}
		if !fromHost(from) {
			unix.Close(c)
			continue
		}
		go answer(os.NewFile(uintptr(c), "host"), conns)
	}
}

// carried are the connections between the host and the guest.
type carried struct {
	mu   sync.Mutex
	open map[*os.File]bool
}

// add returns what takes it away again.
func (c *carried) add(f *os.File) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[f] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.open, f)
	}
}

// end ends them all: they were the ones of the machine that the snapshot was taken of.
func (c *carried) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for f := range c.open {
		shutdown(f, unix.SHUT_RDWR)
	}
}

// answer serves one connection of the host.
func answer(c *os.File, conns *carried) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	line, err := readLine(c)
	if err != nil {
		return
	}
	_ = c.SetDeadline(time.Time{})
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "ping":
	case "dial":
		t, err := dial(rest)
		if err != nil {
			_, _ = io.WriteString(c, "no "+err.Error()+"\n")
			return
		}
		defer t.Close()
		defer conns.add(c)()
		if _, err := io.WriteString(c, "ok\n"); err == nil {
			carry(c, t)
		}
		return
	case "free", "used":
		ask := freeMemory
		if verb == "used" {
			ask = usedDisk
		}
		var mib int
		if mib, err = ask(); err == nil {
			_, _ = fmt.Fprintf(c, "ok\n%d\n", mib)
			return
		}
	case "sync":
		err = syncUpper()
	case "freeze":
		err = freeze(c)
	case "restored":
		err = restored(rest, conns)
	case "clock":
		err = setClock(rest)
	default:
		err = errors.New("unknown: " + verb)
	}
	if err != nil {
		_, _ = io.WriteString(c, "no "+strings.ReplaceAll(err.Error(), "\n", " ")+"\n")
		return
	}
	_, _ = io.WriteString(c, "ok\n")
}

// readLine reads no byte more than the line: what follows is not ours.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := []byte{0}; len(line) < wire.MaxLine; line = append(line, b[0]) {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
	}
	return "", errors.New("the line is too long")
}

// dial connects to a TCP port of the guest, at the address that others would use: a
// program that listens on 127.0.0.1 alone does not want to be reached from outside.
func dial(port string) (*os.File, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return nil, errors.New("no port")
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	to := &unix.SockaddrInet4{Port: int(n), Addr: [4]byte(addr4(wire.GuestAddr))}
	for {
		if err = unix.Connect(fd, to); err != unix.EINTR { // to an own address: it does not block
			break
		}
	}
	if err == nil {
		// TCP connects a socket to itself when its own port is the one asked for.
		if own, oerr := unix.Getsockname(fd); oerr == nil && own.(*unix.SockaddrInet4).Port == int(n) {
			err = unix.ECONNREFUSED
		}
	}
	if err == nil {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "tcp"), nil
}

// carry copies both ways until both ends have said all.
func carry(a, b *os.File) {
	done := make(chan struct{})
	go func() { defer close(done); oneWay(a, b) }()
	oneWay(b, a)
	<-done
}

func oneWay(dst, src *os.File) {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			// The end of one direction is passed on; a broken connection ends both.
			how := unix.SHUT_WR
			if !errors.Is(err, io.EOF) {
				how = unix.SHUT_RDWR
				shutdown(src, how)
			}
			shutdown(dst, how)
			return
		}
	}
}

func shutdown(f *os.File, how int) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), how) })
	}
}

// restored makes the guest another one than the one that the snapshot was taken of.
func restored(text string, conns *carried) error {
	var in wire.Restored
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		return err
	}
	if len(in.Entropy) < 32 || len(in.Entropy) > 512 {
		return errors.New("no entropy")
	}
	conns.end()
	if err := endConnections(); err != nil {
		return err
	}
	if err := reseed(in.Entropy); err != nil {
		return fmt.Errorf("entropy: %w", err)
	}
	if err := setTime(in.UnixNano); err != nil {
		return err
	}
	return unix.Sethostname([]byte(in.Hostname))
}

func setClock(text string) error {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return err
	}
	return setTime(n)
}

func setTime(unixNano int64) error {
	tv := unix.NsecToTimeval(unixNano)
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	return nil
}

// reseed mixes the seed into the kernel's generator and has it used at once, by
// every processor.
func reseed(seed []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var info struct { // struct rand_pool_info of linux/random.h
		bits, size int32
		buf        [512]byte
	}
	info.bits, info.size = int32(len(seed)*8), int32(len(seed))
	copy(info.buf[:], seed)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info))); e != 0 {
		return e
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0); e != 0 {
		return e
	}
	return nil
}

// freeMemory is what nobody uses, not even as a cache, in MiB.
func freeMemory() (int, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, err
	}
	return int(info.Freeram * uint64(info.Unit) >> 20), nil
}
