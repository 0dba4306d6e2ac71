package nacretest

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// InMountNamespace runs the calling test again in a process with a mount namespace
// of its own, where it may mount what it likes: all of it is gone with the
// process, however that ends. It returns true in that process, and false, with the
// outcome reported, in the first one. Without root the test is skipped.
//
//	if !nacretest.InMountNamespace(t) {
//		return
//	}
func InMountNamespace(t *testing.T) bool {
	t.Helper()
	const env = "NACRE_TEST_MOUNT_NAMESPACE"
	if os.Getenv(env) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pattern := "^" + strings.Join(strings.Split(t.Name(), "/"), "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), exe, "-test.run="+pattern, "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), env+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in a mount namespace: %v\n%s", err, out)
	} else if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("in a mount namespace:\n%s", out)
	} else if !strings.Contains(string(out), "--- PASS") {
		t.Errorf("the test did not run in the mount namespace:\n%s", out)
	}
	return false
}

// SmallDisk puts an empty file system over dir until the test ends, of a size
// (size=2m) or a number of files (nr_inodes=8). Without root the test is skipped. What
// uses it must be closed by then.
func SmallDisk(t testing.TB, dir, options string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a small disk needs root to be mounted")
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}
