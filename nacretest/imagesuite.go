package nacretest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nacrehq/nacre"
)

// TestImageStore holds an implementation to the contract of nacre.ImageStore.
// open returns an empty store.
func TestImageStore(t *testing.T, open func(t *testing.T) nacre.ImageStore) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, nacre.ImageStore){
		"ImportPrepareRelease":      imagePrepare,
		"ImportAgain":               imageImportAgain,
		"Fault25_BadImages":         imageBad,
		"UnknownBuild":              imageUnknown,
		"Fault30_BadIDs":            imageBadIDs,
		"LayersAreTheMachinesOwn":   imageLayers,
		"Sweep":                     imageSweep,
		"Fault27_ConcurrentMachine": imageConcurrent,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// EROFSImage writes the smallest file that passes for an EROFS image, some blocks
// that the text fills, and returns its path. It cannot be mounted.
func EROFSImage(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, EROFSBytes(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// EROFSBytes is the content of EROFSImage.
func EROFSBytes(text string) []byte {
	const block, super = 4096, 1024
	blocks := 1 + (len(text)+block-1)/block
	b := make([]byte, blocks*block)
	binary.LittleEndian.PutUint32(b[super:], 0xe0f5e1e2)
	b[super+12] = 12
	binary.LittleEndian.PutUint32(b[super+36:], uint32(blocks))
	copy(b[block:], text)
	return b
}

func importImage(t *testing.T, s nacre.ImageStore, text string) nacre.BuildID {
	t.Helper()
	b := nacre.NewBuildID()
	if err := s.Import(t.Context(), b, EROFSImage(t, text)); err != nil {
		t.Fatal(err)
	}
	return b
}

func imagePrepare(t *testing.T, s nacre.ImageStore) {
	b, id := importImage(t, s, "content"), nacre.NewMachineID()
	r, err := s.Prepare(t.Context(), b, id, 512)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(r.Image); err != nil || !bytes.Equal(got, EROFSBytes("content")) {
		t.Errorf("the image has %d bytes, %v", len(got), err)
	}
	if !filepath.IsAbs(r.Image) || !filepath.IsAbs(r.UpperDir) || r.UpperMiB != 512 {
		t.Errorf("prepared %+v", r)
	}
	fi, err := os.Lstat(r.UpperDir)
	if err != nil || fi.Mode() != fs.ModeDir|0o700 {
		t.Errorf("the layer is %v, %v", fi, err)
	}
	if entries, err := os.ReadDir(r.UpperDir); err != nil || len(entries) != 0 {
		t.Errorf("a new layer holds %v, %v", entries, err)
	}
	if err := os.WriteFile(filepath.Join(r.UpperDir, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Release(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(r.UpperDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a released layer: %v", err)
	}
	if _, err := os.Stat(r.Image); err != nil {
		t.Errorf("the image went with the layer: %v", err)
	}
}

func imageImportAgain(t *testing.T, s nacre.ImageStore) {
	b := importImage(t, s, "first")
	// A build is immutable; what the repeat brings does not even have to exist.
	for _, path := range []string{EROFSImage(t, "second"), "/nowhere"} {
		if err := s.Import(t.Context(), b, path); err != nil {
			t.Errorf("import again: %v", err)
		}
	}
	r, err := s.Prepare(t.Context(), b, nacre.NewMachineID(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(r.Image); err != nil || !bytes.Equal(got, EROFSBytes("first")) {
		t.Errorf("a repeat changed the image: %v", err)
	}
}

// imageBad: what is no whole image of a kind that can be booted is refused, and nothing
// of it stays.
func imageBad(t *testing.T, s nacre.ImageStore) {
	good := EROFSBytes(strings.Repeat("content", 1000))
	change := func(offset int, v ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[offset:], v)
		return b
	}
	dir := t.TempDir()
	paths := map[string]string{"missing": filepath.Join(dir, "none"), "directory": dir, "device": "/dev/zero"}
	for name, content := range map[string][]byte{
		"empty": {}, "short": good[:1000], "no magic": change(1024, 0), "truncated": good[:len(good)-1],
		"half": good[:len(good)/2], "compressed": change(1024+80, 1), "tiny blocks": change(1024+12, 9),
		"huge blocks": change(1024+12, 60), "no blocks": change(1024+36, 0, 0, 0, 0),
		"bit flip under a checksum": change(1024+8, 1), "text": []byte(strings.Repeat("#!/bin/sh\n", 1000)),
	} {
		paths[name] = filepath.Join(dir, name)
		if err := os.WriteFile(paths[name], content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, path := range paths {
		b := nacre.NewBuildID()
		if err := s.Import(t.Context(), b, path); !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Errorf("import of %s: %v", name, err)
		}
		if _, err := s.Prepare(t.Context(), b, nacre.NewMachineID(), 1); !nacre.IsCode(err, nacre.CodeNotFound) {
			t.Errorf("prepare after %s: %v", name, err)
		}
	}
}

func imageUnknown(t *testing.T, s nacre.ImageStore) {
	id := nacre.NewMachineID()
	for _, b := range []nacre.BuildID{nacre.NewBuildID(), "", "../../etc", "b/../../../etc/pass", nacre.BuildID(strings.Repeat("b", 5000))} {
		if _, err := s.Prepare(t.Context(), b, id, 1); !nacre.IsCode(err, nacre.CodeNotFound) {
			t.Errorf("prepare of %.30q: %v", b, err)
		}
	}
	// The failures left nothing in the way.
	if _, err := s.Prepare(t.Context(), importImage(t, s, ""), id, 1); err != nil {
		t.Error(err)
	}
	if err := s.Release(t.Context(), nacre.NewMachineID()); err != nil {
		t.Errorf("release of an unknown machine: %v", err)
	}
}

func imageBadIDs(t *testing.T, s nacre.ImageStore) {
	b, path := importImage(t, s, ""), EROFSImage(t, "")
	for _, id := range []string{"", ".", "..", "../x", "m/../../etc/passwd", "m123456789012345/", "m\x00", "m\r\nlog: x", "ü", "m;rm -rf /", strings.Repeat("m", 300)} {
		if err := s.Import(t.Context(), nacre.BuildID(id), path); !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Errorf("import as %.20q: %v", id, err)
		}
		if _, err := s.Prepare(t.Context(), b, nacre.MachineID(id), 1); !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Errorf("prepare for %.20q: %v", id, err)
		}
		if err := s.Release(t.Context(), nacre.MachineID(id)); !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Errorf("release of %.20q: %v", id, err)
		}
	}
	for _, mib := range []int{0, -1} {
		if _, err := s.Prepare(t.Context(), b, nacre.NewMachineID(), mib); !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Errorf("prepare of %d MiB: %v", mib, err)
		}
	}
}

func imageLayers(t *testing.T, s nacre.ImageStore) {
	b := importImage(t, s, "")
	one, two := nacre.NewMachineID(), nacre.NewMachineID()
	r1, err1 := s.Prepare(t.Context(), b, one, 1)
	r2, err2 := s.Prepare(t.Context(), b, two, 1)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if r1.Image != r2.Image || r1.UpperDir == r2.UpperDir {
		t.Errorf("%+v and %+v", r1, r2)
	}
	if err := os.WriteFile(filepath.Join(r1.UpperDir, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A machine that runs is not emptied under its feet.
	if _, err := s.Prepare(t.Context(), b, one, 1); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("prepare again: %v", err)
	}
	if err := s.Release(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(r1.UpperDir, "file")); err != nil {
		t.Errorf("another machine's release: %v", err)
	}
}

func imageSweep(t *testing.T, s nacre.ImageStore) {
	b := importImage(t, s, "")
	dirs := map[nacre.MachineID]string{}
	var kept nacre.MachineID
	for range 5 {
		kept = nacre.NewMachineID()
		r, err := s.Prepare(t.Context(), b, kept, 1)
		if err != nil {
			t.Fatal(err)
		}
		dirs[kept] = r.UpperDir
	}
	for range 2 {
		if err := s.Sweep(t.Context(), func(id nacre.MachineID) bool { return id == kept }); err != nil {
			t.Fatal(err)
		}
	}
	for id, dir := range dirs {
		if _, err := os.Stat(dir); (err == nil) != (id == kept) {
			t.Errorf("after the sweep, kept %v: %v", id == kept, err)
		}
	}
	if _, err := s.Prepare(t.Context(), b, nacre.NewMachineID(), 1); err != nil {
		t.Errorf("the sweep took the image: %v", err)
	}
}

// imageConcurrent: one image imported by many at once, one machine prepared by
// many (one wins), all released by many.
func imageConcurrent(t *testing.T, s nacre.ImageStore) {
	b, path := nacre.NewBuildID(), EROFSImage(t, strings.Repeat("content", 10_000))
	all := func(what string, n int, do func(context.Context) error) (ok int) {
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range errs {
			wg.Go(func() { errs[i] = do(t.Context()) })
		}
		wg.Wait()
		for _, err := range errs {
			if err == nil {
				ok++
			} else if !nacre.IsCode(err, nacre.CodeConflict) {
				t.Errorf("%s: %v", what, err)
			}
		}
		return ok
	}
	id := nacre.NewMachineID()
	if n := all("import", 8, func(ctx context.Context) error { return s.Import(ctx, b, path) }); n != 8 {
		t.Errorf("%d imports", n)
	}
	if n := all("prepare", 8, func(ctx context.Context) error {
		_, err := s.Prepare(ctx, b, id, 1)
		return err
	}); n != 1 {
		t.Errorf("%d were given the layer of one machine", n)
	}
	if n := all("release", 8, func(ctx context.Context) error { return s.Release(ctx, id) }); n != 8 {
		t.Errorf("%d releases", n)
	}
	if n := all("create and kill", 16, func(ctx context.Context) error {
		id := nacre.NewMachineID()
		r, err := s.Prepare(ctx, b, id, 1)
		if err != nil {
			return err
		}
		if err := s.Release(ctx, id); err != nil {
			return err
		}
		if _, err := os.Stat(r.UpperDir); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("released: %w", err)
		}
		return nil
	}); n != 16 {
		t.Errorf("%d machines", n)
	}
}
