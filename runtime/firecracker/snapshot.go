package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/snapfile"
	"github.com/nacrehq/nacre/internal/sparse"
)

// A snapshot is Firecracker's own two files, the machine's disk at the same moment,
// the init drive, and a manifest that is written last. What a program wrote an
// instant ago is in the guest's memory or on the disk, so it is in the snapshot
// without a sync.
const (
	stateFile = "vmstate"
	memFile   = "memory"
	diskFile  = "disk.ext4"
	initFile  = "init.erofs"
)

// format is of this process's snapshots.
func (r *Runtime) format() snapfile.Format {
	return snapfile.Format{Version: 1, Key: r.key, Files: snapshotFiles, Large: func(name string) bool { return name == memFile || name == diskFile }, Sum: sparse.Sum}
}

func snapshotFiles(filesOnly bool) []string {
	if filesOnly {
		return []string{diskFile}
	}
	return []string{stateFile, memFile, diskFile, initFile}
}

// birth is what a machine was booted from and its snapshots can only be restored
// on. It is kept in the state directory, for the daemon may be another one by the
// time a snapshot is taken.
type birth struct {
	snapfile.Birth
	Init    string // the init drive's file name beside the agent's binary
	InitDir string // where that was
	Tracks  bool   // the VMM notes which pages the guest writes to
	Balloon bool   // the machine has one
	Copied  bool   // the guest goes on from a snapshot, whose file is a part of its memory
	// HugePages tells that the guest's memory is in pages of 2 MiB. Such a VMM notes
	// nothing, or KVM would map 4 KiB all the same, and has no balloon, for that gives back
	// 4 KiB at a time.
	HugePages bool `json:",omitempty"`
}

// born records what the machine is booted from.
func (l *launch) born(initImage string) (b birth, err error) {
	s := l.spec
	huge := s.Resources.HugePages
	b = birth{Init: filepath.Base(initImage), InitDir: filepath.Dir(initImage), Tracks: !huge, Balloon: !huge && !l.r.cfg.NoBalloon, HugePages: huge}
	if !l.fresh() {
		b.Balloon, b.Copied = l.snap.birth.Balloon, true
	}
	b.Birth = snapfile.Birth{Key: l.r.key, CPUs: s.Resources.CPUs, MemoryMiB: s.Resources.MemoryMiB, UpperMiB: s.Root.UpperMiB}
	if b.Image, err = snapfile.ImageID(s.Root.Image); err != nil {
		return b, err
	}
	if l.snap != nil {
		if err := l.snap.FitsImage(b.Image); err != nil {
			return b, err
		}
	}
	return b, snapfile.WriteJSON(filepath.Join(s.StateDir, birthFile), b)
}

// birth is what was recorded of the machine.
func (m *machine) birth() (b birth, err error) {
	text, err := os.ReadFile(filepath.Join(m.st.Dir, birthFile))
	if err == nil {
		err = json.Unmarshal(text, &b)
	}
	return b, err
}

// Snapshot implements nacre.Machine.
func (m *machine) Snapshot(ctx context.Context, dir string, opt nacre.SnapshotOptions) (info nacre.SnapshotInfo, err error) {
	if err := m.Gone(); err != nil {
		return info, err
	}
	done, err := m.Hold.ForSnapshot()
	if err != nil {
		return info, err
	}
	defer done()
	s := &saving{m: m, dir: dir, opt: opt}
	if err = s.prepare(); err == nil {
		err = s.save(ctx)
	}
	if err != nil {
		s.discard()
		return info, snapshotError(ctx, m.GoneOr(err))
	}
	return s.info, nil
}

// snapshotError gives an error its code.
func snapshotError(ctx context.Context, err error) error {
	var own *nacre.Error
	var vmm *apiError
	switch {
	case errors.As(err, &own):
		return err
	case ctx.Err() != nil:
		return nacre.Wrap(nacre.CodeDeadline, errors.Join(ctx.Err(), err), "the snapshot took longer than it was given; the sandbox goes on")
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.As(err, &vmm) && fullDisk(vmm.text):
		return nacre.Wrap(nacre.CodeNoSpace, err, "the node's disk is too full for the snapshot; the sandbox goes on")
	}
	return fmt.Errorf("snapshot: %w", err)
}

// saving is one snapshot being taken.
type saving struct {
	m     *machine
	dir   string
	opt   nacre.SnapshotOptions
	birth birth

	diff  bool     // the VMM writes what changed since, into a copy of what was before
	files []string // made by us
	info  nacre.SnapshotInfo
}

func (s *saving) discard() {
	for _, f := range s.files {
		_ = os.Remove(filepath.Join(s.dir, f))
	}
	if d, err := s.m.jail.saved(); err == nil {
		defer d.Close()
		for _, f := range []string{stateFile, memFile} {
			_ = unix.Unlinkat(int(d.Fd()), f, 0)
		}
	}
}

// prepare does what can fail before the guest stands still.
func (s *saving) prepare() error {
	if err := snapfile.Empty(s.dir); err != nil {
		return err
	}
	b, err := s.m.birth()
	if err != nil {
		return nacre.Wrap(nacre.CodeUnsupported, err, "what the machine was booted from is not known")
	}
	s.birth = b
	if s.opt.FilesOnly {
		return nil
	}
	if err := s.lay(); err != nil {
		return err
	}
	s.files = append(s.files, initFile)
	return sparse.Share(filepath.Join(s.birth.InitDir, s.birth.Init), filepath.Join(s.dir, initFile))
}

// save stops the guest, writes it, and lets it go on where it must.
func (s *saving) save(ctx context.Context) error {
	m := s.m
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.opt.FilesOnly {
		// What the guest still has in its memory goes to the disk first.
		c, err := tell(ctx, m.st.Slot.Path, "sync")
		if err != nil {
			return err
		}
		c.Close()
	}
	if err := m.Hold.Begin(); err != nil {
		return err
	}
	s.collect(ctx)
	s.trim(ctx)
	begin := time.Now()
	// A call that was begun is waited for: what becomes of one that is called off is
	// not known.
	calls := context.WithoutCancel(ctx)
	if err := m.api.setState(calls, statePaused); err != nil {
		return errors.Join(err, m.Hold.Ended())
	}
	m.Hold.Stopped()
	err := s.write(calls)
	if err == nil {
		err = ctx.Err()
	}
	if s.opt.KeepRunning && err == nil {
		err = m.letGo(calls)
	}
	s.info.Stopped = time.Since(begin)
	if err == nil {
		err = s.finish()
	}
	if err != nil && m.Hold.Held() {
		err = errors.Join(err, m.letGo(calls))
	}
	return err
}

// write has the VMM write the guest, and copies the disk.
func (s *saving) write(ctx context.Context) error {
	m := s.m
	if !s.opt.FilesOnly {
		kind := "Full"
		if s.diff {
			kind = "Diff"
		}
		// From here on the VMM's notes are about this snapshot, whether it succeeds or not.
		m.base.forget()
		err := m.api.put(ctx, "/snapshot/create", snapshotCreate{kind, "/" + saveDir + "/" + stateFile, "/" + saveDir + "/" + memFile})
		if err != nil {
			return err
		}
		for _, name := range []string{stateFile, memFile} {
			if err := s.take(name); err != nil {
				return err
			}
		}
	}
	s.files = append(s.files, diskFile)
	// By the name outside the jail: the VMM, which is not trusted, could put another file
	// or a link in the place of its own.
	return sparse.Clone(filepath.Join(m.st.Upper, upperFile), filepath.Join(s.dir, diskFile), 0o600)
}

// take moves a file that the VMM wrote out of the jail. From then on it is root's. The VMM
// is not trusted: what it left must be a file of its own, and the one that was looked at
// must be the one that was moved.
func (s *saving) take(name string) error {
	d, err := s.m.jail.saved()
	if err != nil {
		return err
	}
	defer d.Close()
	fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st, moved unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != s.m.jail.uid || st.Nlink != 1 {
		return fmt.Errorf("%s is no file of the VMM's", name)
	}
	if want := memorySize(s.birth.MemoryMiB); name == memFile && st.Size != want {
		return fmt.Errorf("the VMM wrote %d bytes of memory, the guest has %d", st.Size, want)
	}
	dst := filepath.Join(s.dir, name)
	s.files = append(s.files, name)
	switch err := unix.Renameat(int(d.Fd()), name, unix.AT_FDCWD, dst); {
	case errors.Is(err, unix.EXDEV):
		return s.copyOut(d, f, dst)
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := unix.Lstat(dst, &moved); err != nil {
		return err
	}
	if moved.Dev != st.Dev || moved.Ino != st.Ino {
		return fmt.Errorf("the VMM put another file in the place of %s", name)
	}
	return errors.Join(f.Chown(0, 0), f.Chmod(0o644))
}

// copyOut is for a snapshot on another file system than the jail.
func (s *saving) copyOut(from, f *os.File, dst string) error {
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(sparse.Copy(out, f), out.Close()); err != nil {
		return err
	}
	return unix.Unlinkat(int(from.Fd()), f.Name(), 0)
}

// finish describes what was written.
func (s *saving) finish() error {
	if !s.opt.FilesOnly {
		if err := sparse.Punch(filepath.Join(s.dir, memFile)); err != nil {
			return err
		}
	}
	s.files = append(s.files, snapfile.Manifest)
	stopped := s.info.Stopped
	info, err := s.m.r.format().Write(s.dir, s.birth, s.opt)
	s.info, s.info.Stopped = info, stopped
	if err == nil && !s.opt.FilesOnly && s.birth.Tracks {
		if f, err := os.Open(filepath.Join(s.dir, memFile)); err == nil {
			s.m.base.set(f)
		}
	}
	return err
}

// Resume implements nacre.Machine.
func (m *machine) Resume(ctx context.Context) error {
	if err := m.Gone(); err != nil {
		return err
	}
	done, still, err := m.Hold.ForResume()
	if !still {
		return err
	}
	defer done()
	own := m.Hold.Held()
	if err = m.letGo(ctx); err == nil && !own {
		// The process that stopped it, or began to, may have left its balloon full.
		var b birth
		if b, err = m.birth(); err == nil && b.Balloon {
			err = m.letOut(ctx)
		}
	}
	if err != nil {
		return m.GoneOr(err)
	}
	return nil
}

// letGo resumes the guest's processors; one that runs is left alone. A call of an
// earlier process that is still under way comes first: the VMM does one at a time.
func (m *machine) letGo(ctx context.Context) error {
	var info instanceInfo
	if err := m.api.call(ctx, "GET", "/", nil, &info); err != nil {
		return err
	}
	if info.State == "Paused" {
		if err := m.api.setState(ctx, stateResumed); err != nil {
			return fmt.Errorf("let the guest go on: %w", err)
		}
	}
	return m.Hold.Ended()
}
