package nacretest

import (
	"bytes"
	"context"
	"io"
	"path"
	"sort"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

// fakeFS is a guest's file system: directories and regular files in memory,
// guarded by the guest's mutex.
type fakeFS map[string]*fakeNode

type fakeNode struct {
	dir   bool
	data  []byte
	owner string
	mtime time.Time
}

func newFakeFS() fakeFS {
	fs := fakeFS{}
	for _, d := range []string{"/", "/home", "/home/user", "/root", "/tmp"} {
		fs[d] = &fakeNode{dir: true, owner: "root", mtime: time.Now()}
	}
	fs["/home/user"].owner = "user"
	return fs
}

func (fs fakeFS) mkdirs(dir, owner string) error {
	for d := dir; ; d = path.Dir(d) {
		if n := fs[d]; n != nil {
			if !n.dir {
				return nacre.Errorf(nacre.CodeInvalid, "%s is not a directory", d)
			}
			break
		}
	}
	for d := dir; fs[d] == nil; d = path.Dir(d) {
		fs[d] = &fakeNode{dir: true, owner: owner, mtime: time.Now()}
	}
	return nil
}

func (fs fakeFS) info(p string) nacre.FileInfo {
	n := fs[p]
	fi := nacre.FileInfo{Name: path.Base(p), Path: p, Dir: n.dir, Size: int64(len(n.data)), Mode: 0o644,
		Permissions: "-rw-r--r--", Owner: n.owner, Group: n.owner, ModTime: n.mtime}
	if n.dir {
		fi.Mode, fi.Permissions = 0o755, "drwxr-xr-x"
	}
	return fi
}

type fakeFiles struct{ a *fakeAgent }

// open resolves the path and takes the guest's mutex; the caller calls done.
func (f fakeFiles) open(ctx context.Context, user, p string) (fs fakeFS, abs, owner string, done func(), err error) {
	g, err := f.a.enter(ctx, "agent.files")
	if err != nil {
		return nil, "", "", nil, err
	}
	home, owner := "/home/user", "user"
	if user == "root" {
		home, owner = "/root", "root"
	}
	if rest, ok := strings.CutPrefix(p, "~"); ok {
		p = home + rest
	}
	if !path.IsAbs(p) {
		p = path.Join(home, p)
	}
	g.mu.Lock()
	return g.files, path.Clean(p), owner, g.mu.Unlock, nil
}

func missing(p string) error { return nacre.Errorf(nacre.CodeNotFound, "path %s not found", p) }

func (f fakeFiles) Read(ctx context.Context, user, p string) (io.ReadCloser, int64, error) {
	fs, abs, _, done, err := f.open(ctx, user, p)
	if err != nil {
		return nil, 0, err
	}
	defer done()
	n := fs[abs]
	switch {
	case n == nil:
		return nil, 0, missing(abs)
	case n.dir:
		return nil, 0, nacre.Errorf(nacre.CodeInvalid, "path %s is a directory", abs)
	}
	return io.NopCloser(bytes.NewReader(n.data)), int64(len(n.data)), nil
}

func (f fakeFiles) Write(ctx context.Context, user, p string, r io.Reader) (nacre.FileInfo, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nacre.FileInfo{}, err
	}
	fs, abs, owner, done, err := f.open(ctx, user, p)
	if err != nil {
		return nacre.FileInfo{}, err
	}
	defer done()
	if n := fs[abs]; n != nil && n.dir {
		return nacre.FileInfo{}, nacre.Errorf(nacre.CodeInvalid, "path %s is a directory", abs)
	}
	if err := fs.mkdirs(path.Dir(abs), owner); err != nil {
		return nacre.FileInfo{}, err
	}
	fs[abs] = &fakeNode{data: data, owner: owner, mtime: time.Now()}
	return fs.info(abs), nil
}

func (f fakeFiles) Stat(ctx context.Context, user, p string) (nacre.FileInfo, error) {
	fs, abs, _, done, err := f.open(ctx, user, p)
	if err != nil {
		return nacre.FileInfo{}, err
	}
	defer done()
	if fs[abs] == nil {
		return nacre.FileInfo{}, missing(abs)
	}
	return fs.info(abs), nil
}

func (f fakeFiles) List(ctx context.Context, user, p string, depth int) ([]nacre.FileInfo, error) {
	fs, abs, _, done, err := f.open(ctx, user, p)
	if err != nil {
		return nil, err
	}
	defer done()
	n := fs[abs]
	switch {
	case n == nil:
		return nil, missing(abs)
	case !n.dir:
		return nil, nacre.Errorf(nacre.CodeInvalid, "path %s is not a directory", abs)
	}
	prefix := strings.TrimSuffix(abs, "/") + "/"
	out := []nacre.FileInfo{}
	for q := range fs {
		if rest, ok := strings.CutPrefix(q, prefix); ok && rest != "" && strings.Count(rest, "/") < depth {
			out = append(out, fs.info(q))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out, nil
}

func (f fakeFiles) MakeDir(ctx context.Context, user, p string) (nacre.FileInfo, error) {
	fs, abs, owner, done, err := f.open(ctx, user, p)
	if err != nil {
		return nacre.FileInfo{}, err
	}
	defer done()
	if n := fs[abs]; n != nil {
		if n.dir {
			return nacre.FileInfo{}, nacre.Errorf(nacre.CodeConflict, "directory %s already exists", abs)
		}
		return nacre.FileInfo{}, nacre.Errorf(nacre.CodeInvalid, "path %s is not a directory", abs)
	}
	if err := fs.mkdirs(abs, owner); err != nil {
		return nacre.FileInfo{}, err
	}
	return fs.info(abs), nil
}

func (f fakeFiles) Move(ctx context.Context, user, from, to string) (nacre.FileInfo, error) {
	_, dst, owner, done, err := f.open(ctx, user, to)
	if err != nil {
		return nacre.FileInfo{}, err
	}
	done()
	fs, src, _, done, err := f.open(ctx, user, from)
	if err != nil {
		return nacre.FileInfo{}, err
	}
	defer done()
	if fs[src] == nil {
		return nacre.FileInfo{}, missing(src)
	}
	if err := fs.mkdirs(path.Dir(dst), owner); err != nil {
		return nacre.FileInfo{}, err
	}
	for q, n := range fs {
		if q == src || strings.HasPrefix(q, src+"/") {
			delete(fs, q)
			fs[dst+strings.TrimPrefix(q, src)] = n
		}
	}
	return fs.info(dst), nil
}

func (f fakeFiles) Remove(ctx context.Context, user, p string) error {
	fs, abs, _, done, err := f.open(ctx, user, p)
	if err != nil {
		return err
	}
	defer done()
	for q := range fs {
		if q == abs || strings.HasPrefix(q, abs+"/") {
			delete(fs, q)
		}
	}
	return nil
}

// Watch polls: what happens between two looks at one path shows as one change.
func (f fakeFiles) Watch(ctx context.Context, user, p string, recursive bool, ready func(), fn func(nacre.FileEvent) error) error {
	look := func() (map[string]time.Time, error) {
		depth := 1
		if recursive {
			depth = 1 << 20
		}
		list, err := f.List(ctx, user, p, depth)
		if err != nil {
			return nil, err
		}
		base, err := f.Stat(ctx, user, p)
		if err != nil {
			return nil, err
		}
		seen := map[string]time.Time{}
		for _, fi := range list {
			seen[strings.TrimPrefix(strings.TrimPrefix(fi.Path, base.Path), "/")] = fi.ModTime
		}
		return seen, nil
	}
	before, err := look()
	if err != nil {
		return err
	}
	ready()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now, err := look()
		if err != nil {
			return err
		}
		var events []nacre.FileEvent
		for name, at := range now {
			if was, ok := before[name]; !ok {
				events = append(events, nacre.FileEvent{Name: name, Op: nacre.FileCreate})
			} else if !was.Equal(at) {
				events = append(events, nacre.FileEvent{Name: name, Op: nacre.FileWrite})
			}
		}
		for name := range before {
			if _, ok := now[name]; !ok {
				events = append(events, nacre.FileEvent{Name: name, Op: nacre.FileRemove})
			}
		}
		for _, e := range events {
			if err := fn(e); err != nil {
				return err
			}
		}
		before = now
	}
}
