package microvm

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
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
	free, before := pages(t, freePages), pages(t, nrPages)
	setApart := func(n int) { setPages(t, before-free+n) } // beside what others have
	setApart(0)
	t.Cleanup(func() { setPages(t, before) })
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
	if left := pages(t, freePages); left != one {
		t.Errorf("of %d pages %d are free in the end", one, left)
	}
}

func pages(t *testing.T, file string) int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// setPages asks until the host has moved together what it can.
func setPages(t *testing.T, n int) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if err := os.WriteFile(nrPages, []byte(strconv.Itoa(n)), 0); err != nil {
			t.Fatal(err)
		}
		got := pages(t, nrPages)
		if got == n {
			return
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("%d pages are set apart, %d were asked for", got, n)
		}
		for file, word := range map[string]string{"/proc/sys/vm/drop_caches": "3", "/proc/sys/vm/compact_memory": "1"} {
			if err := os.WriteFile(file, []byte(word), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
}
