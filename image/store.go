// Package image keeps root file systems on a host: read-only EROFS images, one a
// build, and one writable layer a machine. With a blob store behind it an image
// that is imported on one host is there for all: the others fetch it once, check
// it as it comes in, and never again.
//
// It keeps snapshots' files too: plain ones, that a restore needs nothing done to,
// and behind them chunks named after their content, of which equal ones cost nothing.
package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// Options say where a Store is. Dir should be on the disk that writable layers may fill.
type Options struct {
	Dir string
	// Blobs, when set, is given each imported image and asked for unknown ones.
	Blobs nacre.BlobStore
	// ReserveMiB of the disk, and a thousand inodes, stay free for the host's own
	// records: a machine that would come below is refused. 0 means 512; negative
	// keeps nothing.
	ReserveMiB int64
	Logger     *slog.Logger // nil: nothing is logged
}

// Store is a nacre.ImageStore. Below its directory "images" holds <build>.erofs,
// "uppers" a directory for each machine with its layer and the name of its build,
// and "tmp" what is coming in. No path leaves the directory.
type Store struct {
	o    Options
	path string
	root *os.Root

	// Fetches are shared, so they live as long as the store and not as long as
	// whoever asked first.
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	mu      sync.Mutex // of fetches, and of running.Go against running.Wait
	fetches map[nacre.BuildID]*fetch

	// use is held for reading while a machine takes an image, and for writing
	// while one is deleted.
	use sync.RWMutex
}

var _ nacre.ImageStore = (*Store)(nil)

const imagesDir, uppersDir, tempDir = "images", "uppers", "tmp"

// Names inside a machine's directory.
const upperName, buildName = "upper", "build"

// reserveInodes stay free with the reserve.
const reserveInodes = 1000

// Open opens the store, makes its directories when there are none, and deletes
// what imports that were killed have left.
func Open(o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ReserveMiB == 0 {
		o.ReserveMiB = 512
	}
	path, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	root, err := openRoot(path, imagesDir, uppersDir, tempDir)
	if err != nil {
		return nil, err
	}
	s := &Store{o: o, path: path, root: root, fetches: map[nacre.BuildID]*fetch{}}
	if err := errors.Join(s.sweepTemp(), s.sync(".")); err != nil {
		root.Close()
		return nil, fmt.Errorf("tidy the image store: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// openRoot opens a directory and makes it, and those that are in it, when there are none.
func openRoot(path string, dirs ...string) (*os.Root, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, diskError(fmt.Errorf("make %s: %w", path, err))
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	for _, dir := range dirs {
		if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			root.Close()
			return nil, diskError(fmt.Errorf("make %s: %w", filepath.Join(path, dir), err))
		}
	}
	return root, nil
}

// Close ends fetches that are under way and waits for them. Machines keep what
// was prepared for them.
func (s *Store) Close() error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.running.Wait()
	return s.root.Close()
}

// Prepare implements nacre.ImageStore. A build that only the blob store knows is
// fetched first, which is the one slow thing that it may do; Fetch does it
// beforehand. A machine that has a layer already is CodeConflict.
func (s *Store) Prepare(ctx context.Context, b nacre.BuildID, id nacre.MachineID, diskMiB int) (nacre.RootFS, error) {
	if !id.Valid() {
		return nacre.RootFS{}, nacre.Invalidf("machine", "the machine's id is not one")
	}
	if diskMiB < 1 {
		return nacre.RootFS{}, nacre.Invalidf("disk", "a machine needs at least 1 MiB of disk")
	}
	if err := s.Fetch(ctx, b); err != nil {
		return nacre.RootFS{}, err
	}
	if err := s.room(0); err != nil {
		return nacre.RootFS{}, err
	}
	s.use.RLock()
	defer s.use.RUnlock()
	if err := s.check(b); err != nil { // deleted since
		return nacre.RootFS{}, err
	}
	dir := filepath.Join(uppersDir, string(id))
	if err := s.root.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nacre.RootFS{}, nacre.Errorf(nacre.CodeConflict, "machine %s has a file system already", id)
		}
		return nacre.RootFS{}, diskError(err)
	}
	err := s.root.WriteFile(filepath.Join(dir, buildName), []byte(b), 0o600)
	if err == nil {
		err = s.root.Mkdir(filepath.Join(dir, upperName), 0o700)
	}
	if err != nil {
		_ = s.root.RemoveAll(dir)
		return nacre.RootFS{}, diskError(err)
	}
	return nacre.RootFS{
		Image:    filepath.Join(s.path, imageName(b)),
		UpperDir: filepath.Join(s.path, dir, upperName),
		UpperMiB: diskMiB,
	}, nil
}

// Release implements nacre.ImageStore.
func (s *Store) Release(_ context.Context, id nacre.MachineID) error {
	if !id.Valid() {
		return nacre.Invalidf("machine", "the machine's id is not one")
	}
	return s.root.RemoveAll(filepath.Join(uppersDir, string(id)))
}

// Sweep implements nacre.ImageStore. Things whose names are not machine ids are
// not ours and stay.
func (s *Store) Sweep(ctx context.Context, keep func(nacre.MachineID) bool) error {
	entries, err := fs.ReadDir(s.root.FS(), uppersDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		id := nacre.MachineID(e.Name())
		if !id.Valid() || keep(id) {
			continue
		}
		s.o.Logger.Info("deleting the writable layer of a machine that is gone", "machine", id)
		errs = append(errs, s.Release(ctx, id))
	}
	return errors.Join(errs...)
}

// Remove deletes the image of a build from this host and, when everywhere is
// true, from the blob store. While a machine was prepared from it, it is
// CodeConflict. A missing one is no error.
func (s *Store) Remove(ctx context.Context, b nacre.BuildID, everywhere bool) error {
	if !validBuild(b) {
		return nil
	}
	s.use.Lock()
	defer s.use.Unlock()
	entries, err := fs.ReadDir(s.root.FS(), uppersDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		of, err := s.root.ReadFile(filepath.Join(uppersDir, e.Name(), buildName))
		if err == nil && nacre.BuildID(of) == b {
			return nacre.Errorf(nacre.CodeConflict, "build %s is in use by a sandbox; end its sandboxes first", b)
		}
	}
	if everywhere && s.o.Blobs != nil {
		// The manifest first: without it the image does not exist.
		for _, key := range []string{manifestKey(b), imageKey(b)} {
			if err := s.o.Blobs.Delete(ctx, key); err != nil {
				return err
			}
		}
	}
	if err := s.root.Remove(imageName(b)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.sync(imagesDir)
}

// check tells whether the build's image is on this host and whole. It reads one
// block: the content was checked when it came in.
func (s *Store) check(b nacre.BuildID) error {
	f, err := s.openImage(b)
	if errors.Is(err, fs.ErrNotExist) {
		return unknown(b)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := checkEROFS(f); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, fmt.Sprintf("the image of build %s on this host is damaged", b))
	}
	return nil
}

func (s *Store) openImage(b nacre.BuildID) (*os.File, error) {
	return s.root.OpenFile(imageName(b), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// room refuses what would leave less than the reserve free after size more bytes.
func (s *Store) room(size int64) error { return diskRoom(s.path, s.o.ReserveMiB, size) }

// diskRoom refuses what would leave less than the reserve free on path's disk after
// size more bytes. A negative reserve refuses nothing.
func diskRoom(path string, reserveMiB, size int64) error {
	if reserveMiB < 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("ask for free space: %w", err)
	}
	free := int64(st.Bavail) * st.Bsize
	if free-size < reserveMiB<<20 {
		return nacre.Errorf(nacre.CodeNoSpace, "the host's disk is nearly full: %d MiB are free, %d are kept in reserve", free>>20, reserveMiB)
	}
	// File systems without a table of inodes say 0 of 0.
	if st.Files > 0 && st.Ffree < reserveInodes {
		return nacre.Errorf(nacre.CodeNoSpace, "the host's disk has room for %d more files only", st.Ffree)
	}
	return nil
}

func (s *Store) sync(dir string) error {
	f, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func imageName(b nacre.BuildID) string { return filepath.Join(imagesDir, string(b)+".erofs") }

func unknown(b nacre.BuildID) error {
	if !validBuild(b) {
		return nacre.Errorf(nacre.CodeNotFound, "the build does not exist")
	}
	return nacre.Errorf(nacre.CodeNotFound, "build %s does not exist on this host", b)
}

// validBuild tells whether the id has the form that nacre.NewBuildID gives.
func validBuild(b nacre.BuildID) bool {
	if len(b) != 20 || b[0] != 'b' {
		return false
	}
	for i := range len(b) {
		if c := b[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// diskError gives a full disk its code.
func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return nacre.Wrap(nacre.CodeNoSpace, err, "the host's disk is full; free some space, then try again")
	}
	return err
}
