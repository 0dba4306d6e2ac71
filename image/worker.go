package image

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

const (
	slice      = 20 * time.Millisecond // of background work at once
	patience   = time.Second           // the longest wait for quiet before each
	tryAgain   = time.Minute           // after a snapshot could not be cut
	lookAround = time.Second
)

// Run works in the background until ctx ends: it cuts snapshots into chunks, drops
// plain copies when the disk is short, and frees chunks that nothing holds. It does
// one thing at a time, with the lowest priority, and waits while the store is used.
func (s *Artifacts) Run(ctx context.Context) error {
	if s.o.Blobs == nil {
		<-ctx.Done()
		return nil
	}
	// The thread is never given back: it ends with this goroutine.
	runtime.LockOSThread()
	lowerPriority()
	tick := time.NewTicker(lookAround)
	defer tick.Stop()
	// At once: nobody knows who bears the chunks that there are, and which of them
	// nothing holds since snapshots went before the end of the process before.
	var collected time.Time
	for ctx.Err() == nil {
		s.relieve()
		if a := s.next(); a != nil {
			s.chunk(ctx, a)
			continue
		}
		if s.garbageDue(collected) {
			collected = time.Now()
			if err := s.collect(ctx); err != nil && ctx.Err() == nil {
				s.o.Logger.Warn("chunks that nothing holds could not all be freed; it is tried again", "err", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

// lowerPriority makes this thread the last to get a processor or the disk. Where
// that is not permitted it works on as it is.
func lowerPriority() {
	const whoProcess, idleClass = 1, 3 << 13
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19)
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, idleClass)
}

// next returns the snapshot to be cut next, with a pin: the oldest that has settled.
func (s *Artifacts) next() (a *artifact) {
	now := s.o.Clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.all {
		age := now.Sub(b.m.CreatedAt)
		if b.state != committed || b.m.Transient || !b.plain || b.index || b.damaged || b.work != nil || now.Before(b.retry) || age < s.o.Settle {
			continue
		}
		if a == nil || b.m.CreatedAt.Before(a.m.CreatedAt) {
			a = b
		}
	}
	if a != nil {
		a.pins++
	}
	return a
}

// chunk cuts one snapshot. What it stored before it failed is found by the collector.
func (s *Artifacts) chunk(ctx context.Context, a *artifact) {
	x, err := s.cutAll(ctx, a)
	if err == nil {
		var data []byte
		if data, err = x.encode(); err == nil {
			err = s.writeFile(indexPath(a.m.ID), data, "index")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.garbage = true // or what it has in common with others is to be counted
	switch {
	case err == nil:
		a.index, a.chunks, a.counted = true, x.Stored, true
	case errors.Is(err, errDamaged):
		a.damaged = true // it does not heal; whoever goes on from it is told
		s.o.Logger.Warn("the plain files of a snapshot are damaged; it cannot be cut into chunks", "snapshot", a.m.ID, "err", err)
	default:
		a.retry = s.o.Clock().Add(tryAgain)
		if ctx.Err() == nil && !errors.Is(err, errGone) {
			s.o.Logger.Warn("a snapshot could not be cut into chunks; it is tried again", "snapshot", a.m.ID, "err", err)
		}
	}
	s.unpin(a)
}

var (
	errGone    = errors.New("the snapshot was deleted")
	errDamaged = errors.New("a plain file is not what was written")
)

func (s *Artifacts) cutAll(ctx context.Context, a *artifact) (*index, error) {
	if err := diskRoom(s.path, s.o.ReserveMiB, a.m.DiskBytes/2); err != nil {
		return nil, err
	}
	st, err := s.storing(ctx)
	if err != nil {
		return nil, err
	}
	x, err := s.cutFiles(ctx, a, st)
	if err = errors.Join(err, st.wait()); err != nil {
		return nil, err
	}
	x.Stored = st.added.Load()
	return x, nil
}

func (s *Artifacts) cutFiles(ctx context.Context, a *artifact, st *storing) (*index, error) {
	x := &index{Version: indexVersion}
	begin := time.Now()
	for _, m := range a.m.Files {
		f, err := s.root.Open(filepath.Join(plainPath(a.m.ID), m.Name))
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.Join(errDamaged, err)
		}
		if err != nil {
			return nil, err
		}
		out := indexFile{Name: m.Name, Size: m.Size}
		err = cut(f, m.Size, func(at int64, content []byte) error {
			c, err := st.add(content)
			if err != nil {
				return err
			}
			out.add(piece{at, int32(len(content)), c})
			if worked := time.Since(begin); worked >= slice {
				if err := s.pace(ctx, a, worked); err != nil {
					return err
				}
				begin = time.Now()
			}
			return nil
		})
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		x.Files = append(x.Files, out)
	}
	return x, nil
}

// pace sleeps after some work, and until the store is quiet; never long when the
// disk is short, for then this is what helps. It ends the work on a (which may be
// nil) when that was deleted.
func (s *Artifacts) pace(ctx context.Context, a *artifact, worked time.Duration) error {
	if err := pause(ctx, time.Duration(s.o.Rest*float64(worked))); err != nil {
		return err
	}
	for begin := time.Now(); ; {
		s.mu.Lock()
		quiet := s.busy == 0 && time.Since(s.touched) >= s.o.Quiet
		gone := a != nil && a.state == deleted
		s.mu.Unlock()
		switch {
		case gone:
			return errGone
		case quiet || time.Since(begin) >= patience || s.short():
			return ctx.Err()
		}
		if err := pause(ctx, max(time.Millisecond, min(s.o.Quiet/4, 50*time.Millisecond))); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// short tells whether plain copies have to make room.
func (s *Artifacts) short() bool {
	if s.o.LowWaterMiB > 0 && nacre.IsCode(diskRoom(s.path, s.o.LowWaterMiB, 0), nacre.CodeNoSpace) {
		return true
	}
	if s.o.PlainMiB <= 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	plain := int64(0)
	for _, a := range s.all {
		if a.plain && a.state == committed {
			plain += a.m.DiskBytes
		}
	}
	return plain > s.o.PlainMiB<<20
}

// relieve drops plain copies while they have to make room and can.
func (s *Artifacts) relieve() {
	for s.short() {
		dropped, err := s.dropOldest()
		if err != nil {
			s.o.Logger.Warn("the plain files of a snapshot could not be dropped", "err", err)
		}
		if !dropped {
			return
		}
	}
}

// unpin is release without a note that the store was used; s.mu is held.
func (s *Artifacts) unpin(a *artifact) {
	a.pins--
	if a.state == deleted && a.pins == 0 {
		s.clear(a.m.ID)
	}
}
