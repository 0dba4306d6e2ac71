package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/nacrehq/nacre/client"
)

// tell lists a tree: names, modes, contents and links.
func tell(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		st, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case st.Mode()&fs.ModeSymlink != 0:
			link, _ := os.Readlink(p)
			out = append(out, rel+" -> "+link)
		case st.IsDir():
			out = append(out, rel+"/")
		default:
			raw, _ := os.ReadFile(p)
			out = append(out, fmt.Sprintf("%s %o %s", rel, st.Mode().Perm(), raw))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}

func TestCopyATreeThereAndBack(t *testing.T) {
	s := newShell(t)
	id := strings.TrimSpace(s.ok("run"))
	home := strings.TrimSpace(s.ok("exec", id, "--", "pwd"))
	src := filepath.Join(t.TempDir(), "src")
	write(t, filepath.Join(src, "a.txt"), "a", 0o644)
	write(t, filepath.Join(src, "bin", "tool"), "#!/bin/sh\n", 0o755)
	write(t, filepath.Join(src, "odd 'ü' $name"), "odd", 0o644)
	write(t, filepath.Join(src, ".hidden"), "", 0o644)
	write(t, filepath.Join(src, "key"), "secret", 0o600)
	if err := os.MkdirAll(filepath.Join(src, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../a.txt", filepath.Join(src, "bin", "link")); err != nil {
		t.Fatal(err)
	}
	want := tell(t, src)

	s.ok("cp", src, id+":there") // a name of its own
	if got := tell(t, filepath.Join(home, "there")); got != want {
		t.Errorf("in the sandbox:\n%s\nwant:\n%s", got, want)
	}
	s.ok("cp", src, id+":there") // into it, now that it is there
	if got := tell(t, filepath.Join(home, "there", "src")); got != want {
		t.Errorf("in the directory:\n%s", got)
	}
	s.ok("exec", id, "--", "rm -r there/src")

	back := t.TempDir()
	s.ok("cp", id+":there", back)
	if got := tell(t, filepath.Join(back, "there")); got != want {
		t.Errorf("back:\n%s\nwant:\n%s", got, want)
	}
	list := decode[[]copiedFile](t, s.ok("cp", "--json", id+":there", filepath.Join(back, "again")))
	if len(list) != 5 || list[0].Path != filepath.Join(back, "again", ".hidden") {
		t.Errorf("%+v", list)
	}
	if got := tell(t, filepath.Join(back, "again")); got != want {
		t.Errorf("again:\n%s", got)
	}
}

func TestCopyFiles(t *testing.T) {
	s := newShell(t)
	id, other := strings.TrimSpace(s.ok("run")), strings.TrimSpace(s.ok("run"))
	dir := t.TempDir()
	file := filepath.Join(dir, "f.sh")
	write(t, file, "echo hi\n", 0o755)

	s.ok("cp", file, id+":") // the home
	s.ok("cp", file, id+":new/place/")
	s.ok("cp", file, id+":renamed")
	if got := s.ok("exec", id, "--", "./f.sh && new/place/f.sh && ./renamed"); got != "hi\nhi\nhi\n" {
		t.Errorf("%q", got)
	}
	if got := s.ok("cp", id+":f.sh", "-"); got != "echo hi\n" {
		t.Errorf("to standard output: %q", got)
	}
	s.stdin = "typed"
	s.ok("cp", "-", id+":in.txt")
	s.ok("cp", id+":in.txt", other+":out.txt")
	s.ok("cp", other+":out.txt", filepath.Join(dir, "deep", "out.txt"))
	if raw, err := os.ReadFile(filepath.Join(dir, "deep", "out.txt")); err != nil || string(raw) != "typed" {
		t.Errorf("%q %v", raw, err)
	}
	s.ok("cp", id+":f.sh", filepath.Join(dir, "copy"))
	if st, err := os.Stat(filepath.Join(dir, "copy")); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("%v %v: the mode is lost", st.Mode(), err)
	}
	for want, args := range map[string][]string{
		"missing: no such": {"cp", id + ":missing", dir},
		"no such file":     {"cp", filepath.Join(dir, "missing"), id + ":"},
		"is a directory":   {"cp", id + ":new", "-"},
		"name the file":    {"cp", "-", id + ":new"},
	} {
		if got := s.fails(args...); !strings.Contains(got, want) {
			t.Errorf("%v: %q does not say %q", args, got, want)
		}
	}
	if got := tell(t, dir); strings.Contains(got, ".nacre-") {
		t.Errorf("a failed copy left a file:\n%s", got)
	}
}

// TestFault_HostileGuestCannotLeadACopyAstray: what a sandbox names stays below
// the directory that the user named.
func TestFault_HostileGuestCannotLeadACopyAstray(t *testing.T) {
	s := newShell(t)
	id := strings.TrimSpace(s.ok("run"))
	s.ok("exec", id, "--", "mkdir -p evil/d && cd evil && echo x > d/f && chmod 4777 d/f && ln -s /etc out && ln -s ../../.. up && ln -s d/f in")
	dir := t.TempDir()
	_, note, err := s.run("cp", id+":evil", dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := tell(t, filepath.Join(dir, "evil")); got != "./\nd/\nd/f 755 x\n\nin -> d/f" {
		t.Errorf("%s", got)
	}
	if strings.Count(note, "left out") != 2 {
		t.Errorf("%s", note)
	}

	// A link that stands here from before does not lead out either.
	victim := t.TempDir()
	if err := os.RemoveAll(filepath.Join(dir, "evil", "d")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, "evil", "d")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.run("cp", id+":evil", dir); err == nil {
		t.Error("it was followed")
	}
	if got := tell(t, victim); got != "./" {
		t.Errorf("written outside:\n%s", got)
	}
}

func TestShellLine(t *testing.T) {
	for want, args := range map[string][]string{
		"echo $HOME | wc": {"echo $HOME | wc"},
		"echo '$HOME' a":  {"echo", "$HOME", "a"},
	} {
		if got := shellLine(args); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if client.Quote("") != "''" {
		t.Error("an empty argument is lost")
	}
}
