package sparse

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// file writes a file of 8 MiB with data at 1 MiB and at its end, and zeros, which are
// no hole, at 3 MiB.
func file(t *testing.T) (path string, content []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "f")
	content = make([]byte, 8<<20)
	copy(content[1<<20:], "here")
	content[len(content)-1] = 1
	f, err := os.Create(path)
	check(t, err)
	defer f.Close()
	check(t, f.Truncate(int64(len(content))))
	for _, at := range []int{1 << 20, 3 << 20, len(content) - 1} {
		_, err = f.WriteAt(content[at:min(at+256<<10, len(content))], int64(at))
		check(t, err)
	}
	check(t, f.Sync()) // file systems that give blocks late
	return path, content
}

func occupies(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	check(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

func TestCloneKeepsHoles(t *testing.T) {
	src, want := file(t)
	dst := filepath.Join(filepath.Dir(src), "copy")
	check(t, Clone(src, dst, 0o600))
	got, err := os.ReadFile(dst)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the copy is another file")
	}
	if n := occupies(t, dst); n > 2<<20 {
		t.Errorf("the copy occupies %d bytes, the file %d", n, occupies(t, src))
	}
	if err := Clone(src, dst, 0o600); !os.IsExist(err) {
		t.Errorf("a file was overwritten: %v", err)
	}
}

// TestSum: zeros and holes are the same, moved data is not.
func TestSum(t *testing.T) {
	path, content := file(t)
	sum := func(path string) string {
		s, err := Sum(path)
		check(t, err)
		return s
	}
	before := sum(path)
	full := filepath.Join(t.TempDir(), "full")
	check(t, os.WriteFile(full, content, 0o600))
	if sum(full) != before {
		t.Error("zeros are not what holes are")
	}
	check(t, Punch(path))
	if sum(path) != before {
		t.Error("Punch changed the file")
	}
	if n := occupies(t, path); n > 64<<10 {
		t.Errorf("%d bytes are left of two pages", n)
	}
	copy(content[2<<20:], "here")
	copy(content[1<<20:], "\x00\x00\x00\x00")
	check(t, os.WriteFile(full, content, 0o600))
	if sum(full) == before {
		t.Error("data that moved has the same sum")
	}
}
