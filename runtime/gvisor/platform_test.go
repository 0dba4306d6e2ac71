package gvisor

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

// TestAheadHasItsPlatform: the process that a guest's are forked from is there before
// there is a guest, confined as gVisor confines it, and guests of any number of
// processors run from it.
func TestAheadHasItsPlatform(t *testing.T) {
	r := newRuntime(t)
	for _, cpus := range []int{1, 2, 5} {
		first := waiting(t, r)[0]
		stubs := map[int]bool{}
		eventually(t, "a sandbox that waits has not all of its confined children", func() bool {
			for _, pid := range first.group.PIDs() {
				b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
				if pid != first.proc.PID && strings.Contains(string(b), "\nSeccomp:\t2\n") {
					stubs[pid] = powerless(t, pid)
				}
			}
			return len(stubs) == 1+2*spareProcesses // each has a thread for system calls, a process to the host
		})
		spec := newSpec(t)
		spec.Resources.CPUs = cpus
		m := start(t, r, spec)
		if m.Proc.PID != first.proc.PID {
			t.Error("the machine is another process")
		}
		nacretest.DialGuest(t, m).Do("ping")
		for _, pid := range m.Group.PIDs() {
			if stubs[pid] {
				delete(stubs, pid)
			}
		}
		if len(stubs) > 0 {
			t.Errorf("with %d processors the machine has other children or one with capabilities: %v", cpus, stubs)
		}
	}
	spec := newSpec(t)
	spec.Resources.CPUs = maxCPUs + 1
	if _, err := r.Start(t.Context(), spec); !nacre.IsCode(err, nacre.CodeInvalid) {
		t.Errorf("a machine of %d processors: %v", spec.Resources.CPUs, err)
	}
}
