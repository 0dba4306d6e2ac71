package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// Directories of the init drive, empty but for the two programs.
const (
	lowerDir  = "/lower" // the template
	rwDir     = "/rw"    // the upper drive
	newRoot   = "/new"   // the sandbox's root
	cgroups   = "/sys/fs/cgroup"
	guestName = "sandbox"
	agentPath = "/agent"
	agentDir  = "/run/nacre" // where the sandbox sees it
)

type mountPoint struct {
	kind, source, dir string
	flags             uintptr
	opt               string
}

func mountAll(points []mountPoint) error {
	for _, m := range points {
		if err := unix.Mount(m.source, m.dir, m.kind, m.flags, m.opt); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s on %s: %w", m.source, m.dir, err)
		}
	}
	return nil
}

func mountBase() error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return mountAll([]mountPoint{
		{"devtmpfs", "dev", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"proc", "proc", "/proc", safe, ""},
		{"sysfs", "sysfs", "/sys", safe, ""},
		{"cgroup2", "cgroup2", cgroups, safe, ""},
	})
}

// mountRoot joins the template and the upper drive.
func mountRoot() error {
	err := mountAll([]mountPoint{
		{"erofs", wire.RootDrive, lowerDir, unix.MS_RDONLY | unix.MS_NOATIME, ""},
		// minixdf: the size of the disk is what was promised, not what ext4 leaves of it.
		{"ext4", wire.UpperDrive, rwDir, unix.MS_NOATIME, "minixdf"},
	})
	if err != nil {
		return err
	}
	for _, d := range []string{"/upper", "/work"} {
		if err := os.Mkdir(rwDir+d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	opt := "lowerdir=" + lowerDir + ",upperdir=" + rwDir + "/upper,workdir=" + rwDir + "/work,redirect_dir=on,xino=auto"
	return mountAll([]mountPoint{{"overlay", "root", newRoot, unix.MS_NOATIME, opt}})
}

// startAgent starts the agent's process, with a limit on what it may start.
func startAgent(boot wire.Boot) (int, error) {
	group := cgroups + "/" + guestName
	if err := os.WriteFile(cgroups+"/cgroup.subtree_control", []byte("+cpu +memory +pids"), 0); err != nil {
		return 0, err
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		return 0, err
	}
	if boot.MaxPIDs > 0 {
		if err := os.WriteFile(group+"/pids.max", []byte(strconv.Itoa(boot.MaxPIDs)), 0); err != nil {
			return 0, err
		}
	}
	dir, err := os.OpenFile(group, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) // whatever happens to the sandbox
	p, err := os.StartProcess("/proc/self/exe", []string{"nacre-agent", childArg}, &os.ProcAttr{
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{
			Setsid:      true,
			Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWIPC,
			UseCgroupFD: true, CgroupFD: int(dir.Fd()),
		},
	})
	if err != nil {
		return 0, err
	}
	return p.Pid, nil
}

// child is the agent's process before it becomes the agent: it moves into the
// sandbox's root.
func child() error {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	for _, d := range []string{"proc", "sys", "dev", "run", "tmp"} {
		if err := os.Mkdir(newRoot+"/"+d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err := mountAll([]mountPoint{
		{"proc", "proc", newRoot + "/proc", safe, ""},
		{"sysfs", "sysfs", newRoot + "/sys", safe, ""},
		{"cgroup2", "cgroup2", newRoot + cgroups, safe, ""},
		{"devtmpfs", "dev", newRoot + "/dev", unix.MS_NOSUID, "mode=0755"},
		{"tmpfs", "run", newRoot + "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=755,size=64m"},
	})
	if err != nil {
		return err
	}
	for _, d := range []string{"/dev/pts", "/dev/shm", agentDir} {
		if err := os.Mkdir(newRoot+d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	err = mountAll([]mountPoint{
		{"devpts", "devpts", newRoot + "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "shm", newRoot + "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	})
	if err != nil {
		return err
	}
	return becomeAgent()
}

func becomeAgent() error {
	place := newRoot + agentDir + agentPath
	f, err := os.OpenFile(place, os.O_CREATE|os.O_WRONLY, 0o555)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(agentPath, place, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		_ = os.Symlink(target, newRoot+"/dev/"+name)
	}
	_ = os.Remove(newRoot + "/dev/ptmx")
	_ = os.Symlink("pts/ptmx", newRoot+"/dev/ptmx")
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	for _, l := range []struct {
		what int
		lim  unix.Rlimit
	}{{unix.RLIMIT_NOFILE, unix.Rlimit{Cur: 1 << 16, Max: 1 << 20}}, {unix.RLIMIT_CORE, unix.Rlimit{}}} {
		if err := unix.Setrlimit(l.what, &l.lim); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
	}
	return unix.Exec(agentDir+agentPath, []string{"nacre-agent"}, os.Environ())
}
