package gvisor

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestUmounterIsSmall: what a sandbox that waits has for taking /proc away is a program
// of a page or two, and not this one once more.
func TestUmounterIsSmall(t *testing.T) {
	if umounterCode() == nil {
		t.Skip("there is no small one for this processor")
	}
	for _, s := range waiting(t, newRuntime(t)) {
		small := func() bool {
			for _, pid := range s.group.PIDs() {
				exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
				b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
				if err == nil && strings.HasPrefix(exe, "/memfd:umount") && strings.Contains(string(b), "Threads:\t1\n") {
					return true
				}
			}
			return false
		}
		eventually(t, "a sandbox that waits has no small umounter", small)
	}
}

// TestUmounterNeedsItsByte: it ends with an error when the sandbox is gone before it
// was told to begin, and touches nothing.
func TestUmounterNeedsItsByte(t *testing.T) {
	if umounterCode() == nil {
		t.Skip("there is no small one for this processor")
	}
	pid, w, err := smallUmounter()
	check(t, err)
	check(t, w.Close())
	child, err := os.FindProcess(pid)
	check(t, err)
	state, err := child.Wait()
	check(t, err)
	if state.ExitCode() != 3 {
		t.Errorf("it ended with %v", state)
	}
	if _, err := os.Stat("/proc/self"); err != nil {
		t.Error(err)
	}
}
