package gvisor

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/nacrehq/nacre"
)

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
	if err := m.resume(ctx); err != nil {
		return m.goneOr(err)
	}
	return nil
}

func (m *machine) resume(ctx context.Context) error {
	c, err := dialControl(m.st.Dir)
	if err != nil {
		return callError{err, false}
	}
	defer c.Close()
	if !m.Hold.Held() {
		still, err := standsStill(ctx, c)
		if err != nil {
			return err
		}
		if !still {
			return m.Hold.Ended()
		}
	}
	return m.letGo(c)
}

// letGo ends what the call of Pause began.
func (m *machine) letGo(c *urpc.Client) error {
	if err := call(c, boot.ContMgrResume, nil, nil); err != nil {
		return fmt.Errorf("let the guest go on: %w", err)
	}
	return m.Hold.Ended()
}

// Marks in a dump of gVisor's stacks: each of its task goroutines has the first, and
// the second and third too while the kernel is paused; a call that pauses it or lets
// it go on, and has not ended yet, has the fourth.
var (
	taskRuns  = regexp.MustCompile(`kernel\.\(\*Task\)\.run\(`)
	taskStops = regexp.MustCompile(`kernel\.\(\*Task\)\.doStop\(`)
	taskWaits = regexp.MustCompile(`^goroutine \d+ [^\n]*\[sync\.Cond\.Wait`)
	underWay  = regexp.MustCompile(`boot\.\(\*containerManager\)\.(Pause|Checkpoint|Resume)\(`)
)

// standsStill tells whether gVisor's kernel is paused, which it has no call for: an
// earlier process may have ended before or after it stopped the guest or let it go
// on, and to let a guest go on that runs would end it, as would doing it before the
// call that stopped it has returned. So what that process began is waited for; the
// second look is for a call that was just about to begin.
func standsStill(ctx context.Context, c *urpc.Client) (bool, error) {
	looks, still := 0, false
	for {
		var stacks string
		if err := call(c, boot.DebugStacks, nil, &stacks); err != nil {
			return false, err
		}
		if underWay.MatchString(stacks) {
			looks = 0
		} else if now := allStopped(stacks); looks == 0 || now != still {
			looks, still = 1, now
		} else {
			return still, nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return false, nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the snapshot that an earlier process began has not ended yet; try again")
		}
	}
}

// allStopped reads a dump of the kernel's stacks. A single task may be stopped for
// another reason, but not all of them: the guest's PID 1 cannot be.
func allStopped(stacks string) bool {
	tasks := 0
	for g := range strings.SplitSeq(stacks, "\n\n") {
		if !taskRuns.MatchString(g) {
			continue
		}
		tasks++
		if !taskStops.MatchString(g) || !taskWaits.MatchString(strings.TrimSpace(g)) {
			return false
		}
	}
	return tasks > 0
}
