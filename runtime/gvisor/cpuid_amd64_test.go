package gvisor

import (
	"os/exec"
	"testing"

	"github.com/nacrehq/nacre/nacretest"
)

// TestGuestAsksTheProcessor: CPUID in a guest is the processor's own answer: gVisor's
// would be no answer to these, and cost a start of a program milliseconds.
func TestGuestAsksTheProcessor(t *testing.T) {
	g := nacretest.DialGuest(t, start(t, newRuntime(t), newSpec(t)))
	asked := 0
	for what, leaf := range map[string]string{"hypervisor": "0x40000000", "frequency": "0x16", "mwait": "0x5", "protected processor": "0x1b"} {
		host, err := exec.Command(host.agent, "cpuid", leaf).Output()
		if err != nil {
			t.Fatal(err)
		}
		if string(host) == "00000000 00000000 00000000 00000000\n" {
			continue
		}
		asked++
		if in := g.Do("run", "/bin/tool", "cpuid", leaf); in.Out != string(host) {
			t.Errorf("%s (leaf %s): %q in the guest, %q on the host", what, leaf, in.Out, host)
		}
	}
	if asked == 0 {
		t.Skip("this processor answers nothing that gVisor would not")
	}
}
