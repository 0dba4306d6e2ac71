package image

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// Linker is what a blob store may offer beside the contract when its objects are
// files of the same host: then an image is stored once, under two names. An error
// of Link only means that Put is needed.
type Linker interface {
	Link(ctx context.Context, key, file string) (nacre.Blob, error)
	Path(key string) (string, bool)
}

// manifest makes an image in the blob store count, and is stored last.
type manifest struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

func imageKey(b nacre.BuildID) string    { return "templates/" + string(b) + "/rootfs.erofs" }
func manifestKey(b nacre.BuildID) string { return "templates/" + string(b) + "/manifest.json" }

// Import implements nacre.ImageStore. A file that is no usable EROFS image, and a
// bad build id, are CodeInvalid. The file is linked when it is on the same disk and
// nobody but its owner may write to it, so it must not be written to afterwards.
// With a blob store the image is in that, too, when Import returns; a
// repeat makes up for one that failed half-way.
func (s *Store) Import(ctx context.Context, b nacre.BuildID, erofsPath string) error {
	if !validBuild(b) {
		return nacre.Invalidf("build", "the build's id is not one")
	}
	err := s.check(b)
	switch {
	case nacre.IsCode(err, nacre.CodeNotFound):
		err = s.take(ctx, b, erofsPath)
	case nacre.IsCode(err, nacre.CodeInternal):
		s.o.Logger.Warn("replacing an image", "build", b, "err", err)
		if err = s.root.Remove(imageName(b)); err == nil {
			err = s.take(ctx, b, erofsPath)
		}
	}
	if err != nil || s.o.Blobs == nil {
		return err
	}
	return s.push(ctx, b)
}

// take links or copies the file in.
func (s *Store) take(ctx context.Context, b nacre.BuildID, path string) error {
	src, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO does not block
	if err != nil {
		return nacre.Wrap(nacre.CodeInvalid, err, "the image cannot be opened")
	}
	defer src.Close()
	if err := checkImport(src); err != nil {
		return err
	}
	if err := s.link(b, src); err == nil || errors.Is(err, fs.ErrExist) {
		return s.sync(imagesDir)
	}
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	if err := s.room(fi.Size()); err != nil {
		return err
	}
	return s.bringIn(b, func(f *os.File) error {
		if err := copyFile(ctx, f, src); err != nil {
			return diskError(err)
		}
		return checkImport(f)
	})
}

// link gives the open file a second name. Its content must be on disk first.
func (s *Store) link(b nacre.BuildID, src *os.File) error {
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) != os.Geteuid() || fi.Mode().Perm()&0o022 != 0 {
		return errors.New("others may write to it")
	}
	if err := src.Sync(); err != nil {
		return err
	}
	dir, err := s.root.Open(imagesDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	// By the descriptor, so that it is the file that was checked.
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", src.Fd()), int(dir.Fd()), filepath.Base(imageName(b)), unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return &os.LinkError{Op: "link", Old: src.Name(), New: imageName(b), Err: err}
	}
	return nil
}

// bringIn writes an image under a temporary name and gives it its own once it is
// whole and on disk. The file's lock tells sweepTemp that somebody is at it.
func (s *Store) bringIn(b nacre.BuildID, fill func(*os.File) error) error {
	f, name, err := s.temp()
	if err != nil {
		return diskError(err)
	}
	defer f.Close()
	err = fill(f)
	if err == nil {
		err = diskError(f.Sync())
	}
	if err == nil {
		err = diskError(s.root.Rename(name, imageName(b)))
	}
	if err != nil {
		_ = s.root.Remove(name)
		return err
	}
	return s.sync(imagesDir)
}

// copyStep is how much is copied between two looks at the context. The copy is
// the kernel's, or shares the blocks, where the file systems can.
const copyStep = 64 << 20

func copyFile(ctx context.Context, dst, src *os.File) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := io.CopyN(dst, src, copyStep)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// push stores the image of this host in the blob store, unless it is there.
func (s *Store) push(ctx context.Context, b nacre.BuildID) error {
	if _, err := s.o.Blobs.Stat(ctx, manifestKey(b)); !nacre.IsCode(err, nacre.CodeNotFound) {
		return err
	}
	f, err := s.openImage(b)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	size, err := s.pushImage(ctx, b, f, sum)
	if err != nil {
		return err
	}
	text, err := json.Marshal(manifest{Size: size, SHA256: hex.EncodeToString(sum.Sum(nil))})
	if err != nil {
		return err
	}
	_, err = s.o.Blobs.Put(ctx, manifestKey(b), bytes.NewReader(text))
	return err
}

// pushImage links or copies the image and hashes it.
func (s *Store) pushImage(ctx context.Context, b nacre.BuildID, f *os.File, sum io.Writer) (int64, error) {
	if l, ok := s.o.Blobs.(Linker); ok {
		if _, err := l.Link(ctx, imageKey(b), filepath.Join(s.path, imageName(b))); err == nil {
			return io.Copy(sum, reader{ctx, f})
		}
	}
	blob, err := s.o.Blobs.Put(ctx, imageKey(b), io.TeeReader(f, sum))
	return blob.Size, err
}

// temp makes a locked file.
func (s *Store) temp() (*os.File, string, error) {
	for {
		name := filepath.Join(tempDir, rand.Text())
		f, err := s.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, "", err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			_, err = s.root.Lstat(name)
		}
		if err == nil {
			return f, name, nil
		}
		f.Close()
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, "", err
		}
		// A sweep came between making and locking it.
	}
}

// sweepTemp deletes temporary files that nobody has locked: their writers are dead.
func (s *Store) sweepTemp() error {
	entries, err := fs.ReadDir(s.root.FS(), tempDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(tempDir, e.Name())
		f, err := s.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue // gone, or nothing of ours
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = s.root.Remove(name)
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
