package image_test

import (
	"bytes"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/image"
)

// recoded changes what a chunk holds; as a file of zstd it is whole.
func recoded(t *testing.T, packed []byte, change func([]byte)) []byte {
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	content, err := dec.DecodeAll(packed, nil)
	if err != nil {
		t.Fatal(err)
	}
	change(content)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = enc.Close() }()
	return enc.EncodeAll(content, nil)
}

// TestFault25_DamagedChunks: what is not as it was written is refused with the
// reason, and nothing of it becomes a plain copy.
func TestFault25_DamagedChunks(t *testing.T) {
	spoilBlob := func(change func([]byte) []byte) func(a *artifacts, id nacre.SnapshotID) {
		return func(a *artifacts, _ nacre.SnapshotID) {
			var keys []string
			a.must(a.blobs.List(t.Context(), "", func(b nacre.Blob) error { keys = append(keys, b.Key); return nil }))
			key := keys[len(keys)/2]
			r, err := a.blobs.Get(t.Context(), key, 0, -1)
			a.must(err)
			data, err := io.ReadAll(r)
			a.must(err)
			if data = change(data); data == nil {
				a.must(a.blobs.Delete(t.Context(), key))
				return
			}
			_, err = a.blobs.Put(t.Context(), key, bytes.NewReader(data))
			a.must(err)
		}
	}
	spoilIndex := func(change func([]byte) []byte) func(a *artifacts, id nacre.SnapshotID) {
		return func(a *artifacts, id nacre.SnapshotID) {
			path := filepath.Join(a.dir, "index", string(id)+".json")
			data, err := os.ReadFile(path)
			a.must(err)
			a.must(os.WriteFile(path, change(data), 0o600))
		}
	}
	for name, spoil := range map[string]func(*artifacts, nacre.SnapshotID){
		"bit flip in a chunk":        spoilBlob(func(b []byte) []byte { b[len(b)/2] ^= 4; return b }),
		"truncated chunk":            spoilBlob(func(b []byte) []byte { return b[:len(b)-7] }),
		"chunk of something else":    spoilBlob(func([]byte) []byte { return []byte("(\xb5/\xfd\x04\x00\x09\x00\x00x\xd7\xe3\x2f\x5c") }),
		"chunk with another content": spoilBlob(func(b []byte) []byte { return recoded(t, b, func(c []byte) { c[len(c)/2] ^= 4 }) }),
		"missing chunk":              spoilBlob(func([]byte) []byte { return nil }),
		"bit flip in the index":      spoilIndex(func(b []byte) []byte { b[len(b)/2] ^= 4; return b }),
		"truncated index":            spoilIndex(func(b []byte) []byte { return b[:len(b)/2] }),
		"empty index":                spoilIndex(func([]byte) []byte { return nil }),
		"another's index":            spoilIndex(func([]byte) []byte { return []byte("x\n{}") }),
	} {
		t.Run(name, func(t *testing.T) {
			a := newArtifacts(t, nil)
			id := a.keep(files(3, 600))
			a.must(a.Work(t.Context()))
			a.must(a.DropAll())
			spoil(a, id)
			for range 2 {
				_, _, _, err := a.Open(t.Context(), id)
				if !nacre.IsCode(err, nacre.CodeConflict) || !strings.Contains(err.Error(), "damaged") {
					t.Fatalf("it was opened, or refused with %v", err)
				}
				if got := a.plain(); len(got) != 0 {
					t.Errorf("left behind: %v", got)
				}
				a = a.restart()
			}
		})
	}
}

// TestFault25_DamagedPlainFiles: files that are not whole are not cut into chunks, as
// if zeros stood where something is missing, of which is told once and not each minute;
// others are cut.
func TestFault25_DamagedPlainFiles(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"cut off": func(path string) error { return os.Truncate(path, 4096) },
		"longer":  func(path string) error { return os.Truncate(path, 64<<20) },
		"missing": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			var later time.Duration
			a := newArtifacts(t, func(o *image.ArtifactOptions) {
				o.Logger = slog.New(slog.NewTextHandler(&log, nil))
				o.Clock = func() time.Time { return time.Now().Add(later) }
			})
			f := files(5, 600)
			id, whole := a.keep(f), a.keep(files(6, 300))
			entries, err := os.ReadDir(filepath.Join(a.dir, "plain", string(id)))
			a.must(err)
			for _, e := range entries {
				a.must(spoil(filepath.Join(a.dir, "plain", string(id), e.Name())))
			}
			for range 3 {
				a.must(a.Work(t.Context()))
				later += time.Hour
			}
			if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), string(id)) {
				t.Errorf("told %d times:\n%s", n, &log)
			}
			a.must(a.DropAll())
			if got := a.plain(); !slices.Equal(got, []string{string(id)}) {
				t.Errorf("plain files are left of %v, want %s and not %s", got, id, whole)
			}
			a.must(a.open(whole, files(6, 300)))
			if err := a.open(id, f); err == nil {
				t.Error("what is damaged was opened")
			}
		})
	}
}

// TestFault25_DamagedManifest: a manifest that cannot be read costs its snapshot
// only, and its files are not thrown away.
func TestFault25_DamagedManifest(t *testing.T) {
	a := newArtifacts(t, nil)
	bad, good := a.keep(files(1, 4)), a.keep(files(2, 4))
	a.must(os.WriteFile(filepath.Join(a.dir, "manifests", string(bad)+".json"), []byte("{"), 0o600))
	a = a.restart().restart()
	if _, _, _, err := a.Open(t.Context(), bad); !nacre.IsCode(err, nacre.CodeNotFound) {
		t.Errorf("opened: %v", err)
	}
	a.must(a.open(good, files(2, 4)))
	if got := a.plain(); len(got) != 2 {
		t.Errorf("plain copies: %v", got)
	}
}

// TestFault11_FullDiskWhileCutting: the snapshot stays as it is, what was stored is
// freed, and it is cut when there is room.
func TestFault11_FullDiskWhileCutting(t *testing.T) {
	a := newArtifacts(t, nil)
	f := files(4, 600)
	id := a.keep(f)
	a.blobs.full.Store(true)
	_ = a.Work(t.Context())
	if n, _ := a.chunks(); n != 0 {
		t.Errorf("%d chunks", n)
	}
	a.must(a.DropAll())
	a.must(a.open(id, f))
	a.blobs.full.Store(false)
	a = a.restart() // it would wait a minute before it tries again
	a.must(a.Work(t.Context()))
	a.must(a.DropAll())
	if got := a.plain(); len(got) != 0 {
		t.Errorf("not cut: %v", got)
	}
	a.must(a.open(id, f))
}

// TestFault11_ReserveOfSnapshots: a snapshot that would come into the reserve is
// refused; plain copies that have chunks make room first.
func TestFault11_ReserveOfSnapshots(t *testing.T) {
	reserve := int64(-1)
	a := newArtifacts(t, func(o *image.ArtifactOptions) { o.ReserveMiB = reserve })
	f := files(5, 600)
	id := a.keep(f)
	a.must(a.Work(t.Context()))
	reserve = 1 << 30 // MiB: more than there is
	a = a.restart()
	if _, err := a.Create(t.Context(), nacre.NewSnapshotID()); !nacre.IsCode(err, nacre.CodeNoSpace) {
		t.Fatalf("got %v", err)
	}
	if got := a.plain(); len(got) != 0 {
		t.Errorf("nothing made room: %v", got)
	}
	if err := a.open(id, f); !nacre.IsCode(err, nacre.CodeNoSpace) {
		t.Errorf("got %v", err)
	}
	reserve = -1
	a = a.restart()
	a.must(a.open(id, f))
}

// TestFault26_DeletedWhilePutTogether: whoever has a snapshot open keeps it, chunks
// and all, and then everything of it goes.
func TestFault26_DeletedWhilePutTogether(t *testing.T) {
	a := newArtifacts(t, nil)
	f := files(6, 2000)
	id := a.keep(f)
	a.must(a.Work(t.Context()))
	a.must(a.DropAll())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := a.open(id, f); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
				t.Error(err)
			}
		})
	}
	wg.Go(func() { a.must(a.Delete(t.Context(), id)) })
	wg.Go(func() { _ = a.Work(t.Context()) })
	wg.Wait()
	a.Artifacts.Settle()
	a.must(a.Work(t.Context()))
	if n, _ := a.chunks(); n != 0 || len(a.plain()) != 0 {
		t.Errorf("%d chunks and %v are left", n, a.plain())
	}
}

// TestFault03_KilledInTheBackground: killed at each step of cutting, dropping,
// putting together, deleting and collecting, every snapshot that exists has all its
// bytes, and in the end nothing is left that no snapshot holds.
func TestFault03_KilledInTheBackground(t *testing.T) {
	keepF, goneF := files(7, 100), files(8, 100)
	for at := 1; ; at++ {
		a := newArtifacts(t, nil)
		kept := a.keep(keepF)
		gone := a.keep(goneF)
		a.fuse.light(at)
		_ = a.Work(t.Context())
		_ = a.DropAll()
		if err := a.open(kept, keepF); err != nil && !a.fuse.burnt() {
			t.Fatal(err)
		}
		derr := a.Delete(t.Context(), gone)
		a.Artifacts.Settle()
		_ = a.Work(t.Context())
		burnt := a.fuse.burnt()

		a = a.restart()
		if err := a.open(kept, keepF); err != nil {
			t.Fatalf("step %d: %v", at, err)
		}
		err := a.open(gone, goneF)
		if err != nil && !nacre.IsCode(err, nacre.CodeNotFound) || err == nil && derr == nil {
			t.Fatalf("step %d: the deleted one: %v, and Delete said %v", at, err, derr)
		}
		a.must(a.Delete(t.Context(), gone))
		a.Artifacts.Settle()
		a.must(a.Work(t.Context()))
		a.must(a.DropAll())
		a.must(a.open(kept, keepF))
		left := map[string]bool{}
		a.must(fs.WalkDir(os.DirFS(a.dir), ".", func(p string, d fs.DirEntry, err error) error {
			if d.Type().IsRegular() {
				left[p] = true
			}
			return err
		}))
		want := map[string]bool{"manifests/" + string(kept) + ".json": true, "index/" + string(kept) + ".json": true}
		for name := range keepF {
			want["plain/"+string(kept)+"/"+name] = true
		}
		if !maps.Equal(left, want) {
			t.Fatalf("step %d left %v", at, slices.Sorted(maps.Keys(left)))
		}
		n, _ := a.chunks()
		if a.Delete(t.Context(), kept) != nil {
			t.Fatal("delete")
		}
		a.Artifacts.Settle()
		a.must(a.Work(t.Context()))
		if m, _ := a.chunks(); n == 0 || m != 0 {
			t.Fatalf("step %d: %d chunks, at the end %d", at, n, m)
		}
		if !burnt {
			t.Logf("%d steps", at-1)
			return
		}
	}
}

// TestFault04_OrderOfACommit: the manifest is begun when all files are on the disk,
// gets its name when it is, and the call returns when the name is too: whenever the
// power goes, a snapshot that is listed is whole.
func TestFault04_OrderOfACommit(t *testing.T) {
	var steps []string
	a := newArtifacts(t, func(o *image.ArtifactOptions) {
		o.Step = func(step string) error { steps = append(steps, step); return nil }
	})
	a.keep(files(12, 10))
	if want := []string{"create", "sync files", "commit: write", "commit: rename", "commit: sync"}; !slices.Equal(steps, want) {
		t.Errorf("steps %q, want %q", steps, want)
	}
}
