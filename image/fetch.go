package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// Fetch makes sure that the build's image is on this host: it brings it in from
// the blob store when it is not, checked against the manifest's hash. Any
// number may ask at once; it is fetched once, and goes on when the one who asked
// first gives up. An unknown build is CodeNotFound.
func (s *Store) Fetch(ctx context.Context, b nacre.BuildID) error {
	if !validBuild(b) {
		return unknown(b)
	}
	err := s.check(b)
	if s.o.Blobs == nil || !nacre.IsCode(err, nacre.CodeNotFound) {
		return err
	}
	f := s.fetch(b)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-f.done:
		return f.err
	}
}

// fetch is one image on its way; err counts once done is closed.
type fetch struct {
	done chan struct{}
	err  error
}

// fetch starts to bring the image in, or joins whoever does.
func (s *Store) fetch(b nacre.BuildID) *fetch {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.fetches[b]
	if ok {
		return f
	}
	f = &fetch{done: make(chan struct{})}
	if s.ctx.Err() != nil {
		f.err = nacre.Errorf(nacre.CodeUnavailable, "the image store is closed")
		close(f.done)
		return f
	}
	s.fetches[b] = f
	s.running.Go(func() {
		f.err = s.pull(s.ctx, b)
		s.mu.Lock()
		delete(s.fetches, b)
		s.mu.Unlock()
		close(f.done)
	})
	return f
}

// pull brings the image in. It runs once for a build at a time.
func (s *Store) pull(ctx context.Context, b nacre.BuildID) error {
	if err := s.check(b); !nacre.IsCode(err, nacre.CodeNotFound) {
		return err // fetched since the caller looked
	}
	m, err := s.manifest(ctx, b)
	if err != nil {
		return err
	}
	s.o.Logger.Info("fetching an image", "build", b, "bytes", m.Size)
	if err := s.pullLinked(ctx, b, m); err == nil || nacre.IsCode(err, nacre.CodeInvalid) {
		return damaged(b, err)
	}
	if err := s.room(m.Size); err != nil {
		return err
	}
	r, err := s.o.Blobs.Get(ctx, imageKey(b), 0, -1)
	if err != nil {
		return err
	}
	defer r.Close()
	err = s.bringIn(b, func(f *os.File) error {
		sum := sha256.New()
		// One byte more than promised is enough to know.
		n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(reader{ctx, r}, m.Size+1))
		if err != nil {
			return diskError(err)
		}
		return m.verify(f, n, sum.Sum(nil))
	})
	return damaged(b, err)
}

// pullLinked gives the blob store's own file a second name, once it is checked. Any
// error but CodeInvalid means that it must be copied.
func (s *Store) pullLinked(ctx context.Context, b nacre.BuildID, m manifest) error {
	l, ok := s.o.Blobs.(Linker)
	if !ok {
		return errors.ErrUnsupported
	}
	path, ok := l.Path(imageKey(b))
	if !ok {
		return fs.ErrNotExist
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if !s.sameDisk(f) {
		return unix.EXDEV // before reading it all for nothing
	}
	sum := sha256.New()
	n, err := io.Copy(sum, reader{ctx, f})
	if err != nil {
		return err
	}
	if err := m.verify(f, n, sum.Sum(nil)); err != nil {
		return err
	}
	if err := s.link(b, f); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.sync(imagesDir)
}

func (s *Store) sameDisk(f *os.File) bool {
	var there, here unix.Stat_t
	return unix.Fstat(int(f.Fd()), &there) == nil && unix.Stat(s.path, &here) == nil && there.Dev == here.Dev
}

const maxManifest = 64 << 10

// manifest reads what is promised of the image.
func (s *Store) manifest(ctx context.Context, b nacre.BuildID) (manifest, error) {
	r, err := s.o.Blobs.Get(ctx, manifestKey(b), 0, maxManifest)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return manifest{}, unknown(b)
	}
	if err != nil {
		return manifest{}, err
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		return manifest{}, err
	}
	m, err := parseManifest(text)
	if err != nil {
		return manifest{}, damaged(b, err)
	}
	return m, nil
}

// maxImage bounds what a manifest may promise: 1 TiB.
const maxImage = 1 << 40

func parseManifest(text []byte) (manifest, error) {
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return manifest{}, nacre.Wrap(nacre.CodeInvalid, err, "its manifest is no JSON")
	}
	sum, err := hex.DecodeString(m.SHA256)
	if err != nil || len(sum) != sha256.Size || m.Size < superOffset || m.Size > maxImage {
		return manifest{}, nacre.Errorf(nacre.CodeInvalid, "its manifest has no usable size and hash")
	}
	return m, nil
}

// verify compares what came with what was promised.
func (m manifest) verify(f *os.File, size int64, sum []byte) error {
	if size != m.Size {
		return nacre.Errorf(nacre.CodeInvalid, "it does not have the %d bytes that its manifest says", m.Size)
	}
	if got := hex.EncodeToString(sum); got != m.SHA256 {
		return nacre.Errorf(nacre.CodeInvalid, "its hash is %s, not %s", got, m.SHA256)
	}
	return checkImport(f)
}

// damaged says which image an error of checking is about: it is ours, not the caller's.
func damaged(b nacre.BuildID, err error) error {
	if !nacre.IsCode(err, nacre.CodeInvalid) {
		return err
	}
	return nacre.Wrap(nacre.CodeInternal, err, fmt.Sprintf("the image of build %s in the blob store is damaged: %s", b, nacre.ErrorMessage(err)))
}
