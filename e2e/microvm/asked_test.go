package microvm

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/nacrehq/nacre/client"
)

// TestAskedRuntime: one host makes both. What a create asks for comes before what its
// template does, and that before the first runtime of the host. A sandbox stays on its
// own over a pause, and where the server does not offer that any more it is refused by
// name, and kept until it is offered again.
func TestAskedRuntime(t *testing.T) {
	setUp(t)
	kill := up(t, "--runtime", "firecracker,gvisor", "--template-runtime", "python=gvisor")
	first := runs(t, "firecracker", "the first of the host")
	runs(t, "gvisor", "the template", "--template", "python")
	runs(t, "firecracker", "the create, against the template", "--template", "python", "--runtime", "firecracker")
	runs(t, "gvisor", "the create, against the first of the host", "--runtime", "gvisor")
	nacre(t, "pause", first)
	kill()

	kill = up(t, "--runtime", "gvisor")
	for _, args := range [][]string{{"resume", first}, {"run", "--runtime", "firecracker"}} {
		out, err := try(args...)
		if err == nil || !strings.Contains(out, "firecracker") || !strings.Contains(out, "this host offers gvisor") {
			t.Errorf("nacre %v where gVisor alone is offered: %s, %v", args, out, err)
		}
	}
	if info := ps(t)[first]; info.State != "paused" || info.Runtime != "firecracker" {
		t.Errorf("what was refused is not kept as it was: %+v", info)
	}
	kill()

	kill = up(t, "--runtime", "gvisor,firecracker")
	nacre(t, "resume", first)
	if out := nacre(t, "exec", first, "--", "uname", "-r"); !strings.Contains(out, "-nacre") {
		t.Errorf("where Firecracker is offered again the sandbox has the kernel %q", out)
	}
	runs(t, "gvisor", "the first of the host now")
	nacre(t, "kill", "--all")
	kill()
}

// runs creates a sandbox, which must come to run on that runtime, and returns its id.
func runs(t *testing.T, on, because string, flags ...string) string {
	t.Helper()
	id := strings.TrimSpace(nacre(t, append([]string{"run", "--timeout", "50m"}, flags...)...))
	if info := ps(t)[id]; string(info.Runtime) != on {
		t.Errorf("nacre run %v: on %q, want %s: %s decides", flags, info.Runtime, on, because)
	}
	return id
}

// ps is what nacre ps tells of each sandbox.
func ps(t *testing.T) map[string]client.Info {
	t.Helper()
	var list []client.Info
	if err := json.Unmarshal([]byte(nacre(t, "ps", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	all := map[string]client.Info{}
	for _, info := range list {
		all[info.ID] = info
	}
	return all
}

// nacre runs a command against the server.
func nacre(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(args...)
	if err != nil {
		t.Fatalf("nacre %v: %v: %s", args, err, out)
	}
	return out
}

func try(args ...string) (string, error) {
	out, err := exec.Command("/bin/nacre", append([]string{"--data-dir", dataDir}, args...)...).CombinedOutput()
	return string(out), err
}
