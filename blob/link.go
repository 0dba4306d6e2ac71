package blob

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// Link stores a file of the same file system without copying it: the object and
// the file are one from then on, so the caller must never write to it again. An
// error that is EXDEV or EMLINK says that only Put will do.
func (d *Dir) Link(ctx context.Context, key, file string) (nacre.Blob, error) {
	if err := errors.Join(checkKey(key), ctx.Err()); err != nil {
		return nacre.Blob{}, err
	}
	src, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nacre.Blob{}, err
	}
	defer src.Close()
	fi, err := src.Stat()
	if err != nil {
		return nacre.Blob{}, err
	}
	if !fi.Mode().IsRegular() {
		return nacre.Blob{}, fmt.Errorf("link %s: not a regular file", file)
	}
	if err := src.Sync(); err != nil {
		return nacre.Blob{}, storeError(err)
	}
	tmp, err := d.root.Open(tempDir)
	if err != nil {
		return nacre.Blob{}, err
	}
	defer tmp.Close()
	// Locked like any temporary file, so that no sweep takes the name away. The
	// lock is the file's, and shared: others may be linking it as well.
	if err := unix.Flock(int(src.Fd()), unix.LOCK_SH); err != nil {
		return nacre.Blob{}, err
	}
	base := rand.Text()
	if err := unix.Linkat(unix.AT_FDCWD, file, int(tmp.Fd()), base, 0); err != nil {
		return nacre.Blob{}, storeError(&os.LinkError{Op: "link", Old: file, New: base, Err: err})
	}
	name := filepath.Join(tempDir, base)
	linked, err := d.root.Lstat(name)
	if err == nil && !os.SameFile(fi, linked) {
		err = fmt.Errorf("link %s: it was replaced meanwhile", file)
	}
	if err == nil {
		err = d.publish(name, key)
	}
	if err != nil {
		_ = d.root.Remove(name)
		return nacre.Blob{}, storeError(err)
	}
	// rename(2) between two names of one file does nothing: the object was linked before.
	_ = d.root.Remove(name)
	return nacre.Blob{Key: key, Size: fi.Size(), ModTime: fi.ModTime()}, nil
}

// Path is the file of an object that exists, to read it or link it elsewhere;
// false when there is none. Nobody may write to it.
func (d *Dir) Path(key string) (string, bool) {
	if _, err := d.Stat(context.Background(), key); err != nil {
		return "", false
	}
	return filepath.Join(d.path, objectPath(key)), true
}

// temp makes a file to write to. Its lock, which ends with the process, tells
// sweep that somebody is at it.
func (d *Dir) temp() (*os.File, string, error) {
	for {
		name := filepath.Join(tempDir, rand.Text())
		f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, "", err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			return nil, "", err
		}
		_, err = d.root.Lstat(name)
		if err == nil {
			return f, name, nil
		}
		f.Close()
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, "", err
		}
		// A sweep came between the two steps.
	}
}

// sweep deletes temporary files that nobody has locked.
func (d *Dir) sweep() error {
	entries, err := fs.ReadDir(d.root.FS(), tempDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := d.sweepOne(filepath.Join(tempDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (d *Dir) sweepOne(name string) error {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // in use
	}
	return d.root.Remove(name)
}
