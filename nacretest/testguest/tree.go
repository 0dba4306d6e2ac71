package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// makeTree makes below dir, and in /etc, one of each kind of what a file system
// holds.
func makeTree(dir string) error {
	at := func(name string) string { return filepath.Join(dir, name) }
	var errs []error
	try := func(err error) { errs = append(errs, err) }
	try(os.MkdirAll(at("deep/er"), 0o750))
	try(os.Chmod(at("deep/er"), 0o750|fs.ModeSticky))
	try(os.WriteFile(at("deep/er/data"), []byte(strings.Repeat("0123456789", 100_000)), 0o640))
	try(os.Chown(at("deep/er/data"), 1000, 1001))
	try(os.Link(at("deep/er/data"), at("linked")))
	try(os.Symlink("deep/er/data", at("link")))
	try(os.WriteFile(at("setuid"), []byte("x"), 0o755))
	try(os.Chown(at("setuid"), 1000, 0))
	try(os.Chmod(at("setuid"), 0o755|fs.ModeSetuid))
	try(syscall.Mkfifo(at("fifo"), 0o600))
	try(os.WriteFile(at("empty"), nil, 0o600))
	try(syscall.Setxattr(at("empty"), "user.colour", []byte("green"), 0))
	f, err := os.Create(at("sparse"))
	try(err)
	if err == nil {
		_, err = f.WriteAt([]byte("end"), 40<<20)
		try(err)
		try(f.Close())
	}
	try(os.WriteFile(at(strings.Repeat("long", 50)+"é\n"), []byte("odd name"), 0o644))
	try(os.Remove("/etc/hostname")) // of the image
	try(os.WriteFile("/bin/mine", []byte("beside the image's"), 0o755))
	try(os.Chmod("/bin/tool", 0o711)) // the image's, changed
	try(os.RemoveAll("/srv"))
	return errors.Join(errs...)
}

// describe tells all there is to know of a tree, a line a file. Times are in whole seconds.
func describe(dirs ...string) string {
	var out []string
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			var st syscall.Stat_t
			if err == nil {
				err = syscall.Lstat(path, &st)
			}
			if err != nil {
				return err
			}
			line := fmt.Sprintf("%q %o %d:%d", path, st.Mode, st.Uid, st.Gid)
			switch st.Mode & syscall.S_IFMT {
			case syscall.S_IFREG:
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %d links, %d bytes %x, at %d", st.Nlink, st.Size, sha256.Sum256(b), time.Unix(st.Mtim.Unix()).Round(time.Second).Unix())
			case syscall.S_IFLNK:
				to, _ := os.Readlink(path)
				line += " -> " + to
			}
			buf := make([]byte, 256)
			if n, err := syscall.Getxattr(path, "user.colour", buf); err == nil {
				line += " " + string(buf[:n])
			}
			out = append(out, line)
			return nil
		})
		if err != nil {
			out = append(out, err.Error())
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}
