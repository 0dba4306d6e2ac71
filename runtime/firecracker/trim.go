package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/internal/sparse"
	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// What a guest deletes stays in the file behind its disk: the VMM offers it no discard.
// So before a snapshot, where that is much, the guest is asked to hold its file system
// still and to say what that does not use, and the host makes holes of it.
//
// A block that the guest takes into use again in between would be lost. So the holes are
// made while the guest's processors stand still, and only if they were stopped before
// the guest may have let its file system go on by itself, as it does where whoever asked
// is gone. By then the file system goes on, and only then the snapshot is taken.
//
// The list is the guest's: wrong ones cost the guest its own disk and nobody else
// anything.
const (
	// trimWorth is what must be there to be won, in bytes.
	trimWorth = 32 << 20
	// trimPatience is how long all that comes before the holes may take: the guest's
	// answers, its writing of what it has not written yet, and the walk through its disk.
	// trimStill is how long its processors stand still at most, and how long it may then
	// take to say that it goes on. A guest that is slow on purpose keeps others' snapshots
	// waiting for their turn, so that is all that it gets.
	trimPatience = 3 * time.Second
	trimStill    = time.Second
	// trimLease is how long after it was asked to hold still a guest surely does, by
	// the host's clock.
	trimLease = wire.FreezeFor / 2
)

// trim gives back what the guest has deleted. Errors are told to the log: a snapshot
// does not need it.
func (s *saving) trim(ctx context.Context) {
	begin := time.Now()
	t, err := s.m.trim(ctx, int64(s.birth.UpperMiB)<<20)
	if err != nil && ctx.Err() == nil && s.m.Gone() == nil {
		s.m.r.cfg.Log.Warn("what a guest has deleted could not be given back; its disk is larger than it need be", "machine", s.m.ID(), "error", err)
	}
	if t.won > 0 {
		s.m.r.cfg.Log.Debug("gave back what a guest has deleted", "machine", s.m.ID(), "mib", t.won>>20, "stopped", t.stopped, "took", time.Since(begin))
	}
}

// trimmed is what was won, in bytes, and how long the guest's processors stood still.
type trimmed struct {
	won     int64
	stopped time.Duration
}

// trim is for a guest that runs, and is held for a snapshot. size is its file system's.
func (m *machine) trim(ctx context.Context, size int64) (t trimmed, err error) {
	// By the name that the VMM does not have, which could put another file there.
	disk, err := os.OpenFile(filepath.Join(m.st.Upper, upperFile), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return t, err
	}
	defer disk.Close()
	asked, cancel := context.WithTimeout(ctx, m.r.allow(trimPatience))
	defer cancel()
	worth, err := m.trimWorth(asked, disk)
	if err != nil || !worth {
		return t, err
	}
	still, err := m.freeze(asked, uint64(size/wire.ExtentBlock))
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, still.thaw(m.r.allow(trimStill))) }()
	full, there, err := occupied(asked, disk, still.free)
	if err != nil || there < trimWorth {
		return t, err
	}
	calls := context.WithoutCancel(ctx)
	begin := time.Now()
	if err = m.api.setState(calls, statePaused); err == nil {
		t.won, err = still.release(disk, full, begin.Add(m.r.allow(trimStill)))
	}
	err = errors.Join(err, m.api.setState(calls, stateResumed))
	t.stopped = time.Since(begin)
	return t, err
}

// trimWorth tells whether the disk has much that the guest's files do not need. It is
// known then that the file system's own notes about it are written.
func (m *machine) trimWorth(ctx context.Context, disk *os.File) (bool, error) {
	has, err := blocks(disk)
	if err != nil || has < trimWorth {
		return false, err
	}
	used, err := m.askMiB(ctx, "used")
	if refused := (errGuest{}); errors.As(err, &refused) {
		return false, nil // it booted with an earlier release's first program
	}
	if err != nil || has-int64(used)<<20 < trimWorth {
		return false, err
	}
	c, err := tell(ctx, m.st.Slot.Path, "sync") // in a file system that stands still it would take others' time
	if err != nil {
		return false, err
	}
	return true, c.Close()
}

// frozen is a guest's file system that stands still.
type frozen struct {
	c     net.Conn
	since time.Duration // when the guest was asked to, see uptime
	free  []wire.Extent
}

// freeze has a guest hold a file system of so many blocks still.
func (m *machine) freeze(ctx context.Context, blocks uint64) (f *frozen, err error) {
	f = &frozen{since: uptime()}
	c, err := tell(ctx, m.st.Slot.Path, "freeze")
	if err != nil {
		return nil, err
	}
	f.c = c
	if until, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(until)
	}
	if f.free, err = wire.ReadExtents(bufio.NewReader(c), blocks); err != nil {
		c.Close() // which lets it go on
		return nil, fmt.Errorf("the guest's free blocks: %w", err)
	}
	return f, nil
}

// thaw lets the file system go on. Where it cannot be told it does so by itself.
func (f *frozen) thaw(within time.Duration) error {
	defer f.c.Close()
	_ = f.c.SetDeadline(time.Now().Add(within))
	if err := exchange(f.c, "go on"); err != nil {
		return fmt.Errorf("let the guest's file system go on: %w", err)
	}
	return nil
}

// release makes holes of the extents, until then. The guest's processors stand still.
func (f *frozen) release(disk *os.File, list []wire.Extent, until time.Time) (won int64, err error) {
	if uptime()-f.since > trimLease {
		return 0, errors.New("the guest took so long that its file system may go on already")
	}
	before, err := blocks(disk)
	if err != nil {
		return 0, err
	}
	for _, e := range list {
		if time.Now().After(until) {
			break
		}
		off, n := e.Bytes()
		if err = sparse.Release(disk, off, n); err != nil {
			break
		}
	}
	after, aerr := blocks(disk)
	return before - after, errors.Join(err, aerr)
}

// occupied returns the extents of which the file has something, and how much that is in
// bytes. The list is in order, so the file is walked through once.
func occupied(ctx context.Context, disk *os.File, list []wire.Extent) (full []wire.Extent, there int64, err error) {
	i, counted := 0, -1
	err = sparse.Extents(disk, func(off, n int64) error {
		for ; i < len(list); i++ {
			from, size := list[i].Bytes()
			if from >= off+n {
				break
			}
			if has := min(from+size, off+n) - max(from, off); has > 0 {
				there += has
				if i > counted {
					full, counted = append(full, list[i]), i
				}
			}
			if from+size > off+n {
				break // it may have more
			}
		}
		return ctx.Err()
	})
	return full, there, err
}

// blocks is what a file has of its file system, in bytes.
func blocks(f *os.File) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return st.Blocks * 512, nil
}

// uptime is the host's clock that nobody sets, and that goes on where the host sleeps.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // Linux has it
	}
	return time.Duration(ts.Nano())
}
