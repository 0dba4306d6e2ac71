package agent_test

import (
	"net/http"
	"os"
	"syscall"
	"testing"
)

func owner(fi os.FileInfo) (uid, gid uint32) {
	st := fi.Sys().(*syscall.Stat_t)
	return st.Uid, st.Gid
}

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o666) }

// mountTmpfs puts a small file system over dir until the test ends.
func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("needs to mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

var httpClient = &http.Client{}
