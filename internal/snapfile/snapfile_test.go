package snapfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type birth struct {
	Birth
	Own string
}

func format() Format {
	return Format{Version: 3, Key: "here", Sum: Sum, Large: func(n string) bool { return n == "pages" },
		Files: func(filesOnly bool) []string {
			if filesOnly {
				return []string{"disk"}
			}
			return []string{"disk", "pages"}
		}}
}

func write(t *testing.T, opt nacre.SnapshotOptions) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range format().Files(opt.FilesOnly) {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte("content of "+name), 0o600))
	}
	info, err := format().Write(dir, birth{Birth{Key: "here", CPUs: 2, MemoryMiB: 64, UpperMiB: 10, Image: "i"}, "own"}, opt)
	check(t, err)
	if info.RestoreKey != "here" || info.FilesOnly != opt.FilesOnly || len(info.Files) != len(format().Files(opt.FilesOnly))+1 {
		t.Errorf("%+v", info)
	}
	return dir
}

func TestOpen(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(dir string) error
		format func(*Format)
		want   nacre.Code // of Open or CheckAll
	}{
		"whole":                {want: ""},
		"no manifest":          {damage: func(d string) error { return os.Remove(filepath.Join(d, Manifest)) }, want: nacre.CodeNotFound},
		"torn manifest":        {damage: func(d string) error { return os.Truncate(filepath.Join(d, Manifest), 20) }, want: nacre.CodeConflict},
		"another format":       {format: func(f *Format) { f.Version = 4 }, want: nacre.CodeMismatch},
		"another host":         {format: func(f *Format) { f.Key = "there" }, want: nacre.CodeMismatch},
		"a file less":          {damage: func(d string) error { return os.Remove(filepath.Join(d, "pages")) }, want: nacre.CodeConflict},
		"a shorter file":       {damage: func(d string) error { return os.Truncate(filepath.Join(d, "pages"), 1) }, want: nacre.CodeConflict},
		"a changed small file": {damage: func(d string) error { return change(filepath.Join(d, "disk")) }, want: nacre.CodeConflict},
		"a changed large file, whose sum nobody took": {damage: func(d string) error { return change(filepath.Join(d, "pages")) }, want: ""},
		"a manifest that names another file":          {format: func(f *Format) { f.Files = func(bool) []string { return []string{"disk"} } }, want: nacre.CodeConflict},
		"a manifest that lacks a file":                {format: func(f *Format) { f.Files = func(bool) []string { return []string{"disk", "pages", "more"} } }, want: nacre.CodeConflict},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, nacre.SnapshotOptions{})
			f := format()
			if c.damage != nil {
				check(t, c.damage(dir))
			}
			if c.format != nil {
				c.format(&f)
			}
			var b birth
			s, err := f.Open(dir, &b)
			if err == nil {
				err = s.CheckAll()
			}
			if c.want == "" && err != nil || c.want != "" && !nacre.IsCode(err, c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if c.want == "" && (b.Own != "own" || b.CPUs != 2 || s.Birth != b.Birth) {
				t.Errorf("the birth is %+v, %+v", b, s.Birth)
			}
		})
	}
}

// TestSumPages: the large file's sum is taken when it was asked for.
func TestSumPages(t *testing.T) {
	dir := write(t, nacre.SnapshotOptions{SumPages: true})
	check(t, change(filepath.Join(dir, "pages")))
	s, err := format().Open(dir, &birth{})
	check(t, err)
	if err := s.CheckAll(); !nacre.IsCode(err, nacre.CodeConflict) || !strings.Contains(err.Error(), "pages") {
		t.Errorf("%v", err)
	}
}

// TestTransient: of a snapshot that does not leave its process nobody takes sums; that it
// is whole is checked all the same.
func TestTransient(t *testing.T) {
	dir := write(t, nacre.SnapshotOptions{Transient: true})
	f, summed := format(), 0
	f.Sum = func(path string) (string, error) { summed++; return Sum(path) }
	s, err := f.Open(dir, &birth{})
	check(t, err)
	check(t, s.CheckAll())
	if summed != 0 {
		t.Errorf("%d sums", summed)
	}
	check(t, os.Truncate(filepath.Join(dir, "disk"), 1))
	if _, err := f.Open(dir, &birth{}); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("%v", err)
	}
}

func TestFits(t *testing.T) {
	spec := func(cpus, mem, upper int) (s nacre.MachineSpec) {
		s.Resources.CPUs, s.Resources.MemoryMiB, s.Root.UpperMiB = cpus, mem, upper
		return s
	}
	for _, filesOnly := range []bool{false, true} {
		s, err := format().Open(write(t, nacre.SnapshotOptions{FilesOnly: filesOnly}), &birth{})
		check(t, err)
		for _, c := range []struct {
			spec  nacre.MachineSpec
			field string // that does not fit; "" when all do
			boots bool   // it fits a guest that boots
		}{
			{spec(2, 64, 10), "", true}, {spec(1, 64, 10), "Resources.CPUs", true},
			{spec(2, 65, 10), "Resources.MemoryMiB", true}, {spec(2, 64, 11), "Root.UpperMiB", false},
		} {
			err := s.Fits(c.spec)
			fits := c.field == "" || filesOnly && c.boots
			if fits != (err == nil) || !fits && !nacre.IsCode(err, nacre.CodeConflict) {
				t.Errorf("files only %t, %s: %v", filesOnly, c.field, err)
			}
		}
		if s.FitsImage("i") != nil || !nacre.IsCode(s.FitsImage("j"), nacre.CodeConflict) {
			t.Error("the image is not compared")
		}
	}
}

// change changes a file's first byte.
func change(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte("C"), 0)
	return err
}

// TestWholeOrAbsent: a manifest is never seen half-written, as one was that a killed
// process had begun.
func TestWholeOrAbsent(t *testing.T) {
	path := filepath.Join(t.TempDir(), Manifest)
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 3000 && err == nil; i++ {
			err = WriteJSON(path, strings.Repeat("x", 64<<10))
		}
		done <- err
	}()
	for {
		select {
		case err := <-done:
			check(t, err)
			if left, _ := filepath.Glob(path + "?*"); len(left) > 0 {
				t.Errorf("left %v", left)
			}
			return
		default:
		}
		if b, err := os.ReadFile(path); err == nil && len(b) != 64<<10+2 {
			t.Fatalf("a reader saw %d bytes of %d", len(b), 64<<10+2)
		}
	}
}
