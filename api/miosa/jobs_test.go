package miosa

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// TestJobMissesNothingOverAPause: what a job says after its sandbox goes on and before
// this server follows it again is in its output, once and in its place.
func TestJobMissesNothingOverAPause(t *testing.T) {
	h := newHarness(t)
	id := h.create(`{"timeout_sec":600}`)
	box := "/sandboxes/" + id
	pid := h.ok(201, "POST", box+"/terminal", `{"shell":"cat"}`).field(t, "pid")
	j, err := h.api.jobs.get(t.Context(), &guest{api: h.api, id: nacre.SandboxID(id), team: h.teamA}, pid, terminalTag)
	if err != nil {
		t.Fatal(err)
	}
	typeIn := func(text string) {
		t.Helper()
		agent, err := h.node.Agent(t.Context(), nacre.SandboxID(id))
		if err != nil {
			t.Fatal(err)
		}
		if err := agent.Processes().Input(t.Context(), j.pid, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	output := func(want string) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			var all strings.Builder
			entries, _, _, changed := j.after(0)
			for _, e := range entries {
				all.WriteString(e.text)
			}
			if all.String() == want {
				return
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("%q, want %q", all.String(), want)
			}
		}
	}
	typeIn("before ")
	output("before ")
	h.ok(200, "POST", box+"/pause", "")
	var first atomic.Bool
	follows, goes := make(chan struct{}), make(chan struct{})
	h.host.SetHook(func(op string, _ nacre.MachineID) error {
		if op == "agent.process" && first.CompareAndSwap(false, true) {
			close(follows)
			<-goes
		}
		return nil
	})
	h.ok(200, "POST", box+"/resume", "")
	<-follows
	typeIn("meanwhile ")
	close(goes)
	output("before meanwhile ")
	typeIn("after")
	output("before meanwhile after")
}
