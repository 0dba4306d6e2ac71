package nacretest

import (
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// KillWithin runs the calling test once more, in a process of its own with the variable
// name set to value, reads n bytes that it prints, and kills it with SIGKILL in the
// middle of whatever comes next.
func KillWithin(t *testing.T, name, value string, n int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), name+"="+value)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadFull(out, make([]byte, n))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
}
