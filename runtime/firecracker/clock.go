package firecracker

import (
	"context"
	"errors"
	"strconv"
	"time"
)

// A guest's clock is late by as long as the news of the time took, which is much in a
// guest that has just been restored and reads its first pages from the disk.
const (
	clockTries = 8
	clockMost  = 32
	clockClose = 10 * time.Millisecond // the way there and back: near enough
)

// setClock tells the guest the time until it has taken it soon enough. What it was told
// last counts: where the way stays long, that is once more by about the shortest.
func (l *launch) setClock(ctx context.Context) error {
	way := time.Duration(-1) // the shortest so far, there and back
	failed := 0
	for try := range clockMost {
		took, err := l.tellTime(ctx, max(way, 0)/2)
		if refused := (errGuest{}); errors.As(err, &refused) {
			return nil // a snapshot of an earlier release's guest: it has the time of the first word
		}
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			if failed++; failed == clockTries {
				return nil
			}
			continue
		}
		if took < clockClose {
			return nil
		}
		if way < 0 || took < way {
			way = took
		}
		if try+1 >= clockTries && took <= way*5/4 {
			return nil
		}
	}
	return nil
}

// tellTime tells the time that it will be when it is heard, ahead of now, and returns
// how long the answer took.
func (l *launch) tellTime(ctx context.Context, ahead time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, lastAttempt)
	defer cancel()
	begin := time.Now()
	c, err := askNow(ctx, l.jail.root, func() string {
		begin = time.Now()
		return "clock " + strconv.FormatInt(l.r.cfg.Clock().Add(ahead).UnixNano(), 10)
	})
	took := time.Since(begin)
	if err != nil {
		return 0, err
	}
	return took, c.Close()
}
