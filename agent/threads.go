package agent

import (
	"sync"
	"time"

	"github.com/nacrehq/nacre/internal/thread"
)

// When the spare threads are made: after the first program was started, which what waits
// for its output is not to feel, and the worst of programs takes longer to use up a
// guest's tasks; or before there is one, in a guest that waits for its user.
const (
	spareAfterProcess = 20 * time.Millisecond
	spareAfterNew     = time.Second
)

// spareThreads makes the agent's threads ahead: Go ends a program that is refused one, and
// a guest's programs may leave no task of the guest's limit for it.
type spareThreads struct {
	timer *time.Timer // nil: none are made
	first sync.Once
}

func newSpareThreads(n int) *spareThreads {
	if n <= 0 {
		return &spareThreads{}
	}
	return &spareThreads{timer: time.AfterFunc(spareAfterNew, func() { thread.Spare(n) })}
}

// processStarted is told of each program. The guest may be one that was just restored, from
// before its first.
func (s *spareThreads) processStarted() {
	if s.timer != nil {
		s.first.Do(func() { s.timer.Reset(spareAfterProcess) })
	}
}

func (s *spareThreads) close() {
	if s.timer != nil {
		s.timer.Stop()
	}
}
