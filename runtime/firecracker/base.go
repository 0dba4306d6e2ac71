package firecracker

import (
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/nacrehq/nacre/internal/sparse"
)

// base is the memory that a machine's VMM notes changes against: of the snapshot that
// the machine was restored from, or of the last one that was taken of it. It is held
// open and not by a name: whoever deletes the snapshot need not know, and what a
// killed daemon leaves is nothing. A daemon that took the machine back has none, and
// writes the next snapshot in full.
//
// The VMM merges what changed into a copy of the base. Where the file system shares
// blocks, the copy is nothing; elsewhere it is made while the guest runs, so that the
// guest stands still for what changed and not for what it has.
type base struct {
	mu    sync.Mutex
	known bool
	file  *os.File // nil: a guest that booted began with zeros
}

// set makes f, or zeros when it is nil, the base.
func (b *base) set(f *os.File) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file != nil {
		b.file.Close()
	}
	b.known, b.file = true, f
}

// forget is called when nobody can say any more what the VMM's notes are about.
func (b *base) forget() {
	b.set(nil)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known = false
}

// copyTo fills an empty file; ok is false when there is no base of that size.
func (b *base) copyTo(out *os.File, size int64) (ok bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.known {
		return false, nil
	}
	if b.file == nil {
		return true, out.Truncate(size)
	}
	if st, err := b.file.Stat(); err != nil || st.Size() != size {
		return false, err
	}
	return true, sparse.Copy(out, b.file)
}

// lay puts a copy of the base where the VMM will write the memory. Without one the VMM
// makes the file.
func (s *saving) lay() (err error) {
	// The directory is the VMM's, which is not trusted: no link in it leads out.
	jail, err := os.OpenRoot(s.m.jail.root)
	if err != nil {
		return err
	}
	defer jail.Close()
	name := filepath.Join(saveDir, memFile)
	if err := jail.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := jail.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil || !s.diff {
			_ = jail.Remove(name)
		}
	}()
	if s.diff, err = s.m.base.copyTo(f, memorySize(s.birth.MemoryMiB)); err != nil || !s.diff {
		return err
	}
	// The VMM syncs the file while the guest stands still.
	return errors.Join(f.Chown(s.m.jail.uid, s.m.jail.uid), f.Sync())
}

// memorySize is the size of a guest's memory in bytes.
func memorySize(mib int) int64 { return int64(mib+kernelShare) << 20 }
