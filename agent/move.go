package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// moveAcross moves between two file systems (a volume, /dev/shm): it copies to a
// name beside the destination and takes its place in one step. The source goes
// last, so that an interrupted move loses nothing.
func moveAcross(from, to string) error {
	tmp, err := os.MkdirTemp(filepath.Dir(to), ".move-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	whole := filepath.Join(tmp, "x")
	if err := copyTree(from, whole); err != nil {
		return err
	}
	if err := os.Rename(whole, to); err != nil {
		return err
	}
	return os.RemoveAll(from)
}

// copyTree copies with owner, mode and times. Devices and sockets are refused.
func copyTree(from, to string) error {
	fi, err := os.Lstat(from)
	if err != nil {
		return err
	}
	switch mode := fi.Mode(); {
	case mode&fs.ModeSymlink != 0:
		text, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(text, to); err != nil {
			return err
		}
		return copyOwner(fi, to)
	case mode.IsDir():
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		entries, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := copyTree(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
				return err
			}
		}
	case mode.IsRegular():
		if err := copyFile(from, to); err != nil {
			return err
		}
	default:
		return &fs.PathError{Op: "copy", Path: from, Err: syscall.EINVAL}
	}
	if err := copyOwner(fi, to); err != nil {
		return err
	}
	if err := os.Chmod(to, fi.Mode()); err != nil {
		return err
	}
	return os.Chtimes(to, fi.ModTime(), fi.ModTime())
}

func copyFile(from, to string) error {
	in, err := os.OpenFile(from, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = out.ReadFrom(in)
	return errors.Join(err, out.Close())
}

func copyOwner(fi fs.FileInfo, to string) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return os.Lchown(to, int(st.Uid), int(st.Gid))
}
