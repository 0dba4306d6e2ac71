package image

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// measure compares what the manifest names with what is there.
func (s *Artifacts) measure(m *nacre.SnapshotManifest) error {
	entries, err := fs.ReadDir(s.root.FS(), plainPath(m.ID))
	if err != nil {
		return err
	}
	sizes := map[string]int64{}
	m.DiskBytes = 0
	for _, e := range entries {
		var st unix.Stat_t
		path := filepath.Join(s.path, plainPath(m.ID), e.Name())
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nacre.Errorf(nacre.CodeInternal, "the snapshot holds %s, which is no file", e.Name())
		}
		sizes[e.Name()] = st.Size
		if st.Nlink == 1 {
			m.DiskBytes += st.Blocks * 512
		}
	}
	for _, f := range m.Files {
		if size, ok := sizes[f.Name]; !ok || size != f.Size {
			return nacre.Errorf(nacre.CodeInternal, "the snapshot's %s has not the size that was told", f.Name)
		}
		delete(sizes, f.Name)
	}
	for name := range sizes {
		return nacre.Errorf(nacre.CodeInternal, "the snapshot holds %s, which was not told", name)
	}
	return nil
}

// Manifests implements nacre.ArtifactStore.
func (s *Artifacts) Manifests(context.Context) ([]nacre.SnapshotManifest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]nacre.SnapshotManifest, 0, len(s.all))
	for _, a := range s.all {
		if a.state == committed {
			m := a.m
			m.DiskBytes = a.occupies()
			out = append(out, m)
		}
	}
	return out, nil
}

// occupies is what the snapshot takes of the disk at the moment, 0 while its chunks
// were not counted; the store's mu is held.
func (a *artifact) occupies() (n int64) {
	if a.plain {
		n = a.m.DiskBytes
	}
	switch {
	case !a.index:
		return n
	case !a.counted:
		return 0
	}
	return n + a.chunks
}

// Use implements nacre.ArtifactStore. It asks the blob store for every chunk.
func (s *Artifacts) Use(ctx context.Context) (use nacre.ArtifactUse, err error) {
	s.mu.Lock()
	for _, a := range s.all {
		if a.state != committed {
			continue
		}
		use.Snapshots++
		use.Logical += a.m.Bytes()
		if a.plain {
			use.Plain += a.m.DiskBytes
		}
	}
	s.mu.Unlock()
	if s.o.Blobs == nil {
		return use, nil
	}
	err = s.o.Blobs.List(ctx, s.o.Prefix, func(b nacre.Blob) error { use.Chunks += b.Size; return nil })
	return use, err
}

// syncPlain makes the files durable, side by side: the disk then has them all to
// put in order at once.
func (s *Artifacts) syncPlain(ctx context.Context, m nacre.SnapshotManifest) error {
	if err := s.o.Step("sync files"); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, path := range append(filePaths(m), plainPath(m.ID), plainDir) {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return s.sync(path)
		})
	}
	return g.Wait()
}

func filePaths(m nacre.SnapshotManifest) []string {
	out := make([]string, 0, len(m.Files)+2)
	for _, f := range m.Files {
		out = append(out, filepath.Join(plainPath(m.ID), f.Name))
	}
	return out
}

// clear removes the files of a deleted snapshot in the background; s.mu is held.
// What it does not come to the next Sweep finds.
func (s *Artifacts) clear(id nacre.SnapshotID) {
	if s.closed {
		return
	}
	transient := s.all[id].m.Transient
	s.running.Go(func() {
		// Were the manifest to come back after a power cut, its files must be there.
		var err error
		if !transient {
			err = s.sync(manifestsDir)
		}
		if err == nil {
			err = s.removePlain(id)
		}
		if err == nil {
			err = s.remove(indexPath(id))
		}
		if err != nil {
			s.o.Logger.Error("a snapshot's files could not be deleted; the next start does", "snapshot", id, "err", err)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.all, id)
		s.garbage = true
	})
}

// Sweep implements nacre.ArtifactStore.
func (s *Artifacts) Sweep(ctx context.Context) error {
	s.mu.Lock()
	keep := map[nacre.SnapshotID]bool{}
	for id := range s.all {
		keep[id] = true
	}
	s.mu.Unlock()
	var errs []error
	for _, dir := range []string{manifestsDir, plainDir, indexDir} {
		entries, err := fs.ReadDir(s.root.FS(), dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			name := e.Name()
			if dir != plainDir {
				name, _ = strings.CutSuffix(name, ".json")
			}
			if keep[nacre.SnapshotID(name)] || strings.HasSuffix(name, ".bad") || s.setAside(name) {
				continue
			}
			s.o.Logger.Info("deleting what a snapshot that does not exist has left", "path", filepath.Join(dir, e.Name()))
			if err := s.o.Step("sweep"); err != nil {
				return err
			}
			errs = append(errs, s.root.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// setAside tells whether the snapshot's manifest was: its files may be worth
// something to somebody who looks at it.
func (s *Artifacts) setAside(name string) bool {
	_, err := s.root.Stat(manifestPath(nacre.SnapshotID(name)) + ".bad")
	return err == nil
}

// removePlain makes the plain copy no copy in one step, and then deletes it.
func (s *Artifacts) removePlain(id nacre.SnapshotID) error {
	path := plainPath(id)
	if err := s.o.Step("remove files"); err != nil {
		return err
	}
	if err := s.root.Rename(path, path+".gone"); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if err := s.o.Step("remove renamed files"); err != nil {
		return err
	}
	return s.root.RemoveAll(path + ".gone")
}

func (s *Artifacts) remove(path string) error {
	if err := s.o.Step("remove " + filepath.Dir(path)); err != nil {
		return err
	}
	if err := s.root.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeJSON makes a file that is there whole, and durably, or not at all.
func (s *Artifacts) writeJSON(path string, v any, step string) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.writeFile(path, data, step)
}

func (s *Artifacts) writeFile(path string, data []byte, step string) error {
	if err := s.o.Step(step + ": write"); err != nil {
		return err
	}
	tmp := path + ".tmp"
	f, err := s.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = s.root.Remove(tmp)
		return err
	}
	if err := s.o.Step(step + ": rename"); err != nil {
		return err
	}
	if err := s.root.Rename(tmp, path); err != nil {
		return err
	}
	if err := s.o.Step(step + ": sync"); err != nil {
		return err
	}
	return s.sync(filepath.Dir(path))
}

func (s *Artifacts) readJSON(path string, v any) error {
	data, err := s.root.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

func (s *Artifacts) sync(path string) error {
	f, err := s.root.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func manifestPath(id nacre.SnapshotID) string { return filepath.Join(manifestsDir, string(id)+".json") }
func plainPath(id nacre.SnapshotID) string    { return filepath.Join(plainDir, string(id)) }
func indexPath(id nacre.SnapshotID) string    { return filepath.Join(indexDir, string(id)+".json") }

// jsonID returns the snapshot that a file is named after.
func jsonID(name string) (nacre.SnapshotID, bool) {
	name, ok := strings.CutSuffix(name, ".json")
	id := nacre.SnapshotID(name)
	return id, ok && id.Valid()
}
