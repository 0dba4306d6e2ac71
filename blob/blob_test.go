package blob_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/blob"
	"github.com/nacrehq/nacre/nacretest"
)

func openDir(t *testing.T, dir string) *blob.Dir {
	t.Helper()
	d, err := blob.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDir(t *testing.T) {
	nacretest.TestBlobStore(t, func(t *testing.T) nacre.BlobStore { return openDir(t, filepath.Join(t.TempDir(), "made", "here")) })
}

func TestMemory(t *testing.T) {
	nacretest.TestBlobStore(t, func(t *testing.T) nacre.BlobStore { return blob.NewMemory() })
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for address, want := range map[string]string{
		"mem:": "", "file://" + dir + "/a": "a", "file:" + dir + "/b": "b", dir + "/c": "c", "d": "d", "./e:f": "e:f",
		"file://localhost" + dir + "/g%20h": "g h",
	} {
		s, err := blob.Open(address)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if _, err := s.Put(t.Context(), "k", strings.NewReader("x")); err != nil {
			t.Errorf("%s: %v", address, err)
		}
		_, isDir := s.(*blob.Dir)
		if isDir != (want != "") {
			t.Errorf("%s gives a %T", address, s)
		}
		if want != "" {
			if _, err := os.Stat(filepath.Join(dir, want, "objects")); err != nil {
				t.Errorf("%s: %v", address, err)
			}
		}
	}
	for _, address := range []string{"", "mem:x", "s4://key:hunter2@bucket", "file://host/x", "file:", "file:x", "file:///x?y", "http://user:hunter2@h/"} {
		_, err := blob.Open(address)
		if !nacre.IsCode(err, nacre.CodeInvalid) || strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// TestFault03_KilledPut: kill -9 while objects are written leaves whole objects
// only, and the next start clears the rest away.
func TestFault03_KilledPut(t *testing.T) {
	if dir := os.Getenv("NACRE_TEST_KILLED_PUT"); dir != "" {
		putForEver(t, dir)
	}
	dir := t.TempDir()
	for round := range 5 {
		nacretest.KillWithin(t, "NACRE_TEST_KILLED_PUT", dir, 20+7*round) // some are done
		d := openDir(t, dir)
		if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) != 0 {
			t.Errorf("after the sweep tmp holds %v %v", left, err)
		}
		n := 0
		err := d.List(t.Context(), "", func(b nacre.Blob) error {
			n++
			if got := nacretest.ReadBlob(t, d, b.Key); got != killedContent(b.Key) {
				return fmt.Errorf("%s has %d bytes", b.Key, len(got))
			}
			return nil
		})
		if err != nil || n == 0 {
			t.Errorf("%d objects, %v", n, err)
		}
	}
}

func killedContent(key string) string { return strings.Repeat(key, 50_000) }

func putForEver(t *testing.T, dir string) {
	d := openDir(t, dir)
	for i := 0; ; i++ {
		key := fmt.Sprintf("d%d/k%d", i%3, i%7)
		if _, err := d.Put(t.Context(), key, strings.NewReader(killedContent(key))); err != nil {
			t.Fatal(err)
		}
		fmt.Print(".")
	}
}

// TestFault11_DiskFull: a put that does not fit says so, leaves what there was,
// and the store works on when there is room again.
func TestFault11_DiskFull(t *testing.T) {
	if !nacretest.InMountNamespace(t) {
		return
	}
	dir := t.TempDir()
	nacretest.SmallDisk(t, dir, "size=1m")
	d := openDir(t, dir)
	small := strings.Repeat("s", 400<<10)
	if _, err := d.Put(t.Context(), "k", strings.NewReader(small)); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"k", "new"} {
		_, err := d.Put(t.Context(), key, bytes.NewReader(make([]byte, 2<<20)))
		if !nacre.IsCode(err, nacre.CodeNoSpace) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("put of %s on a full disk: %v", key, err)
		}
	}
	if got := nacretest.ReadBlob(t, d, "k"); got != small {
		t.Errorf("the object has %d bytes", len(got))
	}
	if _, err := d.Put(t.Context(), "new", strings.NewReader(small)); err != nil {
		t.Errorf("put when there is room again: %v", err)
	}
}

// TestFault12_NoInodes: the same for a disk without room for another file.
func TestFault12_NoInodes(t *testing.T) {
	if !nacretest.InMountNamespace(t) {
		return
	}
	dir := t.TempDir()
	nacretest.SmallDisk(t, dir, "nr_inodes=8")
	d := openDir(t, dir)
	var err error
	stored := 0
	for ; err == nil && stored < 100; stored++ {
		_, err = d.Put(t.Context(), fmt.Sprintf("k%d", stored), strings.NewReader("x"))
	}
	if !nacre.IsCode(err, nacre.CodeNoSpace) {
		t.Fatalf("after %d objects: %v", stored, err)
	}
	if err := d.Delete(t.Context(), "k0"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Put(t.Context(), "again", strings.NewReader("x")); err != nil {
		t.Error(err)
	}
}

// TestFault29_Links: links that lie in the store lead nowhere outside of it.
func TestFault29_Links(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := openDir(t, dir)
	for name, target := range map[string]string{"file": secret, "up+": outside} {
		if err := os.Symlink(target, filepath.Join(dir, "objects", name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"file", "up/secret"} {
		if r, err := d.Get(t.Context(), key, 0, -1); err == nil {
			r.Close()
			t.Errorf("%s leads outside", key)
		}
	}
	if _, err := d.Put(t.Context(), "up/new", strings.NewReader("x")); err == nil {
		t.Error("a put led outside")
	}
	if err := d.List(t.Context(), "", func(b nacre.Blob) error { return fmt.Errorf("listed %s", b.Key) }); err != nil {
		t.Error(err)
	}
	_ = d.Delete(t.Context(), "up/secret")
	if _, err := os.Stat(secret); err != nil {
		t.Error("a delete led outside")
	}
}

// TestSweepLeavesWriters: opening a store that another has open does not take what
// that is writing.
func TestSweepLeavesWriters(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "tmp", "left"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := d.Put(t.Context(), "k", r)
		done <- err
	}()
	if _, err := w.Write([]byte("hello, ")); err != nil { // the temporary file is there
		t.Fatal(err)
	}
	openDir(t, dir)
	if _, err := os.Stat(filepath.Join(dir, "tmp", "left")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the left file is still there: %v", err)
	}
	if _, err := w.Write([]byte("world")); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := nacretest.ReadBlob(t, d, "k"); got != "hello, world" {
		t.Errorf("stored %q", got)
	}
}

func TestLink(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, filepath.Join(dir, "store"))
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a repeat is no error
		b, err := d.Link(t.Context(), "a/b", file)
		if err != nil || b.Key != "a/b" || b.Size != 7 {
			t.Fatalf("%+v %v", b, err)
		}
	}
	path, ok := d.Path("a/b")
	if !ok {
		t.Fatal("no path")
	}
	a, err1 := os.Stat(file)
	b, err2 := os.Stat(path)
	if err1 != nil || err2 != nil || !os.SameFile(a, b) {
		t.Errorf("%s is not %s: %v %v", path, file, err1, err2)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "store", "tmp")); err != nil || len(left) != 0 {
		t.Errorf("tmp holds %v %v", left, err)
	}
	if _, ok := d.Path("a"); ok {
		t.Error("a path of nothing")
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{link, dir, filepath.Join(dir, "none"), "/dev/null"} {
		if _, err := d.Link(t.Context(), "bad", bad); err == nil {
			t.Errorf("%s was linked", bad)
		}
	}
	if _, err := d.Link(t.Context(), "../x", file); !nacre.IsCode(err, nacre.CodeInvalid) {
		t.Errorf("bad key: %v", err)
	}
}
