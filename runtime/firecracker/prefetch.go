package firecracker

import (
	"time"

	"github.com/nacrehq/nacre/internal/pidfd"
	"github.com/nacrehq/nacre/internal/uffd"
	"github.com/nacrehq/nacre/internal/workingset"
)

// Guests that go on from one snapshot touch much the same pages first, one by one, and
// each has to come from the disk. What the first of them has touched when it answers
// is remembered, and for the later ones the host reads it in one go, while their VMM is
// being started. What is in the host's cache already costs nothing.

// prefetch begins to read; wait returns when the disk was asked for all.
func (l *launch) prefetch() (wait func()) {
	if l.base == nil {
		return func() {}
	}
	set, _ := l.r.sets.Recall(l.base)
	l.prefetched = set.Bytes()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := workingset.Prefetch(l.base, set); err != nil {
			l.r.cfg.Log.Warn("a snapshot's pages could not be read ahead", "machine", l.spec.ID, "error", err)
		}
	}()
	return func() { <-ended }
}

// learn remembers what the guest touched until it answered, and tells what that cost.
func (l *launch) learn(vmm *pidfd.Process) {
	if l.base == nil {
		return
	}
	if l.pager != nil {
		l.learnAsked()
		return
	}
	if f, err := workingset.FaultsOf(vmm.PID); err == nil {
		l.faults = f
		l.r.cfg.Log.Debug("restored", "machine", l.spec.ID, "resumed", l.resumed, "took", time.Since(l.begun), "faults", f.Minor, "faults_of_the_disk", f.Major, "read_ahead", l.prefetched)
	}
	if _, known := l.r.sets.Recall(l.base); known {
		return
	}
	set, err := workingset.Of(vmm.PID, l.base)
	if err != nil {
		l.r.cfg.Log.Warn("the pages that a guest touched are not known", "machine", l.spec.ID, "error", err)
		return
	}
	if len(set) > 0 { // else its memory is a copy of the file
		l.r.sets.Remember(l.base, set)
	}
}

// learnAsked is learn of a guest that a pager serves: what was waited for until it answered.
func (l *launch) learnAsked() {
	set := l.pager.asked()
	l.faults.Major = set.Bytes() / uffd.PageSize
	l.r.cfg.Log.Debug("restored", "machine", l.spec.ID, "resumed", l.resumed, "took", time.Since(l.begun), "large_pages_waited_for", l.faults.Major, "read_ahead", l.prefetched)
	if _, known := l.r.sets.Recall(l.base); !known && len(set) > 0 {
		l.r.sets.Remember(l.base, set)
	}
}
