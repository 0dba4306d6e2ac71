package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/nacrehq/nacre"
)

// resolvePath makes a path of a request absolute: "~" and "~/x" are the user's
// home, anything else relative starts at base.
func resolvePath(path, home, base string) (string, error) {
	if strings.IndexByte(path, 0) >= 0 {
		return "", nacre.Invalidf("path", "the path contains a NUL byte")
	}
	switch {
	case path == "~":
		path = home
	case strings.HasPrefix(path, "~/"):
		path = filepath.Join(home, path[2:])
	case !filepath.IsAbs(path):
		path = filepath.Join(base, path)
	}
	path = filepath.Clean(path)
	if len(path) >= syscall.PathMax {
		return "", nacre.Invalidf("path", "the path is longer than %d bytes", syscall.PathMax-1)
	}
	return path, nil
}

// resolve is resolvePath with the user's directories.
func (a *Agent) resolve(acc account, path string) (string, error) {
	return resolvePath(path, acc.home, a.workdir(acc))
}

// workdir is where a user's relative paths and processes start.
func (a *Agent) workdir(acc account) string {
	if dir := a.id.get().defaultCwd; dir != "" {
		if abs, err := resolvePath(dir, acc.home, acc.home); err == nil {
			return abs
		}
	}
	return acc.home
}

// makeParents makes the missing directories above and including dir, 0755 and
// owned by the user, as the user could have made them.
func makeParents(dir string, acc account) error {
	fi, err := os.Stat(dir)
	if err == nil {
		if !fi.IsDir() {
			return nacre.Invalidf("path", "'%s' is not a directory", validText(dir))
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fileError(err, dir)
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := makeParents(parent, acc); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if fi, serr := os.Stat(dir); serr == nil && fi.IsDir() {
			return nil // somebody else was faster
		}
		return fileError(err, dir)
	}
	return fileError(os.Lchown(dir, int(acc.uid), int(acc.gid)), dir)
}

// fileError gives a system error the code and the sentence that a client can act on.
func fileError(err error, path string) error {
	if err == nil {
		return nil
	}
	var known *nacre.Error
	if errors.As(err, &known) {
		return err
	}
	code, what := nacre.CodeInternal, "the file system reported an error"
	for _, c := range fileErrors {
		if errors.Is(err, c.errno) {
			code, what = c.code, c.what
			break
		}
	}
	if code == nacre.CodeInternal {
		var errno syscall.Errno
		if errors.As(err, &errno) {
			what = errno.Error()
		}
	}
	return &nacre.Error{Code: code, Message: what + ": '" + validText(path) + "'", Field: "path", Err: err}
}

var fileErrors = []struct {
	errno syscall.Errno
	code  nacre.Code
	what  string
}{
	{syscall.ENOENT, nacre.CodeNotFound, "no such file or directory"},
	{syscall.ENOTDIR, nacre.CodeInvalid, "a part of the path is not a directory"},
	{syscall.EISDIR, nacre.CodeInvalid, "the path is a directory"},
	{syscall.EEXIST, nacre.CodeConflict, "the path already exists"},
	{syscall.ENOTEMPTY, nacre.CodeConflict, "the directory is not empty"},
	{syscall.EBUSY, nacre.CodeConflict, "the path is in use"},
	{syscall.ENAMETOOLONG, nacre.CodeInvalid, "a name in the path is too long"},
	{syscall.ELOOP, nacre.CodeInvalid, "too many symbolic links"},
	{syscall.EINVAL, nacre.CodeInvalid, "the path is not valid here"},
	{syscall.ENXIO, nacre.CodeInvalid, "the path is not a regular file"},
	{syscall.ETXTBSY, nacre.CodeConflict, "the file is a running program"},
	{syscall.EROFS, nacre.CodeForbidden, "the file system is read-only"},
	{syscall.EACCES, nacre.CodeForbidden, "permission denied"},
	{syscall.EPERM, nacre.CodeForbidden, "operation not permitted"},
	{syscall.ENOSPC, nacre.CodeNoSpace, "not enough disk space"},
	{syscall.EDQUOT, nacre.CodeNoSpace, "the disk quota is used up"},
	{syscall.EFBIG, nacre.CodeNoSpace, "the file is too large"},
	{syscall.EMFILE, nacre.CodeExhausted, "too many open files; try again"},
	{syscall.ENFILE, nacre.CodeExhausted, "too many open files in the guest; try again"},
	{syscall.ENOMEM, nacre.CodeExhausted, "out of memory; try again"},
}
