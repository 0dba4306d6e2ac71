package agent_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountsAreNotRemoved: whoever removes a tree, or moves it to another file
// system, keeps what is mounted in it. (In a gVisor guest the removal of /proc
// deleted every file of the guest, by way of /proc/1/root.)
func TestMountsAreNotRemoved(t *testing.T) {
	g := newGuest(t)
	g.initialised(t, "")
	other := t.TempDir() // where the moves go
	for _, dir := range []string{g.dir + "/tree", g.dir + "/tree/with space", other} {
		must(t, os.MkdirAll(dir, 0o755))
	}
	mounted := g.dir + "/tree/with space"
	for _, dir := range []string{mounted, other} {
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", dir, err)
			}
		})
	}
	must(t, os.WriteFile(mounted+"/kept", nil, 0o644))
	must(t, os.Symlink(g.dir, g.dir+"/link"))
	for _, path := range []string{g.dir + "/tree", mounted, g.dir + "/link/tree"} {
		quoted, err := json.Marshal(path)
		must(t, err)
		for _, c := range []struct{ method, body string }{
			{"Remove", `{"path":` + string(quoted) + `}`},
			{"Move", `{"source":` + string(quoted) + `,"destination":"` + other + `/tree"}`},
		} {
			status, answer := g.unary(t, fsRPC+c.method, c.body)
			if status == 200 || !strings.Contains(answer, "mounted at") {
				t.Errorf("%s %s: %d %s", c.method, path, status, answer)
			}
		}
	}
	if _, err := os.Stat(mounted + "/kept"); err != nil {
		t.Errorf("what is mounted in the tree was removed with it: %v", err)
	}
	must(t, os.Symlink("/proc/self", g.dir+"/self"))
	for _, path := range []string{"/proc/self", "/proc/1", "/proc/1/root", g.dir + "/self/cwd"} {
		if status, answer := g.unary(t, fsRPC+"Remove", `{"path":"`+path+`"}`); status == 200 || !strings.Contains(answer, "belongs to the kernel") {
			t.Errorf("Remove %s: %d %s", path, status, answer)
		}
	}
	if status, answer := g.unary(t, fsRPC+"Remove", `{"path":"`+g.dir+`/link"}`); status != 200 { // the link alone
		t.Errorf("a link to a directory with a mount: %d %s", status, answer)
	}
}
