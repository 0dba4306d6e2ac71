package kvmhost

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/sparse"
)

// A host that runs guests itself runs the tests natively: the same program with the
// same files at the same paths, in a root of its own on the disk and in namespaces of
// its own, of which nothing is left. What it has of the host around are its kernel, its
// devices and its control groups.

// nativeDirEnv names the directory for such roots, instead of the cache.
const nativeDirEnv = "NACRE_NATIVE_DIR"

// why says why the tests do not run natively, or nothing.
func (cfg Config) why() string {
	switch {
	case cfg.Fit == nil:
		return "they are of that host"
	case os.Getenv(emulateEnv) != "":
		return emulateEnv + " asks for it"
	case strings.Contains(strings.Join(os.Environ(), "\n"), "\nNACRE_CGROUP_V1="):
		return "its control groups are to be of version 1"
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := cfg.Fit(ctx)
	if e := (*nacre.Error)(nil); errors.As(err, &e) {
		return e.Message
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// native runs the tests on this host.
func native(cfg Config) (int, error) {
	files, err := cfg.files()
	if err != nil {
		return 0, err
	}
	root, remove, err := newRoot()
	if err != nil {
		return 0, err
	}
	code, err := nativeIn(root, files, cfg)
	return code, errors.Join(err, remove())
}

func nativeIn(root string, files map[string]string, cfg Config) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	files["/init"] = self
	if err := lay(root, files); err != nil {
		return 0, err
	}
	wd, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	until := time.Now().Add(cfg.Timeout)
	p := plan{Args: ending(verbose(os.Args[1:]), cfg.Timeout-time.Minute), Env: ours(), Dir: wd, Worker: nativeWorker}
	if os.Getenv(workerEnv) == emulatedAround {
		p.Worker = nestedWorker
	}
	b, err := json.Marshal(p)
	if err == nil {
		err = os.WriteFile(filepath.Join(root, planFile), b, 0o644)
	}
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithDeadlineCause(context.Background(), until, fmt.Errorf("all took longer than %v", cfg.Timeout))
	defer cancel()
	c := exec.CommandContext(ctx, self)
	c.Env = []string{workerEnv + "=" + nativeInit, rootEnv + "=" + root}
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	if err := c.Start(); err != nil {
		return 0, err
	}
	code, err := conduct(ctx, c.Process.Pid, out, cfg)
	cause := context.Cause(ctx)
	cancel()
	_ = c.Wait() // nothing of it is left then: it was the first of its processes
	if err != nil && cause != nil {
		err = cause
	}
	return code, err
}

// conduct shows the lines of the tests, and does what they ask of the host around.
func conduct(ctx context.Context, pid int, out io.Reader, cfg Config) (int, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	addrs := map[int]string{}
	for _, p := range append([]int{askPort}, cfg.Ports...) {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		addrs[p] = l.Addr().String()
		context.AfterFunc(ctx, func() { l.Close() })
		all.Go(func() { serve(ctx, l, ns, fmt.Sprintf("127.0.0.1:%d", p)) })
	}
	m := &machine{cfg: cfg}
	var seen progress
	code, err := follow(out, func(line string) {
		if q, ok := strings.CutPrefix(line, askMark); ok {
			all.Go(func() { m.reply(ctx, q, addrs) })
		} else if seen.see(line) {
			fmt.Print(line)
		}
	})
	if err == nil {
		fmt.Println(seen.count("this host, natively"))
	}
	return code, err
}

// serve passes connections on to an address in the namespace.
func serve(ctx context.Context, l net.Listener, ns netns.NsHandle, to string) {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		all.Go(func() {
			defer c.Close()
			d, err := dialIn(ns, to)
			if err != nil {
				return
			}
			defer d.Close()
			stop := context.AfterFunc(ctx, func() { c.Close(); d.Close() })
			defer stop()
			var back sync.WaitGroup
			back.Go(func() {
				_, _ = io.Copy(c, d)
				_ = c.(*net.TCPConn).CloseWrite()
			})
			_, _ = io.Copy(d, c)
			_ = d.(*net.TCPConn).CloseWrite()
			back.Wait()
		})
	}
}

// dialIn connects from inside the namespace.
func dialIn(ns netns.NsHandle, to string) (c net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with this function
		if err = netns.Set(ns); err == nil {
			c, err = net.Dial("tcp4", to)
		}
	}()
	<-done
	return c, err
}

// nativeFirst is the first process of the namespaces.
func nativeFirst() {
	code, err := nativeWork(os.Getenv(rootEnv))
	if err != nil {
		fmt.Println("the tests' root:", err)
		code = 1
	}
	fmt.Printf("\n%s%d\n", exitMark, code)
	os.Exit(code)
}

func nativeWork(root string) (int, error) {
	if err := enter(root); err != nil {
		return 0, err
	}
	_ = unix.Sethostname([]byte("kvmhost"))
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "outside"} // where nobody is
	veth.Name = "eth0"
	if err := errors.Join(loopback(), netlink.LinkAdd(veth), card()); err != nil {
		return 0, fmt.Errorf("network: %w", err)
	}
	p, err := readPlan()
	if err != nil {
		return 0, err
	}
	return p.run("/init")
}

// enter makes the directory this process's root, with what a program expects in one.
func enter(root string) error {
	type mount struct {
		from, to, kind string
		flags          uintptr
	}
	at := func(p string) string { return filepath.Join(root, p) }
	for _, m := range []mount{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{root, root, "", unix.MS_BIND},
		{"", root, "", unix.MS_BIND | unix.MS_REMOUNT}, // device nodes, whatever the file system around says
		{"/dev", at("dev"), "", unix.MS_BIND | unix.MS_REC},
		{"proc", at("proc"), "proc", 0},
		{"sysfs", at("sys"), "sysfs", 0},
		{"/sys/fs/cgroup", at("sys/fs/cgroup"), "", unix.MS_BIND | unix.MS_REC},
	} {
		if err := unix.Mount(m.from, m.to, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.to, err)
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // the old root is on top of the new one
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// lay puts the files where the tests look for them.
func lay(root string, files map[string]string) error {
	for _, d := range rootDirs {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o1777); err != nil {
		return err
	}
	for name, text := range rootFiles() {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for there, here := range files {
		to := filepath.Join(root, there)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := sparse.Clone(here, to, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// newRoot makes an empty directory on a disk, and takes away those of who was killed.
func newRoot() (dir string, remove func() error, err error) {
	cache := cmp.Or(os.Getenv(nativeDirEnv), os.Getenv("NACRE_CACHE"), "/var/cache/nacre")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", nil, err
	}
	all, err := os.Open(cache)
	if err != nil {
		return "", nil, err
	}
	defer all.Close()
	if err := unix.Flock(int(all.Fd()), unix.LOCK_EX); err != nil {
		return "", nil, err
	}
	old, _ := filepath.Glob(filepath.Join(cache, "native-*"))
	for _, o := range old {
		if d, err := hold(o); err == nil {
			err = os.RemoveAll(o)
			d.Close()
			if err != nil {
				return "", nil, err
			}
		}
	}
	if dir, err = os.MkdirTemp(cache, "native-"); err != nil {
		return "", nil, err
	}
	d, err := hold(dir)
	if err != nil {
		return "", nil, err
	}
	return dir, func() error { defer d.Close(); return os.RemoveAll(dir) }, nil
}

// hold marks a directory as in use, for as long as the file is open.
func hold(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}
