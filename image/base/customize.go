package base

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// customize turns the fresh installation into the template. All paths are
// resolved below the root, whatever links the packages brought.
func customize(dir string, r recipe) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := clean(root); err != nil {
		return fmt.Errorf("clean the root: %w", err)
	}
	for _, f := range r.Files {
		if err := writeFile(root, f); err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
		}
	}
	for _, a := range r.Users {
		if err := addUser(root, a); err != nil {
			return fmt.Errorf("add %s: %w", a.Name, err)
		}
	}
	return nil
}

// clean removes what the build left: mmdebstrap's options (with the host's
// proxy), logs, caches, backups and device nodes, and the mark that keeps pip
// from installing, which people do not expect in a sandbox.
func clean(root *os.Root) error {
	gone := []string{
		"etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap", "etc/apt/sources.list",
		"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "etc/.pwd.lock",
		"var/cache/ldconfig/aux-cache", "var/cache/debconf/config.dat-old", "var/cache/debconf/templates.dat-old",
		"var/lib/dpkg/status-old", "var/lib/dpkg/diversions-old", "var/lib/dpkg/statoverride-old",
		"var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "root/.bash_history", ".dockerenv",
	}
	marks, err := fs.Glob(root.FS(), "usr/lib/python3*/EXTERNALLY-MANAGED")
	if err != nil {
		return err
	}
	for _, path := range append(gone, marks...) {
		if err := root.RemoveAll(path); err != nil {
			return err
		}
	}
	for _, dir := range []string{"etc/apt/sources.list.d", "var/log", "var/lib/apt/lists", "var/cache/apt", "tmp", "var/tmp", "run", "dev"} {
		if err := empty(root, dir); err != nil {
			return err
		}
	}
	// apt wants these, and /run/lock is a link's target.
	for _, dir := range []string{"var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt"} {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := root.Mkdir("run/lock", 0o755); err != nil {
		return err
	}
	return root.Chmod("run/lock", 0o777|fs.ModeSticky)
}

// empty deletes everything in a directory.
func empty(root *os.Root, dir string) error {
	entries, err := fs.ReadDir(root.FS(), dir)
	if errors.Is(err, fs.ErrNotExist) {
		return root.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := root.RemoveAll(dir + "/" + e.Name()); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(root *os.Root, f file) error {
	if err := root.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
		return err
	}
	// Not through a link that a package put there.
	if err := root.RemoveAll(f.Path); err != nil {
		return err
	}
	if err := root.WriteFile(f.Path, []byte(f.Text), f.Mode); err != nil {
		return err
	}
	return root.Chmod(f.Path, f.Mode) // the umask does not count
}

// addUser adds the account to the four files, with no password, and makes its
// home. useradd would do the same, and write down today's date.
func addUser(root *os.Root, a account) error {
	for path, line := range map[string]string{
		"etc/passwd":  fmt.Sprintf("%s:x:%d:%d::%s:/bin/bash\n", a.Name, a.ID, a.ID, a.Home),
		"etc/group":   fmt.Sprintf("%s:x:%d:\n", a.Name, a.ID),
		"etc/shadow":  fmt.Sprintf("%s:*:20000:0:99999:7:::\n", a.Name),
		"etc/gshadow": fmt.Sprintf("%s:!::\n", a.Name),
	} {
		text, err := root.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.Contains("\n"+string(text), "\n"+a.Name+":") {
			return fmt.Errorf("%s has a %s already", path, a.Name)
		}
		f, err := root.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(line)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	home := strings.TrimPrefix(a.Home, "/")
	if err := root.MkdirAll(home, 0o755); err != nil {
		return err
	}
	skel, err := fs.ReadDir(root.FS(), "etc/skel")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	owned := []string{home}
	for _, e := range skel {
		if !e.Type().IsRegular() {
			continue
		}
		text, err := root.ReadFile("etc/skel/" + e.Name())
		if err != nil {
			return err
		}
		path := home + "/" + e.Name()
		if err := root.WriteFile(path, text, 0o644); err != nil {
			return err
		}
		owned = append(owned, path)
	}
	for _, path := range owned {
		if err := root.Lchown(path, a.ID, a.ID); err != nil {
			return err
		}
	}
	return root.Chmod(home, 0o755)
}

// settleTimes gives whatever the build made the time of the newest packaged file,
// and returns that: two builds of one archive come out alike. Packaged files keep
// theirs, for Python's compiled modules name the times of their sources.
func settleTimes(dir string, began time.Time) (time.Time, error) {
	epoch := time.Unix(0, 0)
	var ours []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		// The file system's clock may be a tick behind ours.
		if t := fi.ModTime(); t.After(began.Add(-time.Second)) || t.Nanosecond() != 0 {
			ours = append(ours, path)
		} else if t.After(epoch) {
			epoch = t
		}
		return nil
	})
	if err != nil {
		return epoch, err
	}
	ts, err := unix.TimeToTimespec(epoch)
	if err != nil {
		return epoch, err
	}
	for _, path := range ours {
		err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil && !errors.Is(err, syscall.ENOENT) {
			return epoch, &fs.PathError{Op: "utimes", Path: path, Err: err}
		}
	}
	return epoch, nil
}
