package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// What a guest has freed is to its VMM memory like any other: full of what was there.
// So before a snapshot, where that is much, the guest is asked to put what it has free
// into a balloon, from where the VMM gives it back to the host, and is then given it
// back: those pages are zeros now, which are holes in the snapshot.
//
// The balloon is let out before the guest is stopped: no snapshot has a guest that lacks
// its memory, and none that goes on waits for it. While it is filled, for a second or so,
// a guest that needs memory takes it out by itself (deflate_on_oom). It may refuse, too:
// then its snapshot is as large as it was.
//
// How full the balloon is, the guest's first program says, and not the balloon's own
// statistics: with those on, a guest can stall the VMM of releases before 1.14.4, and of
// 1.15.0 (Firecracker's change #5794).
const (
	// balloonWorth is what must be there to be won, in MiB.
	balloonWorth = 32
	// balloonPatience is how long the filling may take at most, with balloonPerGiB more for
	// what is moved: about what a slow host takes to write it.
	balloonPatience = time.Second
	balloonPerGiB   = 10 * time.Second
	// balloonMost is the bound of all of it for any guest, and two thirds of that are the
	// bound of the filling, so that there is time to let it out: one that gives its memory
	// slowly on purpose keeps others' snapshots waiting for their turn.
	balloonMost = 3 * time.Second
	// A guest that has not begun after balloonPatience will not; one that has not moved
	// for balloonStall, or for balloonMoves times as long as it needed before, is done.
	balloonStall = 250 * time.Millisecond
	balloonMoves = 4
	balloonLook  = 10 * time.Millisecond
)

type balloonConfig struct {
	AmountMiB    int  `json:"amount_mib"`
	DeflateOnOOM bool `json:"deflate_on_oom"`
	StatsSeconds int  `json:"stats_polling_interval_s"` // 0: none
}

// newBalloon is the configuration of an empty one.
func newBalloon() balloonConfig { return balloonConfig{DeflateOnOOM: true} }

func (a *api) fillBalloon(ctx context.Context, mib int) error {
	return a.call(ctx, "PATCH", "/balloon", map[string]int{"amount_mib": mib}, nil)
}

// spare is what stays free in a guest of that size for what it does meanwhile, in MiB:
// more than its kernel begins to clear caches for.
func spare(memory int) int { return 16 + memory/64 }

// reclaimable is how much of a guest's memory, in MiB, is free in it and kept for it by
// the host, as far as can be known from outside: resident is what the host has for it
// beside a snapshot's file. Of a guest that booted, what it uses is among that; a copy
// of a snapshot has what it only reads from the file.
func reclaimable(memory, free, resident int, copied bool) int {
	if !copied {
		resident -= memory - free
	}
	return max(0, min(free-spare(memory), resident))
}

// collect has the guest's free memory given back to the host. Errors are told to the
// log: a snapshot does not need it.
func (s *saving) collect(ctx context.Context) {
	if !s.birth.Balloon || s.opt.FilesOnly {
		return
	}
	if err := s.squeeze(ctx); err != nil && ctx.Err() == nil && s.m.Gone() == nil {
		s.m.r.cfg.Log.Warn("a guest's free memory could not be collected; its snapshot is larger", "machine", s.m.ID(), "error", err)
	}
}

func (s *saving) squeeze(ctx context.Context) error {
	m, memory := s.m, s.birth.MemoryMiB+kernelShare
	first, cancel := context.WithTimeout(ctx, m.r.allow(balloonPatience))
	free, err := m.freeMemory(first)
	cancel()
	if err != nil {
		return err
	}
	resident, err := residentMiB(m.Proc.PID)
	if err != nil {
		return err
	}
	worth := reclaimable(memory, free, resident, s.birth.Copied)
	if worth < balloonWorth {
		return nil
	}
	begin := time.Now()
	left, err := m.squeezeTo(ctx, free, spare(memory))
	m.r.cfg.Log.Debug("collected a guest's free memory", "machine", m.ID(), "worth_mib", worth, "free_mib", free, "left_mib", left, "took", time.Since(begin))
	return err
}

// squeezeTo has all of the free memory but what is left put into the balloon and taken
// out again, and returns how little was free.
func (m *machine) squeezeTo(ctx context.Context, free, left int) (least int, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.r.allow(balloonMost))
	defer cancel()
	defer func() {
		// Whatever happened: it is let out, or the guest does so as soon as it can.
		if lerr := m.letOut(context.WithoutCancel(ctx)); lerr != nil {
			err = errors.Join(err, lerr)
			return
		}
		_, aerr := m.awaitFree(ctx, m.r.allow(balloonMost), 1, free)
		err = errors.Join(err, aerr)
	}()
	if err = m.api.fillBalloon(ctx, free-left); err != nil {
		return free, err
	}
	return m.awaitFree(ctx, m.r.allow(fillTime(free)), -1, left)
}

// awaitFree waits for the guest's free memory.
func (m *machine) awaitFree(ctx context.Context, patience time.Duration, way, want int) (best int, err error) {
	return waiting{m.freeMemory, patience, m.r.allow(balloonPatience), m.r.allow(balloonStall)}.until(ctx, way, want)
}

// fillTime is how long a guest may take to give so many MiB.
func fillTime(mib int) time.Duration {
	return min(balloonPatience+time.Duration(mib)*balloonPerGiB/1024, balloonMost*2/3)
}

// waiting is for a guest's free memory to change.
type waiting struct {
	ask      func(context.Context) (int, error)
	patience time.Duration // at most
	begin    time.Duration // until it changes at all
	stall    time.Duration // until it changes again
}

// until returns when the free memory has risen (way 1) or fallen (-1) to about what is
// wanted, has stopped to do so, or the time is over. It stops early at times: what the
// guest's kernel keeps in the lists of its processors, up to an eighth, is not counted
// as free.
func (w waiting) until(ctx context.Context, way, want int) (best int, err error) {
	const about = 1 // MiB: what is in hands at the moment
	ctx, cancel := context.WithTimeout(ctx, w.patience)
	defer cancel()
	since, still, slowest := time.Now(), w.begin, time.Duration(0)
	for first := true; ; first = false {
		free, err := w.ask(ctx)
		if err != nil {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return best, nil
			}
			return best, err
		}
		if first {
			best, since = free, time.Now()
		} else if way*(free-best) > 0 {
			slowest = max(slowest, time.Since(since))
			still = max(w.stall, balloonMoves*slowest)
			best, since = free, time.Now()
		}
		if way*(want-best) <= about || time.Since(since) > still {
			return best, nil
		}
		select {
		case <-ctx.Done():
			return best, nil
		case <-time.After(balloonLook):
		}
	}
}

// freeMemory asks the guest, in MiB.
func (m *machine) freeMemory(ctx context.Context) (int, error) { return m.askMiB(ctx, "free") }

// askMiB asks the guest how much there is of something.
func (m *machine) askMiB(ctx context.Context, what string) (int, error) {
	c, err := tell(ctx, m.st.Slot.Path, what)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if until, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(until)
	}
	line, err := readLine(c)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(line, 10, 31) // the guest's word: no number that overflows
	return int(n), err
}

// letOut gives the guest its memory back.
func (m *machine) letOut(ctx context.Context) error { return m.api.fillBalloon(ctx, 0) }

// residentMiB is what the host has for the process's own memory, beside files.
func residentMiB(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, line, _ := strings.Cut(string(b), "\nRssAnon:")
	var kib int
	if _, err := fmt.Sscan(line, &kib); err != nil {
		return 0, fmt.Errorf("/proc/%d/status has an unknown form: %w", pid, err)
	}
	return kib >> 10, nil
}
