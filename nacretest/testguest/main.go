// Command testguest is PID 1 of the machines that driver tests boot: it does what
// one line of JSON says, and answers with one line.
package main

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nacrehq/nacre/internal/thread"
)

// Request is one line to the guest, Reply the answer.
type Request struct {
	Do   string
	Args []string
}

// Reply carries what a command printed or found out.
type Reply struct {
	Out string
	Err string
	N   int64
}

var (
	started = time.Now()
	held    [][]byte
)

func main() {
	if len(os.Args) > 1 {
		child(os.Args[1:])
		return
	}
	l, err := net.Listen("tcp4", ":49983")
	if err != nil {
		os.Exit(71)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(72)
		}
		go serve(c)
	}
}

func serve(c net.Conn) {
	conns.Add(1)
	defer conns.Add(-1)
	defer c.Close()
	in := bufio.NewScanner(c)
	out := json.NewEncoder(c)
	for in.Scan() {
		var q Request
		if err := json.Unmarshal(in.Bytes(), &q); err != nil {
			return
		}
		_ = out.Encode(do(q))
	}
}

func arg(q Request, i int) string {
	if i < len(q.Args) {
		return q.Args[i]
	}
	return ""
}

func do(q Request) (r Reply) {
	n, _ := strconv.Atoi(arg(q, 0))
	switch q.Do {
	case "ping":
		r.Out = "pong"
	case "exit":
		os.Exit(n)
	case "eat":
		r.N = eat(n)
	case "hold": // n MiB of memory, each page touched, for good
		for range n {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			held = append(held, b)
		}
	case "held": // reads it all
		for _, b := range held {
			for i := 0; i < len(b); i += 4096 {
				r.N += int64(b[i])
			}
		}
	case "spin":
		for end := time.Now().Add(time.Duration(n) * time.Millisecond); time.Now().Before(end); {
		}
	case "cpus":
		r.N = int64(runtime.NumCPU())
	case "hostname":
		r.Out, _ = os.Hostname()
	case "read":
		b, err := os.ReadFile(arg(q, 0))
		r.Out, r.Err = string(b), text(err)
	case "write":
		r.N, r.Err = fill(arg(q, 1), int64(n)<<20)
	case "touch": // many small files
		for i := range n {
			if err := os.WriteFile(filepath.Join(arg(q, 1), strconv.Itoa(i)), []byte("x"), 0o644); err != nil {
				r.Err = text(err)
				break
			}
			r.N++
		}
	case "churn": // files come and go from now on
		r.Err = text(churn(arg(q, 0)))
	case "churned": // no longer; those that are left are read
		var err error
		r.N, err = churned()
		r.Err = text(err)
	case "sparse":
		f, err := os.Create(arg(q, 1))
		if err == nil {
			err = f.Truncate(int64(n) << 20)
			f.Close()
		}
		r.Err = text(err)
	case "disk":
		var s syscall.Statfs_t
		r.Err = text(syscall.Statfs(arg(q, 0), &s))
		r.N = int64(s.Blocks) * s.Bsize
	case "run":
		b, err := exec.Command(q.Args[0], q.Args[1:]...).CombinedOutput()
		r.Out, r.Err = string(b), text(err)
	case "bomb": // n children at most, until one cannot be made
		thread.Spare(16) // what is refused is a child, not a thread of this
		for range n {
			c := exec.Command(arg(q, 1), "sleep")
			if err := c.Start(); err != nil {
				r.Err = text(err)
				break
			}
			r.N++
		}
	case "exe":
		r.Out, _ = os.Readlink("/proc/self/exe")
		b, err := exec.Command("/proc/self/exe", "uid").CombinedOutput()
		r.Out += " " + strings.TrimSpace(string(b))
		r.Err = text(err)
	case "keep":
		r.Err = text(keep(n))
	case "kept":
		r.Err = strings.Join(look(), "\n")
	case "slept":
		r.N = int64(<-kept.slept)
	case "random":
		var err error
		r.Out, err = random()
		r.Err = text(err)
	case "time":
		r.N = time.Now().UnixNano()
	case "ticks": // of the clock that nobody sets
		r.N = int64(time.Since(started))
	case "conns":
		r.N = conns.Load()
	case "pid":
		r.N = int64(kept.child.Process.Pid)
	case "outside":
		r.Err = text(outside(arg(q, 0)))
	case "outside-ends":
		d, err := outsideEnds()
		r.N, r.Err = int64(d), text(err)
	case "tree":
		r.Err = text(makeTree(arg(q, 0)))
	case "describe":
		r.Out = describe(q.Args...)
	case "append":
		f, err := os.OpenFile(arg(q, 0), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err == nil {
			_, err = f.WriteString(arg(q, 1))
			f.Close()
		}
		r.Err = text(err)
	default:
		r.Err = "unknown: " + q.Do
	}
	return r
}

func eat(mib int) int64 {
	var keep [][]byte
	for range mib {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		keep = append(keep, b)
	}
	defer runtime.KeepAlive(keep)
	return int64(len(keep))
}

func child(args []string) {
	switch args[0] {
	case "eat":
		n, _ := strconv.Atoi(args[1])
		eat(n)
	case "sleep":
		time.Sleep(time.Hour)
	case "cat":
		_, _ = io.Copy(os.Stdout, os.Stdin)
	case "random":
		b := make([]byte, 16)
		_, _ = rand.Read(b)
		fmt.Printf("%x\n", b)
	case "uid":
		fmt.Println(os.Getuid(), os.Geteuid())
	case "as": // as <uid> <program> <args>: what su does
		uid, _ := strconv.Atoi(args[1])
		c := exec.Command(args[2], args[3:]...)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		b, err := c.CombinedOutput()
		fmt.Print(string(b))
		if err != nil {
			fmt.Println(err)
		}
	case "cpuid":
		leaf, _ := strconv.ParseUint(args[1], 0, 32)
		a, b, c, d := cpuid(uint32(leaf), 0)
		fmt.Printf("%08x %08x %08x %08x\n", a, b, c, d)
	case "sync":
		syscall.Sync()
	case "rm":
		if err := os.Remove(args[1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case "chown":
		uid, _ := strconv.Atoi(args[1])
		if err := os.Chown(args[2], uid, uid); err != nil {
			fmt.Println(err)
		}
	}
}

func fill(path string, size int64) (int64, string) {
	f, err := os.Create(path)
	if err != nil {
		return 0, text(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	var n int64
	for n < size {
		k, err := f.Write(buf)
		n += int64(k)
		if err != nil {
			return n, text(err)
		}
	}
	return n, ""
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
