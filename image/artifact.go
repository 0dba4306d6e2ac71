package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// ArtifactOptions say where snapshots' files are and how many plain copies stay.
type ArtifactOptions struct {
	// Dir is best on the file system that machines have their files on.
	Dir string
	// Blobs keep the chunks. nil: there are none, and plain copies are never dropped.
	Blobs nacre.BlobStore
	// Prefix of the chunks' keys, which belong to this store alone; default "chunks/".
	Prefix string
	// ReserveMiB of the disk stay free: a snapshot that would begin below is refused.
	// 0 means 512; negative keeps nothing.
	ReserveMiB int64
	// Plain copies of snapshots that have chunks go, the longest unused first, while
	// all of them take more than PlainMiB (0: no limit) or less than LowWaterMiB of
	// the disk is free (0: a tenth of it, at most 20 GiB).
	PlainMiB, LowWaterMiB int64
	// Settle is how old a snapshot is before it is cut into chunks: many are gone
	// within seconds, for their sandbox runs again. Default 30 s.
	Settle time.Duration
	// Quiet is how long the store must have been left alone before it works in the
	// background. Default 1 s.
	Quiet time.Duration
	// Rest is how long the background work sleeps for each moment that it works.
	// Default 2: it takes a third of one processor.
	Rest float64
	// Collect is how often chunks that nothing holds are looked for. Default 5 min.
	Collect time.Duration

	Clock  nacre.Clock  // default time.Now
	Logger *slog.Logger // nil: nothing is logged
	// Step is for tests: it is called before each change to the disk, and an error
	// means that the process died there.
	Step func(step string) error
}

func (o *ArtifactOptions) setDefaults() {
	o.Prefix = cmp.Or(o.Prefix, "chunks/")
	o.ReserveMiB = cmp.Or(o.ReserveMiB, 512)
	o.Settle = cmp.Or(o.Settle, 30*time.Second)
	o.Quiet = cmp.Or(o.Quiet, time.Second)
	o.Rest = cmp.Or(o.Rest, 2)
	o.Collect = cmp.Or(o.Collect, 5*time.Minute)
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Step == nil {
		o.Step = func(string) error { return nil }
	}
}

// Artifacts is a nacre.ArtifactStore. Below its directory "manifests" holds
// <id>.json of each snapshot that exists, "plain" a directory <id> with its files as
// they were written, and "index" <id>.json, which says of which chunks they can be
// put together. Whatever else is there was left by a crash.
type Artifacts struct {
	o    ArtifactOptions
	path string
	root *os.Root
	life context.Context // ends with Close
	end  context.CancelFunc

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // with mu: removals and fills
	all     map[nacre.SnapshotID]*artifact
	busy    int       // creates and opens under way
	touched time.Time // when the last of them ended
	garbage bool      // there may be chunks that nothing holds
}

// artifact is one snapshot's place in the store. Its fields are guarded by the
// store's mu.
type artifact struct {
	m     nacre.SnapshotManifest
	state artifactState
	pins  int
	plain bool // its directory in "plain" is whole
	index bool // its chunks are all there
	// chunks is what of them it bears, see count; counted tells that it is known.
	chunks  int64
	counted bool
	used    time.Time
	work    *work              // done to the plain copy at the moment
	retry   time.Time          // when to try again to cut it into chunks
	damaged bool               // its plain files are, and it is not cut any more
	flush   context.CancelFunc // of one being written: ends what begins to write it to the disk
}

type artifactState int

const (
	writing   artifactState = iota // made by Create
	committed                      // it exists
	deleted                        // gone for everybody but those who have it open
)

const manifestsDir, plainDir, indexDir = "manifests", "plain", "index"

var _ nacre.ArtifactStore = (*Artifacts)(nil)

// OpenArtifacts opens the store and makes its directories when there are none. A
// manifest that cannot be read is set aside: it costs its snapshot, nothing else.
func OpenArtifacts(o ArtifactOptions) (*Artifacts, error) {
	o.setDefaults()
	path, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	root, err := openRoot(path, manifestsDir, plainDir, indexDir)
	if err != nil {
		return nil, err
	}
	if o.LowWaterMiB == 0 && o.ReserveMiB >= 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err == nil {
			o.LowWaterMiB = min(20<<10, int64(st.Blocks)*st.Bsize/10>>20)
		}
	}
	s := &Artifacts{o: o, path: path, root: root, all: map[nacre.SnapshotID]*artifact{}, garbage: true}
	if err := errors.Join(s.load(), s.sync(".")); err != nil {
		root.Close()
		return nil, fmt.Errorf("read the snapshots: %w", err)
	}
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// load finds what exists.
func (s *Artifacts) load() error {
	entries, err := fs.ReadDir(s.root.FS(), manifestsDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, ok := jsonID(e.Name())
		if !ok {
			continue
		}
		a := &artifact{state: committed}
		if err := s.readJSON(manifestPath(id), &a.m); err != nil || a.m.ID != id {
			s.o.Logger.Error("a snapshot's manifest cannot be read and was set aside", "snapshot", id, "err", err)
			if err := s.root.Rename(manifestPath(id), manifestPath(id)+".bad"); err != nil {
				return err
			}
			continue
		}
		a.used = a.m.CreatedAt
		if st, err := s.root.Stat(plainPath(id)); err == nil {
			a.plain, a.used = true, st.ModTime()
		}
		if _, err := s.root.Stat(indexPath(id)); err == nil {
			a.index = true
		}
		s.all[id] = a
	}
	return nil
}

// Close waits for what is under way in the background.
func (s *Artifacts) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.end()
	s.running.Wait()
	return s.root.Close()
}

// Create implements nacre.ArtifactStore.
func (s *Artifacts) Create(_ context.Context, id nacre.SnapshotID) (string, error) {
	if !id.Valid() {
		return "", nacre.Invalidf("snapshot", "the snapshot's id is not one")
	}
	if err := s.makeRoom(0); err != nil {
		return "", err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return "", errClosed()
	}
	if s.all[id] != nil {
		s.mu.Unlock()
		return "", nacre.Errorf(nacre.CodeConflict, "snapshot %s exists already", id)
	}
	s.all[id] = &artifact{state: writing}
	s.busy++
	s.mu.Unlock()
	err := s.o.Step("create")
	if err == nil {
		err = s.root.Mkdir(plainPath(id), 0o700)
	}
	if err != nil {
		s.forget(id)
		return "", diskError(err)
	}
	dir := filepath.Join(s.path, plainPath(id))
	s.startFlush(id, dir)
	return dir, nil
}

func (s *Artifacts) startFlush(id nacre.SnapshotID, dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.all[id]; a != nil && !s.closed {
		ctx, cancel := context.WithCancel(s.life)
		a.flush = cancel
		s.running.Go(func() { flush(ctx, dir) })
	}
}

// endFlush ends it; the store's mu is not held.
func (s *Artifacts) endFlush(a *artifact) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.flush != nil {
		a.flush()
		a.flush = nil
	}
}

func errClosed() error {
	return nacre.Errorf(nacre.CodeUnavailable, "the node is shutting down; try again")
}

// forget drops one that was being written.
func (s *Artifacts) forget(id nacre.SnapshotID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, id)
	s.rest()
}

// rest notes that something of the foreground ended; s.mu is held.
func (s *Artifacts) rest() {
	s.busy--
	s.touched = time.Now()
}

// Commit implements nacre.ArtifactStore. When it fails the snapshot does not exist.
func (s *Artifacts) Commit(ctx context.Context, m nacre.SnapshotManifest) (nacre.SnapshotManifest, error) {
	s.mu.Lock()
	a := s.all[m.ID]
	s.mu.Unlock()
	if a == nil || a.state != writing {
		return m, nacre.Errorf(nacre.CodeNotFound, "snapshot %s is not being written", m.ID)
	}
	s.endFlush(a)
	if err := s.measure(&m); err != nil {
		return m, err
	}
	if !m.Transient { // else Sweep of the next process finds files without a manifest
		if err := s.makeDurable(ctx, m); err != nil {
			return m, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a.m, a.state, a.plain, a.used = m, committed, true, s.o.Clock()
	s.rest()
	return m, nil
}

// makeDurable writes the manifest when the files are on the disk.
func (s *Artifacts) makeDurable(ctx context.Context, m nacre.SnapshotManifest) error {
	if err := s.syncPlain(ctx, m); err != nil {
		return diskError(err)
	}
	if err := ctx.Err(); err != nil {
		return nacre.Wrap(nacre.CodeDeadline, err, "the snapshot took longer than it was given")
	}
	if err := s.writeJSON(manifestPath(m.ID), m, "commit"); err != nil {
		if s.o.Step("commit undone") == nil {
			err = errors.Join(err, s.remove(manifestPath(m.ID)))
		}
		return diskError(err)
	}
	return nil
}

// Discard implements nacre.ArtifactStore. Of a snapshot that exists nothing is touched.
func (s *Artifacts) Discard(_ context.Context, id nacre.SnapshotID) error {
	s.mu.Lock()
	a := s.all[id]
	if a == nil || a.state != writing {
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	s.endFlush(a)
	err := s.removePlain(id)
	if err == nil {
		s.forget(id)
	}
	return err
}

// Open implements nacre.ArtifactStore.
func (s *Artifacts) Open(ctx context.Context, id nacre.SnapshotID) (string, nacre.SnapshotManifest, func(), error) {
	s.mu.Lock()
	a := s.all[id]
	if a == nil || a.state != committed || s.closed {
		s.mu.Unlock()
		return "", nacre.SnapshotManifest{}, nil, nacre.Errorf(nacre.CodeNotFound, "snapshot %s does not exist on this host", id)
	}
	a.pins++
	s.busy++
	m, plain := a.m, a.plain
	now := s.o.Clock()
	a.used = now
	s.mu.Unlock()
	var once sync.Once
	release := func() { once.Do(func() { s.release(a) }) }
	if !plain {
		if err := s.await(ctx, a); err != nil {
			release()
			return "", nacre.SnapshotManifest{}, nil, err
		}
	}
	// For the order after a restart only, so an error does not matter.
	_ = s.root.Chtimes(plainPath(id), now, now)
	return filepath.Join(s.path, plainPath(id)), m, release, nil
}

func (s *Artifacts) release(a *artifact) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest()
	s.unpin(a)
}

// Delete implements nacre.ArtifactStore. Its files go in the background.
func (s *Artifacts) Delete(_ context.Context, id nacre.SnapshotID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.all[id]
	switch {
	case a == nil || a.state == deleted:
		return nil
	case a.state == writing:
		return nacre.Errorf(nacre.CodeConflict, "snapshot %s is being written", id)
	}
	if err := s.o.Step("delete"); err != nil {
		return err
	}
	if err := s.root.Remove(manifestPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	a.state = deleted
	if a.pins == 0 {
		s.clear(id)
	}
	return nil
}
