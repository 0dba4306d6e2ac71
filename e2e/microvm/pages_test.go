package microvm

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

const (
	nrPages   = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
	freePages = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"
)

// TestTemplatePages: sandboxes of a template in pages of 2 MiB. Who finds none of the
// host's free is told so and what to do; a paused sandbox stays paused until there are;
// one that goes on outlives its server; and all are given back.
func TestTemplatePages(t *testing.T) {
	const one = (256 + 8) / 2 // of a sandbox
	setUp(t)
	setApart := func(n int) {
		t.Helper()
		if err := os.WriteFile(nrPages, []byte(strconv.Itoa(n)), 0); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(nrPages); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(n) {
			t.Fatalf("%s pages are set apart, %d were asked for (%v)", b, n, err)
		}
	}
	setApart(0)
	t.Cleanup(func() { setApart(0) })
	flags := []string{"--runtime", "firecracker", "--template-pages", "base=2M"}
	kill := up(t, flags...)
	refused := func(args ...string) {
		t.Helper()
		if out, err := try(args...); err == nil || !strings.Contains(out, "vm.nr_hugepages") {
			t.Errorf("nacre %v without free pages: %s, %v", args, out, err)
		}
	}
	refused("run")
	setApart(one)
	id := strings.TrimSpace(nacre(t, "run", "--timeout", "50m"))
	refused("run")
	nacre(t, "exec", id, "--", "sh", "-c", "echo kept > /dev/shm/word || echo kept > /tmp/word")
	nacre(t, "pause", id)
	setApart(0)
	refused("resume", id)
	if info := ps(t)[id]; info.State != "paused" {
		t.Errorf("what could not be resumed is %s", info.State)
	}
	setApart(one)
	nacre(t, "resume", id)
	kill()
	kill = up(t, flags...)
	if out := nacre(t, "exec", id, "--", "sh", "-c", "cat /dev/shm/word /tmp/word 2>/dev/null; true"); !strings.Contains(out, "kept") {
		t.Errorf("after a pause and a kill -9 of the server the sandbox says %q", out)
	}
	nacre(t, "kill", "--all")
	kill()
	if b, err := os.ReadFile(freePages); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(one) {
		t.Errorf("of %d pages %s are free in the end (%v)", one, b, err)
	}
}
