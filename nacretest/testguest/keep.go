package main

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// kept is what "keep" made and "kept" looks at again, with a snapshot in between.
var kept struct {
	memory  [][]byte
	sum     string
	open    *os.File // deleted from its directory
	pipe    [2]*os.File
	unix    net.Conn // to the echo server on a Unix socket
	child   *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	term    *os.File // the terminal of the second child
	ptyOut  *bufio.Reader
	slept   chan time.Duration
	outside net.Conn
}

// conns counts the connections that are served.
var conns atomic.Int64

const (
	openText  = "in a file without a name"
	pipeText  = "in the pipe"
	diskFile  = "/root/kept"
	unixFile  = "/tmp/kept.sock"
	echoPort  = 7000
	sleepTime = 1500 * time.Millisecond
)

// keep makes one of each thing that must survive. mib of memory and of files are
// filled with random bytes.
func keep(mib int) error {
	h := sha256.New()
	for range mib {
		b := make([]byte, 1<<20)
		_, _ = rand.Read(b)
		h.Write(b)
		kept.memory = append(kept.memory, b)
	}
	kept.sum = fmt.Sprintf("%x", h.Sum(nil))
	f, err := os.Create(diskFile)
	if err != nil {
		return err
	}
	for _, b := range kept.memory {
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	f.Close()
	if kept.open, err = os.Create("/tmp/nameless"); err != nil {
		return err
	}
	_, _ = kept.open.WriteString(openText)
	_ = os.Remove("/tmp/nameless")
	if kept.pipe[0], kept.pipe[1], err = os.Pipe(); err != nil {
		return err
	}
	_, _ = kept.pipe[1].WriteString(pipeText)
	for _, l := range []struct{ network, addr string }{{"unix", unixFile}, {"tcp4", fmt.Sprintf(":%d", echoPort)}} {
		l, err := net.Listen(l.network, l.addr)
		if err != nil {
			return err
		}
		go echo(l)
	}
	if kept.unix, err = net.Dial("unix", unixFile); err != nil {
		return err
	}
	if err := keepChildren(); err != nil {
		return err
	}
	kept.slept = make(chan time.Duration, 1)
	go func() {
		begin := time.Now()
		time.Sleep(sleepTime)
		kept.slept <- time.Since(begin)
	}()
	return nil
}

func keepChildren() (err error) {
	kept.child = exec.Command("/bin/tool", "cat")
	if kept.in, err = kept.child.StdinPipe(); err != nil {
		return err
	}
	out, err := kept.child.StdoutPipe()
	if err != nil {
		return err
	}
	kept.out = bufio.NewReader(out)
	if err := kept.child.Start(); err != nil {
		return err
	}
	if kept.term, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0); err != nil {
		return err
	}
	var n, unlock uint32
	for _, c := range []struct {
		req uintptr
		arg *uint32
	}{{syscall.TIOCSPTLCK, &unlock}, {syscall.TIOCGPTN, &n}} {
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, kept.term.Fd(), c.req, uintptr(unsafe.Pointer(c.arg))); e != 0 {
			return e
		}
	}
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(int(n)), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer tty.Close()
	c := exec.Command("/bin/tool", "cat")
	c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	kept.ptyOut = bufio.NewReader(kept.term)
	return c.Start()
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// look says what of it is not as it was, one line each.
func look() (wrong []string) {
	check := func(what string, err error) {
		if err != nil {
			wrong = append(wrong, what+": "+err.Error())
		}
	}
	h := sha256.New()
	for _, b := range kept.memory {
		h.Write(b)
	}
	check("memory", same(fmt.Sprintf("%x", h.Sum(nil)), kept.sum))
	b, err := os.ReadFile(diskFile)
	check("file", errors.Join(err, same(fmt.Sprintf("%x", sha256.Sum256(b)), kept.sum)))
	buf := make([]byte, 64)
	n, err := kept.open.ReadAt(buf, 0)
	if err == io.EOF {
		err = nil
	}
	check("open file", errors.Join(err, same(string(buf[:n]), openText)))
	n, err = kept.pipe[0].Read(buf)
	check("pipe", errors.Join(err, same(string(buf[:n]), pipeText)))
	_, err = kept.pipe[1].WriteString(pipeText) // for the next time
	check("pipe", err)
	check("Unix connection", say(kept.unix))
	for _, a := range []struct{ network, addr string }{{"unix", unixFile}, {"tcp4", fmt.Sprintf("127.0.0.1:%d", echoPort)}} {
		c, err := net.Dial(a.network, a.addr)
		if err == nil {
			err = say(c)
			c.Close()
		}
		check("listening "+a.network+" socket", err)
	}
	check("child", syscall.Kill(kept.child.Process.Pid, 0))
	_, err = io.WriteString(kept.in, "to the child\n")
	line, rerr := kept.out.ReadString('\n')
	check("child's pipes", errors.Join(err, rerr, same(line, "to the child\n")))
	_, err = io.WriteString(kept.term, "to the terminal\n")
	line, rerr = kept.ptyOut.ReadString('\n')
	check("terminal", errors.Join(err, rerr, same(line, "to the terminal\r\n")))
	line, rerr = kept.ptyOut.ReadString('\n') // the line discipline's echo came first
	check("terminal's child", errors.Join(rerr, same(line, "to the terminal\r\n")))
	return wrong
}

func say(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	b := make([]byte, 5)
	_, err := io.ReadFull(c, b)
	return errors.Join(err, same(string(b), "hello"))
}

func same(got, want string) error {
	if got != want {
		return fmt.Errorf("%.80q, want %.80q", got, want)
	}
	return nil
}

// random returns what each source of randomness gives, a line each, a new
// process's included.
func random() (string, error) {
	var out []string
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil { // getrandom, by way of the vDSO where there is one
		return "", err
	}
	out = append(out, fmt.Sprintf("%x", b))
	f, err := os.Open("/dev/urandom")
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := io.ReadFull(f, b); err != nil {
		return "", err
	}
	out = append(out, fmt.Sprintf("%x", b))
	child, err := exec.Command("/bin/tool", "random").Output()
	if err != nil {
		return "", err
	}
	return strings.Join(append(out, strings.TrimSpace(string(child))), "\n"), nil
}

// outside holds a connection to the address, and tells how it ends.
func outside(addr string) (err error) {
	kept.outside, err = net.DialTimeout("tcp4", addr, 5*time.Second)
	return err
}

func outsideEnds() (time.Duration, error) {
	begin := time.Now()
	_ = kept.outside.SetReadDeadline(begin.Add(20 * time.Second))
	_, err := kept.outside.Read(make([]byte, 1))
	return time.Since(begin), err
}
