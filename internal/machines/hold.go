package machines

import (
	"errors"
	"io/fs"
	"os"
	"sync"

	"github.com/nacrehq/nacre"
)

// Hold is who stops a guest and lets it go on, one at a time. A mark in the state
// directory tells a later process that the guest may stand still: what the mark says
// is true of a guest from before it is stopped until after it goes on.
type Hold struct {
	mu   sync.Mutex // held for a snapshot, and while the guest is let go on
	held bool       // by this process; guarded by mu
	mark string
}

// ForSnapshot takes hold of a guest that runs, until done is called.
func (h *Hold) ForSnapshot() (done func(), err error) {
	if !h.mu.TryLock() {
		return nil, nacre.Errorf(nacre.CodeConflict, "a snapshot of the machine is being taken; try again when it is done")
	}
	if h.held || h.Marked() {
		h.mu.Unlock()
		return nil, nacre.Errorf(nacre.CodeConflict, "the machine stands still after a snapshot; let it go on first")
	}
	return h.mu.Unlock, nil
}

// ForResume takes hold of a guest to let it go on; still is false when there is
// nothing to do and nothing was taken.
func (h *Hold) ForResume() (done func(), still bool, err error) {
	if !h.mu.TryLock() {
		return nil, false, nacre.Errorf(nacre.CodeConflict, "a snapshot of the machine is being taken; it goes on by itself")
	}
	if !h.held && !h.Marked() {
		h.mu.Unlock()
		return nil, false, nil
	}
	return h.mu.Unlock, true, nil
}

// Begin is called before the guest is stopped, Stopped when it stands still, and
// Ended when it runs again, or does still.
func (h *Hold) Begin() error { return os.WriteFile(h.mark, nil, 0o600) }

// Stopped says that this process stopped the guest.
func (h *Hold) Stopped() { h.held = true }

// Held tells whether this process stopped the guest.
func (h *Hold) Held() bool { return h.held }

// Ended takes the mark away.
func (h *Hold) Ended() error {
	h.held = false
	err := os.Remove(h.mark)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Marked tells whether some process began to stop the guest and has not let it go on.
func (h *Hold) Marked() bool {
	_, err := os.Stat(h.mark)
	return err == nil
}
