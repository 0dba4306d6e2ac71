package nacretest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nacrehq/nacre"
)

// testSnapshotOfFiles: all that a file system holds is there in a guest that boots
// from it, and nothing else of the guest.
func testSnapshotOfFiles(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	m := h.boot(t, r, h.Spec(t))
	g := DialGuest(t, m)
	g.Do("tree", "/root/tree")
	g.Do("write", 1, "/tmp/big")
	g.Do("hold", 16) // memory is not in it
	trees := []any{"/root", "/tmp", "/etc", "/bin"}
	want := g.Do("describe", trees...).Out
	dir, info := snap(t, m, nacre.SnapshotOptions{FilesOnly: true, KeepRunning: true})
	g.Do("append", "/root/later", "x")
	if !info.FilesOnly || info.RestoreKey != r.Capabilities().RestoreKey {
		t.Errorf("%+v", info)
	}
	if n := occupied(info); n > 12<<20 {
		t.Errorf("it occupies %d bytes", n)
	}
	if err := r.VerifySnapshot(t.Context(), dir); err != nil {
		t.Errorf("VerifySnapshot: %v", err)
	}
	from := func(dir string) (nacre.Machine, *Guest) {
		s := h.Spec(t)
		s.Hostname = "other"
		s.Resources.CPUs++
		s.Resources.MemoryMiB += 64
		m := h.restore(t, r, s, dir)
		return m, DialGuest(t, m)
	}
	again, g2 := from(dir)
	if got := g2.Do("describe", trees...).Out; got != want {
		t.Errorf("the files are\n%s\nwant\n%s", got, want)
	}
	if got := g2.Do("hostname").Out; got != "other" {
		t.Errorf("hostname %q", got)
	}
	if n := g2.Do("held").N; n != 0 {
		t.Error("the guest has memory of the other's")
	}
	// It is a machine like any other: with memory and without, held and let go.
	g2.Do("append", "/root/mine", "y")
	want = g2.Do("describe", trees...).Out
	files, _ := snap(t, again, nacre.SnapshotOptions{FilesOnly: true})
	if err := again.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	g2.Do("keep", 2)
	full, _ := snap(t, again, nacre.SnapshotOptions{})
	_, g3 := from(files)
	if got := g3.Do("describe", trees...).Out; got != want {
		t.Errorf("the second time the files are\n%s\nwant\n%s", got, want)
	}
	s := h.Spec(t)
	s.Resources.CPUs++
	s.Resources.MemoryMiB += 64
	DialGuest(t, h.restore(t, r, s, full)).Do("kept")
	testFilesRefused(t, h, r, dir, info)
}

func testFilesRefused(t *testing.T, h RuntimeHost, r nacre.Runtime, dir string, info nacre.SnapshotInfo) {
	refused := func(name, dir string, spoil func(*nacre.MachineSpec)) {
		t.Helper()
		s := h.Spec(t)
		spoil(&s)
		m, err := r.Restore(t.Context(), s, dir)
		wantCode(t, "Restore, "+name, err, nacre.CodeConflict)
		if err == nil {
			_ = m.Stop(t.Context())
		}
		h.nothing(t, s)
	}
	refused("another image", dir, func(s *nacre.MachineSpec) { s.Root.Image = s.AgentPath })
	refused("more disk", dir, func(s *nacre.MachineSpec) { s.Root.UpperMiB++ })
	as := func(*nacre.MachineSpec) {}
	for _, f := range info.Files {
		if f.Name == "snapshot.json" || f.Size == 0 {
			continue
		}
		refused(f.Name+" cut", damage(t, dir, f.Name, func(b []byte) []byte { return b[:len(b)/2] }), as)
		bad := damage(t, dir, f.Name, func([]byte) []byte { return nil })
		refused(f.Name+" missing", bad, as)
		if _, err := os.Stat(filepath.Join(bad, f.Name)); err == nil {
			t.Errorf("%s was made by a restore", f.Name)
		}
	}
}
