package image_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/blob"
	"github.com/nacrehq/nacre/image"
	"github.com/nacrehq/nacre/nacretest"
)

// TestFault25_DamagedInStore: what does not match its manifest never gets an
// image's name on this host.
func TestFault25_DamagedInStore(t *testing.T) {
	b := nacre.NewBuildID()
	key, manifest := "templates/"+string(b)+"/rootfs.erofs", "templates/"+string(b)+"/manifest.json"
	good := nacretest.EROFSBytes(strings.Repeat("content", 1000))
	flipped := bytes.Clone(good)
	flipped[len(flipped)-5000] ^= 1
	for name, c := range map[string]struct {
		key     string
		content []byte
	}{
		"bit flip":       {key, flipped},
		"truncated":      {key, good[:len(good)-4096]},
		"grown":          {key, append(bytes.Clone(good), 0)},
		"empty":          {key, nil},
		"no manifest":    {manifest, nil},
		"garbage":        {manifest, []byte("\x00\xff{")},
		"array":          {manifest, []byte("[]")},
		"huge":           {manifest, bytes.Repeat([]byte(" "), 1<<20)},
		"negative":       {manifest, []byte(`{"size":-1,"sha256":"` + strings.Repeat("0", 64) + `"}`)},
		"short hash":     {manifest, []byte(`{"size":40960,"sha256":"00"}`)},
		"another's hash": {manifest, []byte(fmt.Sprintf(`{"size":%d,"sha256":"%064d"}`, len(good), 0))},
	} {
		for kind, blobs := range map[string]nacre.BlobStore{"memory": blob.NewMemory(), "dir": openBlobs(t, t.TempDir())} {
			src := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(src, good, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := open(t, image.Options{Dir: t.TempDir(), Blobs: blobs}).Import(t.Context(), b, src); err != nil {
				t.Fatal(err)
			}
			if _, err := blobs.Put(t.Context(), c.key, bytes.NewReader(c.content)); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			s := open(t, image.Options{Dir: dir, Blobs: blobs})
			_, err := s.Prepare(t.Context(), b, nacre.NewMachineID(), 1)
			if !nacre.IsCode(err, nacre.CodeInternal) || !strings.Contains(nacre.ErrorMessage(err), "damaged") {
				t.Errorf("%s in %s: %v", name, kind, err)
			}
			wantEmpty(t, filepath.Join(dir, "images"))
			wantEmpty(t, filepath.Join(dir, "tmp"))
			wantEmpty(t, filepath.Join(dir, "uppers"))
		}
	}
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%s holds %v, %v", dir, entries, err)
	}
}

// TestFault25_DamagedHere: an image that was cut on this host is not booted, and
// importing it again mends it.
func TestFault25_DamagedHere(t *testing.T) {
	dir := t.TempDir()
	s := open(t, image.Options{Dir: dir})
	b, src := nacre.NewBuildID(), nacretest.EROFSImage(t, "content")
	if err := os.Chmod(src, 0o666); err != nil { // copied, not linked
		t.Fatal(err)
	}
	if err := s.Import(t.Context(), b, src); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "images", string(b)+".erofs"), 5000); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), b, nacre.NewMachineID(), 1); !nacre.IsCode(err, nacre.CodeInternal) {
		t.Errorf("prepare: %v", err)
	}
	if err := s.Import(t.Context(), b, src); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), b, nacre.NewMachineID(), 1); err != nil {
		t.Errorf("prepare after another import: %v", err)
	}
}

// TestFault26_RemoveInUse: an image that a machine runs from stays, across a
// restart too.
func TestFault26_RemoveInUse(t *testing.T) {
	dir, blobs := t.TempDir(), blob.NewMemory()
	s := open(t, image.Options{Dir: dir, Blobs: blobs})
	b, id := nacre.NewBuildID(), nacre.NewMachineID()
	if err := s.Import(t.Context(), b, nacretest.EROFSImage(t, "")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), b, id, 1); err != nil {
		t.Fatal(err)
	}
	s = open(t, image.Options{Dir: dir, Blobs: blobs})
	if err := s.Remove(t.Context(), b, true); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("remove of an image in use: %v", err)
	}
	if err := s.Release(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), b, false); err != nil {
		t.Fatal(err)
	}
	if err := s.Fetch(t.Context(), b); err != nil { // it is still in the blob store
		t.Errorf("fetch after a local remove: %v", err)
	}
	for range 2 {
		if err := s.Remove(t.Context(), b, true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Prepare(t.Context(), b, id, 1); !nacre.IsCode(err, nacre.CodeNotFound) {
		t.Errorf("prepare after a remove: %v", err)
	}
	if err := blobs.List(t.Context(), "", func(b nacre.Blob) error { return errors.New(b.Key) }); err != nil {
		t.Errorf("left in the blob store: %v", err)
	}
}

// TestFault11_Reserve: machines are refused before the disk is full, and let in
// again when there is room.
func TestFault11_Reserve(t *testing.T) {
	if !nacretest.InMountNamespace(t) {
		return
	}
	dir := t.TempDir()
	nacretest.SmallDisk(t, dir, "size=8m")
	s := open(t, image.Options{Dir: dir, ReserveMiB: 4})
	b := nacre.NewBuildID()
	if err := s.Import(t.Context(), b, nacretest.EROFSImage(t, "")); err != nil {
		t.Fatal(err)
	}
	prepare := func() error {
		_, err := s.Prepare(t.Context(), b, nacre.NewMachineID(), 1)
		return err
	}
	if err := prepare(); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := prepare(); !nacre.IsCode(err, nacre.CodeNoSpace) {
		t.Errorf("prepare below the reserve: %v", err)
	}
	big := nacretest.EROFSImage(t, strings.Repeat("x", 4<<20))
	if err := s.Import(t.Context(), nacre.NewBuildID(), big); !nacre.IsCode(err, nacre.CodeNoSpace) {
		t.Errorf("import below the reserve: %v", err)
	}
	wantEmpty(t, filepath.Join(dir, "tmp"))
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := prepare(); err != nil {
		t.Errorf("prepare when there is room again: %v", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "nr_inodes=100"); err != nil {
		t.Fatal(err)
	}
	if err := prepare(); !nacre.IsCode(err, nacre.CodeNoSpace) {
		t.Errorf("fault 12: prepare without inodes: %v", err)
	}
}

// TestFault11_ImportFillsDisk: an import that does not fit leaves nothing.
func TestFault11_ImportFillsDisk(t *testing.T) {
	if !nacretest.InMountNamespace(t) {
		return
	}
	dir := t.TempDir()
	nacretest.SmallDisk(t, dir, "size=2m")
	s := open(t, image.Options{Dir: dir, ReserveMiB: -1, Blobs: openBlobs(t, filepath.Join(dir, "blobs"))})
	for range 2 {
		err := s.Import(t.Context(), nacre.NewBuildID(), nacretest.EROFSImage(t, strings.Repeat("x", 4<<20)))
		if !nacre.IsCode(err, nacre.CodeNoSpace) {
			t.Errorf("import: %v", err)
		}
	}
	wantEmpty(t, filepath.Join(dir, "images"))
	wantEmpty(t, filepath.Join(dir, "tmp"))
	if err := s.Import(t.Context(), nacre.NewBuildID(), nacretest.EROFSImage(t, "small")); err != nil {
		t.Errorf("import of one that fits: %v", err)
	}
}

// TestFault03_KilledImport: kill -9 while images are copied in leaves whole ones
// only, and the next start clears the rest away.
func TestFault03_KilledImport(t *testing.T) {
	if dir := os.Getenv("NACRE_TEST_KILLED_IMPORT"); dir != "" {
		importForEver(t, dir)
	}
	dir := t.TempDir()
	for round := range 4 {
		nacretest.KillWithin(t, "NACRE_TEST_KILLED_IMPORT", dir, 5+3*round) // some are done
		blobs := openBlobs(t, filepath.Join(dir, "blobs"))
		s := open(t, image.Options{Dir: filepath.Join(dir, "store"), Blobs: blobs})
		wantEmpty(t, filepath.Join(dir, "store", "tmp"))
		images, err := os.ReadDir(filepath.Join(dir, "store", "images"))
		if err != nil || len(images) == 0 {
			t.Fatalf("%d images, %v", len(images), err)
		}
		for _, e := range images {
			got, err := os.ReadFile(filepath.Join(dir, "store", "images", e.Name()))
			if err != nil || !bytes.Equal(got, killedImage()) {
				t.Errorf("%s has %d bytes, %v", e.Name(), len(got), err)
			}
		}
		// Each manifest has its image.
		other := open(t, image.Options{Dir: t.TempDir(), Blobs: blobs})
		err = blobs.List(t.Context(), "", func(b nacre.Blob) error {
			if build, ok := strings.CutSuffix(b.Key, "/manifest.json"); ok {
				return other.Fetch(t.Context(), nacre.BuildID(filepath.Base(build)))
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if err := s.Sweep(t.Context(), func(nacre.MachineID) bool { return false }); err != nil {
			t.Error(err)
		}
	}
}

func killedImage() []byte { return nacretest.EROFSBytes(strings.Repeat("content", 300_000)) }

func importForEver(t *testing.T, dir string) {
	s := open(t, image.Options{Dir: filepath.Join(dir, "store"), Blobs: openBlobs(t, filepath.Join(dir, "blobs"))})
	src := filepath.Join(dir, "src-"+rand.Text())
	if err := os.WriteFile(src, killedImage(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(src, 0o666); err != nil { // copied, not linked
		t.Fatal(err)
	}
	for {
		if err := s.Import(t.Context(), nacre.NewBuildID(), src); err != nil {
			t.Fatal(err)
		}
		fmt.Print(".")
	}
}

// TestFault29_LinkedLayer: a link in the place of a machine's directory or an
// image leads nowhere.
func TestFault29_LinkedLayer(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	s := open(t, image.Options{Dir: dir})
	precious := filepath.Join(outside, "precious")
	if err := os.WriteFile(precious, nacretest.EROFSBytes("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	id, b := nacre.NewMachineID(), nacre.NewBuildID()
	if err := os.Symlink(outside, filepath.Join(dir, "uppers", string(id))); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(precious, filepath.Join(dir, "images", string(b)+".erofs")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), b, nacre.NewMachineID(), 1); err == nil {
		t.Error("a linked image was taken")
	}
	if err := errors.Join(s.Release(t.Context(), id), s.Sweep(t.Context(), func(nacre.MachineID) bool { return false })); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("a release went through a link: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "uppers", string(id))); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the link is still there")
	}
}
