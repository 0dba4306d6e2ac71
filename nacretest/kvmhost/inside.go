package kvmhost

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// inside is PID 1 of the emulated host.
func inside() {
	code, err := work()
	if err != nil {
		fmt.Println("emulated host:", err)
		code = 1
	}
	fmt.Printf("\n%s%d\n", exitMark, code)
	for {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
}

func work() (int, error) {
	if err := mounts(); err != nil {
		return 0, err
	}
	modules, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return 0, err
	}
	for _, m := range modules {
		if err := load(m); err != nil {
			return 0, fmt.Errorf("module %s: %w", m, err)
		}
	}
	if err := beat(); err != nil {
		return 0, err
	}
	_ = unix.Sethostname([]byte("kvmhost"))
	if err := errors.Join(loopback(), card()); err != nil {
		return 0, fmt.Errorf("network: %w", err)
	}
	p, err := readPlan()
	if err != nil {
		return 0, err
	}
	if !runsGuests(p.Check) {
		return unfit, nil
	}
	fmt.Println(readyMark)
	return p.run("/proc/self/exe")
}

func readPlan() (p plan, err error) {
	b, err := os.ReadFile(planFile)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	return p, err
}

// run runs the tests, as the first process of where they are.
func (p plan) run(program string) (int, error) {
	// The tests' own directory, empty: what they need is brought by Config.Files.
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return 0, err
	}
	c := exec.Command(program, p.Args...)
	c.Dir = p.Dir
	c.Env = append(p.Env, workerEnv+"="+p.Worker, "PATH=/bin:/sbin", "HOME=/root", "TMPDIR=/tmp")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Start(); err != nil {
		return 0, err
	}
	return reap(c.Process.Pid)
}

// beat tells the host around this one that it lives, for as long as it does.
func beat() error {
	ports, err := os.OpenFile("/dev/port", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	go func() {
		for {
			_, _ = ports.WriteAt([]byte{1}, beatPort)
			time.Sleep(beatEvery)
		}
	}()
	return nil
}

// runsGuests has the program try, for a time that a good host needs a hundredth of.
func runsGuests(check []string) bool {
	if len(check) == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "/proc/self/exe", check...)
	c.Env = []string{workerEnv + "=" + emulatedWorker}
	c.WaitDelay = time.Second
	out, err := c.CombinedOutput()
	if err != nil {
		fmt.Printf("the emulated host's check: %v %s\n", err, out)
	}
	return err == nil
}

// reap collects whatever ends here, as PID 1 must, until the tests do.
func reap(tests int) (int, error) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if pid == tests {
			if status.Signaled() {
				return 0, fmt.Errorf("the tests were killed by signal %d", status.Signal())
			}
			return status.ExitStatus(), nil
		}
	}
}

// ownRoot puts the file system on top of itself: a program that changes its root, as
// a jailer does, cannot do so on the kernel's first one.
func ownRoot() error {
	if err := os.Mkdir("/new", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", "/new", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := unix.Chdir("/new"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

func mounts() error {
	if err := ownRoot(); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	for _, m := range []struct{ kind, dir, opt string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", ""},
		{"tmpfs", "/tmp", "size=90%,mode=1777"}, {"tmpfs", "/run", "mode=755"},
	} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, m.opt); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if os.Getenv("NACRE_CGROUP_V1") == "" && !strings.Contains(planText(), "NACRE_CGROUP_V1=") {
		return unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "")
	}
	if err := unix.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, c := range []string{"cpu,cpuacct", "memory", "pids"} {
		dir := "/sys/fs/cgroup/" + c
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("cgroup", dir, "cgroup", 0, c); err != nil {
			return fmt.Errorf("cgroup %s: %w", c, err)
		}
	}
	return nil
}

func planText() string {
	b, _ := os.ReadFile(planFile)
	return string(b)
}

// load leaves a module's signature out, for an emulated processor checks it slowly; the
// package that it is of was checked.
func load(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b = bytes.TrimSuffix(b, []byte("~Module signature appended~\n"))
	if err := unix.InitModule(b, ""); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// loopback brings up lo.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
