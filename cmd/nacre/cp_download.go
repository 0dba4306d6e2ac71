package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/nacrehq/nacre/client"
)

// maxDepth ends the descent into a tree that a guest makes up as we go.
const maxDepth = 256

// download copies a sandbox's file or directory to this host.
func (j *copyJob) download(ctx context.Context, src place, dst string) error {
	info, err := src.files.Stat(ctx, src.path)
	if err != nil {
		return fmt.Errorf("%s: %w", src.path, err)
	}
	if dst == "-" {
		if info.Dir {
			return fmt.Errorf("%s is a directory; such as: nacre exec %s -- tar c %s", src.path, src.sb.ID, src.path)
		}
		_, err := j.receive(ctx, src, src.path, j.stdout)
		return err
	}
	target := dst
	if st, err := os.Stat(dst); strings.HasSuffix(dst, string(filepath.Separator)) || err == nil && st.IsDir() {
		name := path.Base(path.Join("/", src.path)) // the user's word; the guest's is not taken for a name here
		if name == "/" || name == "~" {
			name = src.sb.ID
		}
		target = filepath.Join(dst, name)
	}
	if !info.Dir {
		j.total.Store(info.Size)
		return j.receiveFile(ctx, src, info, target)
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(target)
	if err != nil {
		return err
	}
	defer root.Close()
	return j.receiveTree(ctx, src, tree{remote: info.Path, root: root, local: "."}, 0)
}

// receive copies a file's content.
func (j *copyJob) receive(ctx context.Context, src place, from string, w io.Writer) (int64, error) {
	r, err := src.files.Open(ctx, from)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", from, err)
	}
	defer r.Close()
	n, err := io.Copy(w, &countingReader{r: r, job: j})
	if err != nil {
		return n, fmt.Errorf("%s: %w", from, err)
	}
	return n, nil
}

// receiveFile replaces a local file in one step, so that a copy that breaks off
// leaves what was there. What is no plain file, such as a device, is written to.
func (j *copyJob) receiveFile(ctx context.Context, src place, info client.FileInfo, target string) (err error) {
	if st, serr := os.Stat(target); serr == nil && !st.Mode().IsRegular() {
		f, err := os.OpenFile(target, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = j.receive(ctx, src, src.path, f)
		return errors.Join(err, f.Close())
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(target), ".nacre-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	n, err := j.receive(ctx, src, src.path, f)
	if err == nil {
		err = f.Chmod(localMode(info))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), target); err == nil {
		j.add(copiedFile{Path: target, Bytes: n})
	}
	return err
}

// localMode is a guest's mode without what must not come from there: set-id
// bits, and being closed to oneself or open to the writing of all.
func localMode(info client.FileInfo) fs.FileMode {
	return fs.FileMode(info.Mode)&0o755 | 0o600
}

// tree is a directory in a sandbox and where it goes below a local root, which
// nothing that the guest names can lead out of.
type tree struct {
	remote string
	root   *os.Root
	local  string
}

func (j *copyJob) receiveTree(ctx context.Context, src place, t tree, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: more than %d directories deep", t.remote, maxDepth)
	}
	entries, err := src.files.List(ctx, t.remote, 1)
	if err != nil {
		return fmt.Errorf("%s: %w", t.remote, err)
	}
	for _, e := range entries {
		if !filepath.IsLocal(e.Name) || strings.ContainsRune(e.Name, filepath.Separator) || e.Name == "." {
			return fmt.Errorf("%s: the sandbox names a file %q, which is no name", t.remote, e.Name)
		}
		remote, local := path.Join(t.remote, e.Name), filepath.Join(t.local, e.Name)
		switch {
		case e.Symlink != "":
			err = j.receiveLink(t, e, remote, local, src.root(depth, t))
		case e.Dir:
			if err = t.root.Mkdir(local, 0o755); errors.Is(err, fs.ErrExist) {
				err = nil
			}
			if err == nil {
				err = j.receiveTree(ctx, src, tree{remote: remote, root: t.root, local: local}, depth+1)
			}
		default:
			err = j.receiveBelow(ctx, src, t.root, e, remote, local)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// root is the directory in the sandbox that the copy began at.
func (p place) root(depth int, t tree) string {
	root := t.remote
	for range depth {
		root = path.Dir(root)
	}
	return root
}

// receiveLink keeps a link that stays within the tree, as a relative one.
func (j *copyJob) receiveLink(t tree, e client.FileInfo, remote, local, top string) error {
	below, ok := strings.CutPrefix(e.Symlink, strings.TrimSuffix(top, "/")+"/")
	rel, err := filepath.Rel(filepath.Dir(local), filepath.FromSlash(below))
	if !ok || err != nil || !filepath.IsLocal(below) {
		j.note("%s is left out: it links out of what is copied, to %s", printable(remote), printable(e.Symlink))
		return nil
	}
	if err := t.root.Remove(local); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return t.root.Symlink(rel, local)
}

func (j *copyJob) receiveBelow(ctx context.Context, src place, root *os.Root, e client.FileInfo, remote, local string) error {
	f, err := root.OpenFile(local, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, localMode(e))
	if err != nil {
		return err
	}
	j.total.Add(e.Size)
	n, err := j.receive(ctx, src, remote, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	j.add(copiedFile{Path: filepath.Join(root.Name(), local), Bytes: n})
	return nil
}
