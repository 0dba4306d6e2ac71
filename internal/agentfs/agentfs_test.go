package agentfs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

func build(program []byte) (sum [16]byte, image []byte, err error) {
	whole := sha256.Sum256(program)
	sum = [16]byte(whole[:16])
	image, err = Image(sum, map[string][]byte{"agent": program}, nil)
	return sum, image, err
}

// TestImages: an agent that was replaced under its name is not confused with
// the one before, and a snapshot's manifest names no other file.
func TestImages(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	a := Images{Prefix: "agent"}
	seen := map[string]bool{}
	for _, content := range []string{"\x7fELF one", "\x7fELF two"} {
		check(t, os.WriteFile(bin+".new", []byte(content), 0o755))
		check(t, os.Rename(bin+".new", bin))
		for range 2 {
			p, err := a.Of(bin, build)
			check(t, err)
			seen[p] = true
			b, err := os.ReadFile(p)
			check(t, err)
			if !strings.HasPrefix(string(b[8192:]), content) || len(b) != 12288 {
				t.Errorf("%s holds another agent", p)
			}
		}
	}
	if len(seen) != 2 {
		t.Errorf("two agents have %d images", len(seen))
	}
	for p := range seen { // gone, or torn by a crash: made again
		check(t, os.WriteFile(p, nil, 0o644))
	}
	p, err := (&Images{Prefix: "agent"}).Of(bin, build)
	check(t, err)
	if st, err := os.Stat(p); err != nil || st.Size() != 12288 {
		t.Errorf("a torn image was taken: %v", err)
	}
	for _, name := range []string{"../x", "agent-x.erofs", "nacre-agent-0123456789abcdef", ""} {
		if _, err := a.Keep(p, name, dir, func() error { return nil }); !nacre.IsCode(err, nacre.CodeConflict) {
			t.Errorf("%q: %v", name, err)
		}
	}
	other := t.TempDir()
	bad := errors.New("damaged")
	if _, err := a.Keep(p, filepath.Base(p), other, func() error { return bad }); err != bad {
		t.Errorf("a damaged image: %v", err)
	}
	kept, err := a.Keep(p, filepath.Base(p), other, func() error { return nil })
	check(t, err)
	if st, err := os.Stat(kept); err != nil || filepath.Dir(kept) != other || st.Size() != 12288 {
		t.Errorf("%s was not kept: %v", kept, err)
	}
}

// TestSweep: what nobody uses goes when it is old, and nothing else.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	check(t, os.WriteFile(bin, []byte("\x7fELF"), 0o755))
	a := Images{Prefix: "agent"}
	made, err := a.Of(bin, build)
	check(t, err)
	file := func(name string) string { return filepath.Join(dir, name) }
	image := func(digit string) string { return file("agent-" + strings.Repeat(digit, 32) + ".erofs") }
	stays := map[string]bool{made: true, bin: true, image("0"): false, image("1"): true, image("2"): true,
		file("agent-x.erofs"): true, file("another-" + strings.Repeat("0", 32) + ".erofs"): true, file("agent-" + strings.Repeat("0", 32)): true}
	now := time.Now()
	for path := range stays {
		if _, err := os.Stat(path); err != nil {
			check(t, os.WriteFile(path, nil, 0o644))
		}
		if path != image("2") {
			check(t, os.Chtimes(path, now.Add(-2*Grace), now.Add(-2*Grace)))
		}
	}
	check(t, a.Sweep(dir, map[string]bool{image("1"): true}, now))
	for path, want := range stays {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: there %t, want %t", filepath.Base(path), err == nil, want)
		}
	}
}

// TestImageIsTheSame: snapshots of guests that have a file system mounted are given
// one of the same name, which has to be the same file to the last byte.
func TestImageIsTheSame(t *testing.T) {
	for want, c := range map[string]struct {
		program string
		dirs    []string
	}{
		"1af0e6190a47ce43": {"\x7fELF agent", nil},
		"d769538ad2752683": {strings.Repeat("long", 5000), []string{"dev", "lower", "new", "proc", "rw", "sys"}},
	} {
		img, err := Image([16]byte([]byte("0123456789abcdef")), map[string][]byte{"agent": []byte(c.program)}, c.dirs)
		check(t, err)
		sum := sha256.Sum256(img)
		if got := hex.EncodeToString(sum[:8]); got != want {
			t.Errorf("the image's sum begins with %s, want %s", got, want)
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
