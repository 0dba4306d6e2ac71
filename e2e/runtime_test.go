package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

// TestRuntimes: a sandbox is of the runtime that is asked for, with the command and with
// an unmodified SDK; what the host does not make is refused in one sentence; and a
// server that cannot have a runtime which sandboxes run on leaves them alone.
func TestRuntimes(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "1", "--runtime", "gvisor")
	id := strings.TrimSpace(d.cli("run", "--runtime", "gvisor", "--timeout", "10m"))
	list := js[[]client.Info](d, "ps")
	if len(list) != 1 || list[0].ID != id || list[0].Runtime != nacre.RuntimeGVisor || len(list[0].Metadata) > 0 {
		t.Errorf("ps: %+v", list)
	}
	if out := d.cli("ps"); !strings.Contains(out, "RUNTIME") || !strings.Contains(out, "gvisor") {
		t.Errorf("ps: %s", out)
	}
	_, err := d.try("run", "--runtime", "firecracker")
	if err == nil || !strings.Contains(err.Error(), "firecracker") || !strings.Contains(err.Error(), "this host offers gvisor") || strings.Count(strings.TrimSpace(err.Error()), "\n") > 0 {
		t.Errorf("a runtime that is not here: %v", err)
	}
	key := d.note().APIKey
	if a := d.call(key, http.MethodPost, "/sandboxes", map[string]any{"templateID": "base", "metadata": map[string]string{"nacre:runtime": "docker"}}); a.Status != http.StatusBadRequest {
		t.Errorf("a runtime that nobody knows: %s", a)
	}
	if runs := js[[]client.Run](d, "ps", "-a"); len(runs) != 1 {
		t.Errorf("what was refused has records: %+v", runs)
	}
	sdk := exec.Command(os.Getenv(envPython), "-c", `
from moru import Sandbox
box = Sandbox.create(metadata={"nacre:runtime": "gvisor", "user": "7"})
assert box.commands.run("echo hello").stdout == "hello\n"
assert box.get_info().metadata == {"user": "7"}, box.get_info().metadata
box.kill()
`)
	sdk.Env = d.env()
	if out, err := sdk.CombinedOutput(); err != nil {
		t.Errorf("the SDK: %v\n%s", err, out)
	}
	h := d.handles()[id]
	d.kill9()
	t.Run("a runtime that this host cannot have", func(t *testing.T) {
		out, err := exec.Command(d.bin, append(d.args, "--runtime", "firecracker")...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--runtime firecracker") || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
			t.Errorf("it says: %s (%v)", out, err)
		}
	})
	t.Run("a runtime that is gone", func(t *testing.T) {
		was, err := os.ReadFile(h.path)
		if err != nil {
			t.Fatal(err)
		}
		lost := strings.Replace(string(was), `"Runtime":"gvisor"`, `"Runtime":"gone"`, 1)
		if lost == string(was) {
			t.Fatalf("the handle names no runtime: %s", was)
		}
		if err := os.WriteFile(h.path, []byte(lost), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(d.bin, d.args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "1 sandbox runs on the runtime gone") || !strings.Contains(string(out), "nacre down") {
			t.Errorf("it says: %s (%v)", out, err)
		}
		if err := os.WriteFile(h.path, was, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	d.up()
	if got := d.handles()[id]; got.Handle != h.Handle {
		t.Errorf("it is not the machine that it was: %+v, %+v", got, h)
	}
	sb, err := d.client().Sandbox(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := sb.Run(t.Context(), "echo alive", client.Timeout(patience)); err != nil || r.Stdout != "alive\n" {
		t.Errorf("it does not answer: %+v, %v", r, err)
	}
}
