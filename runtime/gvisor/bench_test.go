package gvisor

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/nacretest"
)

// TestIdleMemory reports what an idle machine costs the host.
func TestIdleMemory(t *testing.T) {
	r := newRuntime(t)
	ctx := context.Background()
	m, err := r.Start(ctx, newSpec(t))
	check(t, err)
	defer m.Stop(ctx)
	nacretest.DialGuest(t, m)
	time.Sleep(2 * time.Second)
	g := r.cgroup.group(string(m.ID()))
	var pss, rss int
	for _, pid := range procs(g.dir("memory")) {
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
		cmd, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		var line string
		for l := range strings.Lines(string(b)) {
			f := strings.Fields(l)
			if len(f) > 1 {
				n, _ := strconv.Atoi(f[1])
				switch f[0] {
				case "Rss:":
					rss += n
				case "Pss:":
					pss += n
				}
				if n > 0 && len(f) == 3 {
					line += " " + f[0] + f[1]
				}
			}
		}
		t.Logf("%d %.30s %s", pid, cmd, line)
	}
	u, _ := m.Usage(ctx)
	b, _ := os.ReadFile(filepath.Join(g.dir("memory"), "memory.stat"))
	t.Logf("pss %d KiB, rss %d KiB, usage %+v\n%s", pss, rss, u, b)
}
