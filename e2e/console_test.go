package e2e

import (
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/nacrehq/nacre/client"
)

// TestFault20_ConsoleFlood: what a guest writes to its console, its kernel's log and
// the output of its first process fills neither the server's memory nor the host's disk.
func TestFault20_ConsoleFlood(t *testing.T) {
	d := start(t, "--memory-mib", "512", "--standby", "0")
	sb := many(t, d.client(), 1)[0]
	if _, err := sb.Run(t.Context(), "true"); err != nil {
		t.Fatal(err)
	}
	files := func() (n int64) {
		for _, dir := range []string{d.dir, filepath.Join("/run/nacre", d.instance())} {
			_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.Type().IsRegular() {
					if info, err := e.Info(); err == nil && filepath.Base(filepath.Dir(path)) != "images" && filepath.Ext(path) != ".erofs" {
						n += info.Size()
					}
				}
				return nil
			})
		}
		return n
	}
	pid := d.cmd.Process.Pid
	memory, disk := rss(t, pid), files()
	most := memory
	p, err := sb.Start(t.Context(), `sudo sh -c '
for to in /dev/console /dev/kmsg /dev/tty /proc/1/fd/1 /proc/1/fd/2; do
	(yes "a line of a flood, as long as a line of a log is, with a bit more behind it" | head -c 200M > $to) 2>/dev/null
done; true'`, client.Timeout(2*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	for ended := false; !ended; {
		select {
		case <-p.Done():
			ended = true
		case <-time.After(50 * time.Millisecond):
			most = max(most, rss(t, pid))
		}
	}
	t.Logf("server %d -> %d MiB, files %d -> %d KiB", memory>>20, most>>20, disk>>10, files()>>10)
	if most > memory+64<<20 {
		t.Errorf("the server's memory grew from %d to %d MiB", memory>>20, most>>20)
	}
	if grown := files() - disk; grown > 32<<20 {
		t.Errorf("files grew by %d MiB", grown>>20)
	}
	if res, err := sb.Run(t.Context(), "echo alive"); err != nil || res.Stdout != "alive\n" {
		t.Errorf("%+v %v", res, err)
	}
}
