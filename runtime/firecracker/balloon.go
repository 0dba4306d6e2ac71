package firecracker

import (
	"context"
	"strconv"
	"time"
)

// What a guest has freed is to its VMM memory like any other: full of what was there.
// So before a snapshot the guest is asked to give what is free into its balloon, from
// where the VMM gives it back to the host: in the snapshot it is zeros, which are holes.
// When the guest goes on, or is restored, the balloon is let out. A guest that needs
// memory takes it out by itself.
//
// The guest may refuse: then its snapshot is as large as it was.
const (
	// balloonSpare stays free in the guest for what it does meanwhile, in MiB.
	balloonSpare = 16
	// balloonPatience is how long a snapshot waits for the balloon at most, and
	// balloonStall for how long when nothing comes.
	balloonPatience = time.Second
	balloonStall    = 100 * time.Millisecond
)

type balloonConfig struct {
	AmountMiB    int  `json:"amount_mib"`
	DeflateOnOOM bool `json:"deflate_on_oom"`
	// Without an interval the VMM tells nothing; the guest is woken for each one.
	StatsSeconds int `json:"stats_polling_interval_s"`
}

// newBalloon is the configuration of an empty one.
func newBalloon() balloonConfig { return balloonConfig{0, true, 65535} }

func (a *api) fillBalloon(ctx context.Context, mib int) error {
	return a.call(ctx, "PATCH", "/balloon", map[string]int{"amount_mib": mib}, nil)
}

// collect has the guest give what it does not use into its balloon. Errors are told
// to the log: a snapshot does not need it.
func (s *saving) collect(ctx context.Context) {
	if !s.birth.Balloon || s.opt.FilesOnly {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, balloonPatience)
	defer cancel()
	free, err := s.m.freeMemory(ctx)
	if err == nil && free > 2*balloonSpare {
		s.collected = true
		err = s.m.inflate(ctx, free-balloonSpare)
	}
	if err != nil && ctx.Err() == nil {
		s.m.r.cfg.Log.Warn("a guest's free memory could not be collected; its snapshot is larger", "machine", s.m.ID(), "error", err)
	}
}

// freeMemory asks the guest, in MiB.
func (m *machine) freeMemory(ctx context.Context) (int, error) {
	c, err := tell(ctx, m.st.Slot.Path, "free")
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
	return strconv.Atoi(line)
}

// inflate returns when the balloon has the size, or has stopped to grow.
func (m *machine) inflate(ctx context.Context, mib int) error {
	if err := m.api.fillBalloon(ctx, mib); err != nil {
		return err
	}
	has, since := -1, time.Now()
	for {
		var now struct {
			MiB int `json:"actual_mib"`
		}
		if err := m.api.call(ctx, "GET", "/balloon/statistics", nil, &now); err != nil {
			return err
		}
		if now.MiB > has {
			has, since = now.MiB, time.Now()
		}
		if has >= mib || time.Since(since) > balloonStall {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// letOut gives the guest its memory back.
func (m *machine) letOut(ctx context.Context) {
	b, err := m.birth()
	if err == nil && b.Balloon {
		err = m.api.fillBalloon(ctx, 0)
	}
	if err != nil && m.Gone() == nil {
		m.r.cfg.Log.Warn("a guest's balloon could not be let out; it does so itself when it needs the memory", "machine", m.ID(), "error", err)
	}
}
