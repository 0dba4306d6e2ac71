package image_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/blob"
	"github.com/nacrehq/nacre/image"
	"github.com/nacrehq/nacre/nacretest"
)

func open(t testing.TB, o image.Options) *image.Store {
	t.Helper()
	s, err := image.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openBlobs(t testing.TB, dir string) *blob.Dir {
	t.Helper()
	d, err := blob.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestStore(t *testing.T) {
	for name, blobs := range map[string]func(t *testing.T) nacre.BlobStore{
		"Alone":      func(*testing.T) nacre.BlobStore { return nil },
		"WithMemory": func(*testing.T) nacre.BlobStore { return blob.NewMemory() },
		"WithDir":    func(t *testing.T) nacre.BlobStore { return openBlobs(t, t.TempDir()) },
	} {
		t.Run(name, func(t *testing.T) {
			nacretest.TestImageStore(t, func(t *testing.T) nacre.ImageStore {
				return open(t, image.Options{Dir: filepath.Join(t.TempDir(), "made", "here"), Blobs: blobs(t)})
			})
		})
	}
}

// counting is a blob store that counts Gets of images, and is no Linker.
type counting struct {
	nacre.BlobStore
	gets atomic.Int64
	gate chan struct{} // when set, Gets of images wait for it
}

func (c *counting) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if strings.HasSuffix(key, "rootfs.erofs") {
		c.gets.Add(1)
		if c.gate != nil {
			select {
			case <-c.gate:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	return c.BlobStore.Get(ctx, key, offset, length)
}

// TestOtherHost: an image that one host imports is there for another, which
// fetches it once however many ask.
func TestOtherHost(t *testing.T) {
	blobs := &counting{BlobStore: blob.NewMemory(), gate: make(chan struct{})}
	one := open(t, image.Options{Dir: t.TempDir(), Blobs: blobs})
	two := open(t, image.Options{Dir: t.TempDir(), Blobs: blobs})
	b := nacre.NewBuildID()
	if err := one.Import(t.Context(), b, nacretest.EROFSImage(t, "content")); err != nil {
		t.Fatal(err)
	}
	// The first to ask gives up; the fetch goes on for the others.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := two.Fetch(ctx, b); !errors.Is(err, context.Canceled) {
		t.Errorf("fetch with an ended context: %v", err)
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			r, err := two.Prepare(t.Context(), b, nacre.NewMachineID(), 10)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := os.ReadFile(r.Image); err != nil || !bytes.Equal(got, nacretest.EROFSBytes("content")) {
				t.Errorf("the image has %d bytes, %v", len(got), err)
			}
		})
	}
	close(blobs.gate)
	wg.Wait()
	if _, err := two.Prepare(t.Context(), b, nacre.NewMachineID(), 10); err != nil {
		t.Error(err)
	}
	if n := blobs.gets.Load(); n != 1 {
		t.Errorf("the image was read %d times", n)
	}
	if err := two.Fetch(t.Context(), nacre.NewBuildID()); !nacre.IsCode(err, nacre.CodeNotFound) {
		t.Errorf("fetch of an unknown build: %v", err)
	}
}

// TestCloseEndsFetches: a fetch that hangs does not keep the store open.
func TestCloseEndsFetches(t *testing.T) {
	blobs := &counting{BlobStore: blob.NewMemory(), gate: make(chan struct{})}
	b := nacre.NewBuildID()
	if err := open(t, image.Options{Dir: t.TempDir(), Blobs: blobs}).Import(t.Context(), b, nacretest.EROFSImage(t, "")); err != nil {
		t.Fatal(err)
	}
	s := open(t, image.Options{Dir: t.TempDir(), Blobs: blobs})
	done := make(chan error, 1)
	go func() { done <- s.Fetch(t.Context(), b) }()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("the fetch succeeded")
	}
	if err := s.Fetch(t.Context(), b); err == nil {
		t.Error("a closed store fetched")
	}
}

// TestStoredOnce: a blob store on the same disk takes no second copy, on the way
// out and on the way in.
func TestStoredOnce(t *testing.T) {
	dir := t.TempDir()
	blobs := openBlobs(t, filepath.Join(dir, "blobs"))
	one := open(t, image.Options{Dir: filepath.Join(dir, "one"), Blobs: blobs})
	two := open(t, image.Options{Dir: filepath.Join(dir, "two"), Blobs: blobs})
	b, src := nacre.NewBuildID(), filepath.Join(dir, "src")
	if err := os.WriteFile(src, nacretest.EROFSBytes("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := one.Import(t.Context(), b, src); err != nil {
		t.Fatal(err)
	}
	if err := two.Fetch(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	first, err := os.Stat(src)
	if err != nil {
		t.Fatal(err)
	}
	object, ok := blobs.Path("templates/" + string(b) + "/rootfs.erofs")
	if !ok {
		t.Fatal("the image was not stored")
	}
	for _, path := range []string{object, filepath.Join(dir, "one", "images", string(b)+".erofs"), filepath.Join(dir, "two", "images", string(b)+".erofs")} {
		if fi, err := os.Stat(path); err != nil || !os.SameFile(first, fi) {
			t.Errorf("%s is a copy, %v", path, err)
		}
	}
}

// TestOthersFileIsCopied: an image that others may write to is not linked, for it
// would change under running machines.
func TestOthersFileIsCopied(t *testing.T) {
	dir := t.TempDir()
	s := open(t, image.Options{Dir: filepath.Join(dir, "store")})
	src := filepath.Join(dir, "src")
	if err := os.WriteFile(src, nacretest.EROFSBytes("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(src, 0o666); err != nil {
		t.Fatal(err)
	}
	b := nacre.NewBuildID()
	if err := s.Import(t.Context(), b, src); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(src, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := s.Prepare(t.Context(), b, nacre.NewMachineID(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(r.Image); err != nil || !bytes.Equal(got, nacretest.EROFSBytes("content")) {
		t.Errorf("the image changed with its source: %v", err)
	}
}

// TestRealImage: the store takes what mkfs.erofs makes and notices a bit that
// flips in its superblock.
func TestRealImage(t *testing.T) {
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		t.Skip("mkfs.erofs is not installed")
	}
	dir := t.TempDir()
	tree, img := filepath.Join(dir, "tree"), filepath.Join(dir, "img")
	if err := errors.Join(os.Mkdir(tree, 0o755), os.WriteFile(filepath.Join(tree, "file"), []byte("hello"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-E", "noinline_data", img, tree).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	s := open(t, image.Options{Dir: filepath.Join(dir, "store")})
	if err := s.Import(t.Context(), nacre.NewBuildID(), img); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	text[1024+48] ^= 1 // of the UUID
	if err := os.WriteFile(img+"2", text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Import(t.Context(), nacre.NewBuildID(), img+"2"); !nacre.IsCode(err, nacre.CodeInvalid) {
		t.Errorf("a flipped bit: %v", err)
	}
}

// BenchmarkPrepareRelease is on the path of each start.
func BenchmarkPrepareRelease(b *testing.B) {
	s := open(b, image.Options{Dir: b.TempDir(), ReserveMiB: 1})
	build := nacre.NewBuildID()
	src := filepath.Join(b.TempDir(), "image")
	if err := os.WriteFile(src, nacretest.EROFSBytes("x"), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := s.Import(b.Context(), build, src); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		id := nacre.NewMachineID()
		if _, err := s.Prepare(b.Context(), build, id, 1024); err != nil {
			b.Fatal(err)
		}
		if err := s.Release(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}
