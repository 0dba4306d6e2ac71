package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/nacrehq/nacre/client"
)

// uploads is how many files go up at once.
const uploads = 4

// upload copies a local file or directory into a sandbox.
func (j *copyJob) upload(ctx context.Context, src string, dst place) error {
	if src == "-" {
		target, err := dst.target(ctx, "-")
		if err != nil {
			return err
		}
		return j.send(ctx, dst, target, j.stdin)
	}
	st, err := os.Stat(src)
	if err != nil {
		return err
	}
	target, err := dst.target(ctx, localName(src))
	if err != nil {
		return err
	}
	if st.IsDir() {
		return j.uploadTree(ctx, src, dst, target)
	}
	j.total.Store(st.Size())
	u := upload{src: src, dst: target, mode: st.Mode()}
	if err := j.sendFile(ctx, dst, u); err != nil {
		return err
	}
	return dst.finish(ctx, []upload{u})
}

// upload is one file, directory or symbolic link on its way.
type upload struct {
	src, dst string
	mode     fs.FileMode
	link     string
}

func (j *copyJob) uploadTree(ctx context.Context, src string, dst place, target string) error {
	if _, err := dst.files.MakeDir(ctx, target); err != nil {
		return fmt.Errorf("make %s in the sandbox: %w", target, err)
	}
	root, err := dst.files.Stat(ctx, target)
	if err != nil {
		return fmt.Errorf("%s: %w", target, err)
	}
	all, err := j.walk(src, root.Path)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(uploads)
	for _, u := range all {
		switch {
		case u.mode.IsDir():
			if _, err = dst.files.MakeDir(gctx, u.dst); err != nil {
				err = fmt.Errorf("make %s in the sandbox: %w", u.dst, err)
			}
		case u.mode.IsRegular():
			g.Go(func() error { return j.sendFile(gctx, dst, u) })
		}
		if err != nil {
			break
		}
	}
	if werr := g.Wait(); werr != nil {
		return werr
	}
	if err != nil {
		return err
	}
	return dst.finish(ctx, all)
}

// walk lists a local tree, a directory before what is in it.
func (j *copyJob) walk(src, target string) ([]upload, error) {
	var all []upload
	err := filepath.WalkDir(src+string(filepath.Separator), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil || rel == "." {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		u := upload{src: p, dst: path.Join(target, filepath.ToSlash(rel)), mode: st.Mode()}
		switch {
		case st.Mode().IsRegular():
			j.total.Add(st.Size())
		case st.Mode()&fs.ModeSymlink != 0:
			if u.link, err = os.Readlink(p); err != nil {
				return err
			}
		case !st.IsDir():
			j.note("%s is left out: it is neither a file, a directory nor a symbolic link", p)
			return nil
		}
		all = append(all, u)
		return nil
	})
	return all, err
}

func (j *copyJob) sendFile(ctx context.Context, dst place, u upload) error {
	f, err := os.Open(u.src)
	if err != nil {
		return err
	}
	defer f.Close()
	return j.send(ctx, dst, u.dst, f)
}

// uploadedMode is what every file has that was written through the file calls.
const uploadedMode fs.FileMode = 0o644

// finish gives files their modes, such as a program's or a secret's, and makes the
// symbolic links: both are beyond the file calls.
func (p place) finish(ctx context.Context, all []upload) error {
	var lines []string
	for _, u := range all {
		switch {
		case u.link != "":
			lines = append(lines, client.Quote("ln", "-sfn", "--", u.link, u.dst))
		case u.mode.IsRegular() && u.mode.Perm() != uploadedMode:
			lines = append(lines, "chmod "+fmt.Sprintf("%o", u.mode.Perm())+" -- "+quotePath(u.dst))
		}
	}
	const batch = 64 << 10 // a shell line may have 128 KiB
	for len(lines) > 0 {
		n, size := 0, 0
		for n < len(lines) && (n == 0 || size+len(lines[n]) < batch) {
			size += len(lines[n]) + 1
			n++
		}
		script := "set -e\n" + strings.Join(lines[:n], "\n")
		if _, err := p.sb.Run(ctx, script, client.User(p.user)); err != nil {
			return fmt.Errorf("the files are there, but not their modes and symbolic links: %w", err)
		}
		lines = lines[n:]
	}
	return nil
}

// quotePath is for a path that may begin at the home, which a shell must see.
func quotePath(p string) string {
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		return "~/" + client.Quote(rest)
	}
	return client.Quote(p)
}
