package nacretest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// ArtifactsUnderTest is a store for TestArtifactStore. Restart ends the process that
// has it without a word, and opens it anew.
type ArtifactsUnderTest struct {
	Store   nacre.ArtifactStore
	Restart func(t *testing.T) ArtifactsUnderTest
}

// TestArtifactStore is the contract of nacre.ArtifactStore.
func TestArtifactStore(t *testing.T, make func(t *testing.T) ArtifactsUnderTest) {
	for _, c := range []struct {
		name string
		fn   func(*testing.T, ArtifactsUnderTest)
	}{
		{"what was committed is there, also after a restart", artifactKept},
		{"what was not committed does not exist, and a sweep leaves nothing of it", artifactUncommitted},
		{"a transient one is there until it is deleted, or the process ends", artifactTransient},
		{"one of each id", artifactOnce},
		{"a manifest that is not of these files is refused", artifactMismatch},
		{"a deleted one stays for who has it open", artifactDeleted},
		{"many at once", artifactMany},
		{"use sums what there is", artifactUse},
	} {
		t.Run(c.name, func(t *testing.T) { c.fn(t, make(t)) })
	}
}

// ArtifactFiles is what a test's snapshot holds, by name.
type ArtifactFiles map[string][]byte

// RandomFiles makes a snapshot's files: random pages with zeros between them, an
// empty file, and one that is no whole number of pages.
func RandomFiles(r *rand.Rand, pages int) ArtifactFiles {
	memory := make([]byte, pages*4096)
	for p := range pages {
		if r.IntN(4) > 0 {
			for i := 0; i < 4096; i += 8 {
				v := r.Uint64() & 0xffffffff // compresses to a half
				for k := range 8 {
					memory[p*4096+i+k] = byte(v >> (8 * k))
				}
			}
		}
	}
	return ArtifactFiles{"memory": memory, "empty": {}, "state.json": fmt.Appendf(nil, "%x", r.Uint64())}
}

// Manifest describes the files as of a fresh sandbox's snapshot.
func (f ArtifactFiles) Manifest(id nacre.SnapshotID) nacre.SnapshotManifest {
	m := nacre.SnapshotManifest{ID: id, Sandbox: nacre.NewSandboxID(), Team: "team_aaaaaaaaaaaaaaaa", Machine: nacre.NewMachineID(),
		Build: nacre.NewBuildID(), Resources: nacre.Resources{CPUs: 1, MemoryMiB: 64}, CreatedAt: time.Now().UTC().Truncate(time.Second)}
	m.RestoreKey = "test/1"
	for name, data := range f {
		m.Files = append(m.Files, nacre.SnapshotFile{Name: name, Size: int64(len(data))})
	}
	slices.SortFunc(m.Files, func(a, b nacre.SnapshotFile) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	return m
}

// Write writes the files to a directory.
func (f ArtifactFiles) Write(dir string) error {
	for name, data := range f {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Compare returns an error unless the directory has these files and no others.
func (f ArtifactFiles) Compare(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) != len(f) {
		return fmt.Errorf("%d files, want %d", len(entries), len(f))
	}
	for name, want := range f {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s has other bytes", name)
		}
	}
	return nil
}

// Keep makes a snapshot of the files.
func (f ArtifactFiles) Keep(ctx context.Context, s nacre.ArtifactStore, m nacre.SnapshotManifest) (nacre.SnapshotManifest, error) {
	dir, err := s.Create(ctx, m.ID)
	if err == nil {
		err = f.Write(dir)
	}
	if err != nil {
		return m, err
	}
	return s.Commit(ctx, m)
}

func keepFiles(t *testing.T, s nacre.ArtifactStore, pages int) (ArtifactFiles, nacre.SnapshotManifest) {
	t.Helper()
	f := RandomFiles(rand.New(rand.NewPCG(rand.Uint64(), 1)), pages)
	m, err := f.Keep(t.Context(), s, f.Manifest(nacre.NewSnapshotID()))
	if err != nil {
		t.Fatal(err)
	}
	return f, m
}

// openFiles opens a snapshot and compares it.
func openFiles(t *testing.T, s nacre.ArtifactStore, id nacre.SnapshotID, want ArtifactFiles) (dir string, release func()) {
	t.Helper()
	dir, m, release, err := s.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if m.ID != id {
		t.Errorf("opened %s, got %s", id, m.ID)
	}
	if err := want.Compare(dir); err != nil {
		t.Errorf("snapshot %s: %v", id, err)
	}
	return dir, release
}

func listArtifacts(t *testing.T, s nacre.ArtifactStore) []nacre.SnapshotID {
	t.Helper()
	list, err := s.Manifests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ids []nacre.SnapshotID
	for _, m := range list {
		ids = append(ids, m.ID)
	}
	slices.Sort(ids)
	return ids
}

func artifactKept(t *testing.T, u ArtifactsUnderTest) {
	f, m := keepFiles(t, u.Store, 64)
	if m.DiskBytes <= 0 {
		t.Errorf("it occupies %d bytes", m.DiskBytes)
	}
	for range 2 {
		_, release := openFiles(t, u.Store, m.ID, f)
		release()
		release() // a repeat does no harm
		list, err := u.Store.Manifests(t.Context())
		if err != nil || len(list) != 1 || fmt.Sprint(list[0]) != fmt.Sprint(m) {
			t.Errorf("%+v, %v; want %+v", list, err, m)
		}
		u = u.Restart(t)
		if err := u.Store.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func artifactTransient(t *testing.T, u ArtifactsUnderTest) {
	_, stays := keepFiles(t, u.Store, 4)
	var dirs []string
	for _, how := range []string{"deleted", "ended"} {
		f := RandomFiles(rand.New(rand.NewPCG(rand.Uint64(), 1)), 4)
		m := f.Manifest(nacre.NewSnapshotID())
		m.Transient = true
		got, err := f.Keep(t.Context(), u.Store, m)
		if err != nil || got.DiskBytes <= 0 {
			t.Fatalf("%+v, %v", got, err)
		}
		if list := listArtifacts(t, u.Store); len(list) != 2 {
			t.Fatalf("listed: %v", list)
		}
		dir, release := openFiles(t, u.Store, m.ID, f)
		release()
		dirs = append(dirs, dir)
		if how == "deleted" {
			if err := u.Store.Delete(t.Context(), m.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	u = u.Restart(t)
	if got := listArtifacts(t, u.Store); len(got) != 1 || got[0] != stays.ID {
		t.Errorf("listed: %v", got)
	}
	if err := u.Store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is on disk: %v", dir, err)
		}
	}
}

func artifactUncommitted(t *testing.T, u ArtifactsUnderTest) {
	_, whole := keepFiles(t, u.Store, 4)
	half := nacre.NewSnapshotID()
	dir, err := u.Store.Create(t.Context(), half)
	if err != nil {
		t.Fatal(err)
	}
	if err := RandomFiles(rand.New(rand.NewPCG(1, 2)), 4).Write(dir); err != nil {
		t.Fatal(err)
	}
	_, _, _, err = u.Store.Open(t.Context(), half)
	nodeWantCode(t, err, nacre.CodeNotFound)
	if got := listArtifacts(t, u.Store); len(got) != 1 {
		t.Errorf("listed: %v", got)
	}
	u = u.Restart(t)
	if err := u.Store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the half one is on disk: %v", err)
	}
	if got := listArtifacts(t, u.Store); len(got) != 1 || got[0] != whole.ID {
		t.Errorf("listed: %v", got)
	}
	// Called off by hand.
	dir, err = u.Store.Create(t.Context(), half)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := u.Store.Discard(t.Context(), half); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("what was discarded is on disk: %v", err)
	}
	if err := u.Store.Discard(t.Context(), whole.ID); err != nil {
		t.Fatal(err)
	}
	if got := listArtifacts(t, u.Store); len(got) != 1 {
		t.Error("a discard took one that was committed")
	}
}

func artifactOnce(t *testing.T, u ArtifactsUnderTest) {
	_, m := keepFiles(t, u.Store, 1)
	_, err := u.Store.Create(t.Context(), m.ID)
	nodeWantCode(t, err, nacre.CodeConflict)
	id := nacre.NewSnapshotID()
	if _, err := u.Store.Create(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	_, err = u.Store.Create(t.Context(), id)
	nodeWantCode(t, err, nacre.CodeConflict)
	for _, bad := range []nacre.SnapshotID{"", "..", "../../etc", "s/x", "nonsense"} {
		if _, err := u.Store.Create(t.Context(), bad); err == nil {
			t.Errorf("%q was made", bad)
		}
		_, _, _, err := u.Store.Open(t.Context(), bad)
		nodeWantCode(t, err, nacre.CodeNotFound)
		if err := u.Store.Delete(t.Context(), bad); err != nil {
			t.Errorf("deleting %q: %v", bad, err)
		}
	}
}

func artifactMismatch(t *testing.T, u ArtifactsUnderTest) {
	f := ArtifactFiles{"a": []byte("content"), "b": []byte("more")}
	for name, spoil := range map[string]func(*nacre.SnapshotManifest){
		"a size":       func(m *nacre.SnapshotManifest) { m.Files[0].Size++ },
		"one too many": func(m *nacre.SnapshotManifest) { m.Files = append(m.Files, nacre.SnapshotFile{Name: "c"}) },
		"one too few":  func(m *nacre.SnapshotManifest) { m.Files = m.Files[:1] },
		"a path":       func(m *nacre.SnapshotManifest) { m.Files[0].Name = "../" + m.Files[0].Name },
	} {
		m := f.Manifest(nacre.NewSnapshotID())
		spoil(&m)
		if _, err := f.Keep(t.Context(), u.Store, m); err == nil {
			t.Errorf("%s: it was committed", name)
		}
		if err := u.Store.Discard(t.Context(), m.ID); err != nil {
			t.Error(err)
		}
	}
	_, err := u.Store.Commit(t.Context(), f.Manifest(nacre.NewSnapshotID()))
	nodeWantCode(t, err, nacre.CodeNotFound)
	if got := listArtifacts(t, u.Store); len(got) != 0 {
		t.Errorf("listed: %v", got)
	}
}

func artifactDeleted(t *testing.T, u ArtifactsUnderTest) {
	f, m := keepFiles(t, u.Store, 16)
	dir, release := openFiles(t, u.Store, m.ID, f)
	for range 2 {
		if err := u.Store.Delete(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	if got := listArtifacts(t, u.Store); len(got) != 0 {
		t.Errorf("listed: %v", got)
	}
	_, _, _, err := u.Store.Open(t.Context(), m.ID)
	nodeWantCode(t, err, nacre.CodeNotFound)
	if err := f.Compare(dir); err != nil {
		t.Errorf("who had it open: %v", err)
	}
	release()
	eventually(t, "its files are gone", func() bool { _, err := os.Stat(dir); return os.IsNotExist(err) })
	u = u.Restart(t)
	if got := listArtifacts(t, u.Store); len(got) != 0 {
		t.Errorf("after a restart: %v", got)
	}
}

func artifactMany(t *testing.T, u ArtifactsUnderTest) {
	f, m := keepFiles(t, u.Store, 32)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			mine, m2 := keepFiles(t, u.Store, 8)
			for range 4 {
				_, release := openFiles(t, u.Store, m.ID, f)
				release()
				_, release = openFiles(t, u.Store, m2.ID, mine)
				release()
			}
			if err := u.Store.Delete(t.Context(), m2.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := listArtifacts(t, u.Store); len(got) != 1 {
		t.Errorf("listed: %v", got)
	}
}

func artifactUse(t *testing.T, u ArtifactsUnderTest) {
	f, m := keepFiles(t, u.Store, 100)
	use, err := u.Store.Use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := int64(0)
	for _, data := range f {
		want += int64(len(data))
	}
	if use.Snapshots != 1 || use.Logical != want || use.Plain != m.DiskBytes {
		t.Errorf("%+v, want %d logical bytes and %d plain ones", use, want, m.DiskBytes)
	}
	if err := u.Store.Delete(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	if use, err := u.Store.Use(t.Context()); err != nil || use.Snapshots != 0 || use.Logical != 0 || use.Plain != 0 {
		t.Errorf("%+v, %v", use, err)
	}
}
