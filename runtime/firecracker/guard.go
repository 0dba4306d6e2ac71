package firecracker

import (
	"context"
	"os"
	"path/filepath"
	"time"
)

// Watching over a VMM that lives and does nothing: it would hold its room for ever.
// How often its process is looked at, and how often in a row it must be found stopped.
const (
	guardEvery = time.Second
	guardTimes = 2
)

// How often a VMM is asked, and how long it may take to answer: that long only a
// host takes that nothing runs on.
const (
	askEvery  = 30 * time.Second
	askWithin = 2 * time.Minute
)

// guardState kills a VMM that somebody stopped, or whose pager somebody did.
func (m *machine) guardState(alive context.Context) {
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	for stopped := 0; ; {
		select {
		case <-alive.Done():
			return
		case <-tick.C:
		}
		if !m.Proc.Stopped() && !m.pager.stopped() {
			stopped = 0
			continue
		}
		if stopped++; stopped >= guardTimes {
			m.killHung()
		}
	}
}

// guardAnswers kills a VMM that does not answer. While it writes a snapshot it answers
// nobody, and that may take any time.
func (m *machine) guardAnswers(alive context.Context) {
	tick := time.NewTicker(m.r.askEvery)
	defer tick.Stop()
	for {
		select {
		case <-alive.Done():
			return
		case <-tick.C:
		}
		if m.Hold.Marked() {
			continue
		}
		ctx, cancel := context.WithTimeout(alive, m.r.askWithin)
		err := m.api.call(ctx, "GET", "/", nil, nil)
		late := ctx.Err() == context.DeadlineExceeded
		cancel()
		// One that began a snapshot meanwhile may be at it still.
		if err != nil && late && !m.Hold.Marked() {
			m.killHung()
		}
	}
}

// killHung ends the VMM, and leaves word why.
func (m *machine) killHung() {
	if f, err := os.OpenFile(filepath.Join(m.st.Dir, hungFile), os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
		f.Close()
	}
	m.Proc.Kill()
}
