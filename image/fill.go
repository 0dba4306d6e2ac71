package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/nacrehq/nacre"
)

// work is something done to an artifact's plain copy, which others wait for.
type work struct {
	done chan struct{}
	err  error // valid when done is closed
}

// await returns when the plain copy is whole: it has it put together from chunks,
// or waits for whoever does so already. The caller has a pin.
func (s *Artifacts) await(ctx context.Context, a *artifact) error {
	for {
		s.mu.Lock()
		if a.plain {
			s.mu.Unlock()
			return nil
		}
		w := a.work
		if w == nil {
			if s.closed {
				s.mu.Unlock()
				return errClosed()
			}
			w = &work{done: make(chan struct{})}
			a.work = w
			s.running.Go(func() { s.fill(a, w) })
		}
		s.mu.Unlock()
		select {
		case <-w.done:
			if w.err != nil {
				return w.err
			}
		case <-ctx.Done():
			return nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the snapshot's files were not put together in time")
		}
	}
}

// fill puts a snapshot's files together again.
func (s *Artifacts) fill(a *artifact, w *work) {
	err := s.assemble(s.life, a)
	s.mu.Lock()
	defer s.mu.Unlock()
	a.plain = err == nil
	a.work, w.err = nil, err
	close(w.done)
}

func (s *Artifacts) assemble(ctx context.Context, a *artifact) error {
	id := a.m.ID
	x, err := s.readIndex(id)
	if err == nil {
		err = x.matches(a.m)
	}
	if err != nil {
		return lost(id, err)
	}
	if err := s.makeRoom(a.m.DiskBytes); err != nil {
		return err
	}
	dir := plainPath(id) + ".fill"
	if err := s.root.RemoveAll(dir); err != nil {
		return err
	}
	if err := s.root.Mkdir(dir, 0o700); err != nil {
		return diskError(err)
	}
	err = s.writeFiles(ctx, dir, x)
	if err == nil {
		err = s.sync(dir)
	}
	if err == nil {
		err = s.o.Step("fill: rename")
	}
	if err == nil {
		err = s.root.Rename(dir, plainPath(id))
	}
	if err != nil {
		if s.o.Step("fill undone") == nil {
			_ = s.root.RemoveAll(dir)
		}
		if damage := (damagedError{}); errors.As(err, &damage) {
			return lost(id, err)
		}
		return diskError(err)
	}
	return s.sync(plainDir)
}

// damagedError is a chunk that is missing or not as it was.
type damagedError struct{ error }

func lost(id nacre.SnapshotID, cause error) error {
	return nacre.Wrap(nacre.CodeConflict, cause, fmt.Sprintf("snapshot %s is damaged: its files cannot be put together", id))
}

// matches compares the index with the files that the snapshot has.
func (x *index) matches(m nacre.SnapshotManifest) error {
	sizes := map[string]int64{}
	for _, f := range m.Files {
		sizes[f.Name] = f.Size
	}
	for _, f := range x.Files {
		if size, ok := sizes[f.Name]; !ok || size != f.Size || f.Name != filepath.Base(f.Name) {
			return fmt.Errorf("the index is of other files than the manifest: %q", f.Name)
		}
		delete(sizes, f.Name)
	}
	if len(sizes) > 0 {
		return fmt.Errorf("the index lacks %d files", len(sizes))
	}
	return nil
}

// writeFiles writes the index's files to dir, several chunks at once, and makes them
// durable: after a power cut what has the name of a plain copy is one.
func (s *Artifacts) writeFiles(ctx context.Context, dir string, x *index) error {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(2*maxPages*pageSize))
	if err != nil {
		return err
	}
	defer dec.Close()
	for _, f := range x.Files {
		if err := s.o.Step("fill: file"); err != nil {
			return err
		}
		out, err := s.root.OpenFile(filepath.Join(dir, f.Name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(2 * runtime.NumCPU())
		err = f.each(func(p piece) error {
			g.Go(func() error {
				content, err := s.fetch(gctx, dec, p)
				if err != nil {
					if gctx.Err() == nil && (nacre.IsCode(err, nacre.CodeNotFound) || nacre.ErrorCode(err) == nacre.CodeInternal) {
						err = damagedError{err}
					}
					return err
				}
				_, err = out.WriteAt(content, p.at)
				return err
			})
			return gctx.Err()
		})
		err = errors.Join(g.Wait(), err)
		if err == nil {
			err = out.Truncate(f.Size)
		}
		if err == nil {
			err = out.Sync()
		}
		if err = errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (s *Artifacts) readIndex(id nacre.SnapshotID) (*index, error) {
	data, err := s.root.ReadFile(indexPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("neither its files nor their index are there")
	}
	if err != nil {
		return nil, err
	}
	return decodeIndex(data)
}

// makeRoom drops plain copies until size more bytes leave the reserve free, or says
// that there is no room.
func (s *Artifacts) makeRoom(size int64) error {
	for {
		err := diskRoom(s.path, s.o.ReserveMiB, size)
		if !nacre.IsCode(err, nacre.CodeNoSpace) {
			return err
		}
		if dropped, derr := s.dropOldest(); !dropped {
			return errors.Join(err, derr)
		}
	}
}

// dropOldest deletes the plain copy of the snapshot that was not used for longest,
// of those that have chunks and that nobody has open.
func (s *Artifacts) dropOldest() (dropped bool, err error) {
	s.mu.Lock()
	var a *artifact
	for _, b := range s.all {
		if b.state == committed && b.plain && b.index && b.pins == 0 && b.work == nil && (a == nil || b.used.Before(a.used)) {
			a = b
		}
	}
	if a == nil || s.closed {
		s.mu.Unlock()
		return false, nil
	}
	w := &work{done: make(chan struct{})}
	a.work, a.plain = w, false
	s.mu.Unlock()
	x, err := s.readIndex(a.m.ID)
	if err == nil {
		err = x.matches(a.m)
	}
	whole := err == nil
	if whole {
		err = s.removePlain(a.m.ID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		_, serr := s.root.Stat(plainPath(a.m.ID))
		a.plain, a.index = serr == nil, whole // without a good index it is cut again
	} else {
		s.o.Logger.Info("the plain files of a snapshot made room; it has its chunks", "snapshot", a.m.ID)
	}
	a.work = nil
	close(w.done)
	return err == nil, err
}
