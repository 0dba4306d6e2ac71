package gvisor

import (
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// guestCaps are what root in a guest may do: what a container's root may, and
// what apt, sudo and debuggers need. All of it is about gVisor's own kernel, not
// the host's. Left out on purpose: NET_RAW and NET_ADMIN (the guest's source
// address stays what it was given), SYS_ADMIN (mounts, a large part of gVisor's
// kernel that nothing here needs), SYS_TIME, SYS_MODULE, SYS_BOOT.
var guestCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID",
	"CAP_IPC_LOCK", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP",
	"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT", "CAP_SYS_NICE",
	"CAP_SYS_PTRACE", "CAP_SYS_RESOURCE",
}

// guestSpec describes the guest to gVisor, in OCI's words.
func guestSpec(s nacre.MachineSpec) *specs.Spec {
	caps := guestCaps
	return &specs.Spec{
		Version:  specs.Version,
		Hostname: s.Hostname,
		Root:     &specs.Root{Path: "/"}, // the image is handed over open
		Process: &specs.Process{
			Args:         []string{agentDir + "/" + agentFile},
			Cwd:          "/",
			Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Soft: 1 << 16, Hard: 1 << 20},
				{Type: "RLIMIT_CORE"},
			},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc"},
			{Destination: "/sys", Type: "sysfs", Options: []string{"ro", "nosuid", "nodev", "noexec"}},
			// They count the guest's tasks (see limitTasks) and are nothing for the
			// guest: the next one hides them. gVisor mounts by the path's length.
			{Destination: cgroupDir, Type: "cgroup", Options: []string{"ro", "nosuid", "nodev", "noexec"}},
			{Destination: cgroupDir + "/", Type: "tmpfs", Options: []string{"ro", "nosuid", "nodev", "noexec", "mode=555", "size=4k"}},
			{Destination: "/dev", Type: "tmpfs"},
			{Destination: "/dev/pts", Type: "devpts"},
			{Destination: "/dev/shm", Type: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777"}},
			{Destination: "/run", Type: "tmpfs", Options: []string{"nosuid", "nodev", "mode=755", "size=64m"}},
			{Destination: agentDir, Type: "erofs", Options: []string{"ro", "nosuid", "nodev"}},
			// gVisor would put a memory file system on an empty /tmp unless the
			// spec names one, and skips types it does not know: so /tmp stays on the
			// root and counts there.
			{Destination: "/tmp", Type: "root"},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.IPCNamespace}, {Type: specs.NetworkNamespace}},
			Sysctl:     map[string]string{"net.ipv6.conf.all.disable_ipv6": "1"},
		},
	}
}

// memFile returns a file that exists in memory only.
func memFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// mountConf is gVisor's word for a root that is an EROFS image under a writable
// layer of limited size in a file, and for the agent's file system.
func mountConf(r nacre.RootFS) string {
	return "erofs:anon:size=" + strconv.Itoa(r.UpperMiB) + "m,erofs:none"
}
