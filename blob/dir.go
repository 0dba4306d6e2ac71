package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nacrehq/nacre"
)

// Dir is a BlobStore in a directory, which several processes may have open. Below
// it "objects" holds what is stored (paths.go says under which names) and "tmp"
// what is being written. No path leaves the directory, whatever links lie in it.
type Dir struct {
	path string
	root *os.Root
}

var _ nacre.BlobStore = (*Dir)(nil)

const objectsDir, tempDir = "objects", "tmp"

// OpenDir opens the store at path, makes it when there is none, and deletes what
// writers that were killed have left.
func OpenDir(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, storeError(fmt.Errorf("make the blob store's directory: %w", err))
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open the blob store's directory: %w", err)
	}
	d := &Dir{path: path, root: root}
	for _, dir := range []string{objectsDir, tempDir} {
		if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			root.Close()
			return nil, storeError(fmt.Errorf("make the blob store's directory: %w", err))
		}
	}
	if err := errors.Join(d.sweep(), d.sync("."), d.sync(objectsDir)); err != nil {
		root.Close()
		return nil, fmt.Errorf("tidy the blob store: %w", err)
	}
	return d, nil
}

// Close gives the directory back. Objects that are open stay readable.
func (d *Dir) Close() error { return d.root.Close() }

// Put implements nacre.BlobStore.
func (d *Dir) Put(ctx context.Context, key string, r io.Reader) (nacre.Blob, error) {
	if err := checkKey(key); err != nil {
		return nacre.Blob{}, err
	}
	f, name, err := d.temp()
	if err != nil {
		return nacre.Blob{}, storeError(err)
	}
	defer f.Close() // which lets go of its lock as well
	_, err = io.Copy(f, whileAlive{ctx.Err, r})
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = d.publish(name, key)
	}
	if err != nil {
		_ = d.root.Remove(name)
		return nacre.Blob{}, storeError(err)
	}
	fi, err := f.Stat()
	if err != nil {
		return nacre.Blob{}, err
	}
	return nacre.Blob{Key: key, Size: fi.Size(), ModTime: fi.ModTime()}, nil
}

// publish gives a finished file its name, and makes the names on the way to it
// durable. A Delete at the same time may take an empty directory away between the
// steps; then they are done again.
func (d *Dir) publish(temp, key string) error {
	path := objectPath(key)
	var err error
	for range 100 {
		err = d.root.MkdirAll(filepath.Dir(path), 0o700)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) { // either: it went between two steps
			return err
		}
		if err = d.root.Rename(temp, path); err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err != nil {
		return err
	}
	for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
		if err := d.sync(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // deleted again already
			return err
		}
	}
	return nil
}

// Get implements nacre.BlobStore.
func (d *Dir) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := errors.Join(checkKey(key), ctx.Err()); err != nil {
		return nil, err
	}
	f, err := d.root.Open(objectPath(key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(key)
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	n, err := section(fi.Size(), offset, length)
	if err != nil {
		f.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{whileAlive{ctx.Err, io.NewSectionReader(f, offset, n)}, f}, nil
}

// Stat implements nacre.BlobStore.
func (d *Dir) Stat(ctx context.Context, key string) (nacre.Blob, error) {
	if err := errors.Join(checkKey(key), ctx.Err()); err != nil {
		return nacre.Blob{}, err
	}
	fi, err := d.root.Lstat(objectPath(key))
	if errors.Is(err, fs.ErrNotExist) {
		return nacre.Blob{}, notFound(key)
	}
	if err != nil {
		return nacre.Blob{}, err
	}
	if !fi.Mode().IsRegular() {
		return nacre.Blob{}, notFound(key)
	}
	return nacre.Blob{Key: key, Size: fi.Size(), ModTime: fi.ModTime()}, nil
}

// List implements nacre.BlobStore. Objects that come or go meanwhile may be
// listed or not.
func (d *Dir) List(ctx context.Context, prefix string, fn func(nacre.Blob) error) error {
	var keys []string
	err := fs.WalkDir(d.root.FS(), objectsDir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil // deleted meanwhile
		case err != nil:
			return err
		case e.IsDir():
			if !mayHold(path, prefix) {
				return fs.SkipDir
			}
		case e.Type().IsRegular():
			if key, ok := pathKey(path); ok && strings.HasPrefix(key, prefix) {
				keys = append(keys, key)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.Sort(keys)
	for _, key := range keys {
		b, err := d.Stat(ctx, key)
		if nacre.IsCode(err, nacre.CodeNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if err := fn(b); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements nacre.BlobStore.
func (d *Dir) Delete(ctx context.Context, key string) error {
	if err := errors.Join(checkKey(key), ctx.Err()); err != nil {
		return err
	}
	path := objectPath(key)
	err := d.root.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := d.sync(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Directories that are empty now go too; one that is not stays.
	for ; dir != objectsDir && d.root.Remove(dir) == nil; dir = filepath.Dir(dir) {
	}
	return nil
}

func (d *Dir) sync(dir string) error {
	f, err := d.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
