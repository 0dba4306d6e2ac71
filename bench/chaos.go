package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"sync"
	"time"
)

// benchChaos: many paused sandboxes are resumed at random, compared with what they
// held at their last pause, in memory and in a file, changed, and paused again.
func benchChaos(ctx context.Context, b *bench) error {
	n, last, workers := 40, 30*time.Second, 4
	switch {
	case b.full:
		n, last = 1000, 5*time.Minute
	case b.quick:
		n, last = 8, 8*time.Second
	}
	d, err := b.start(ctx, "--standby", "0", "--memory-mib", "256")
	if err != nil {
		return err
	}
	defer d.destroy()
	if _, err := d.quietDisk(ctx); err != nil {
		return err
	}
	plain0, all0 := d.diskOf()
	begin := time.Now()
	boxes, err := d.sleepers(ctx, n, workers)
	if err != nil {
		return err
	}
	log.Printf("    %d sandboxes are paused after %s", n, time.Since(begin).Round(time.Second))
	plain, all := d.diskOf()
	c := &chaos{d: d, idle: boxes, asked: map[string]int{}}
	end := time.Now().Add(last)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for time.Now().Before(end) && ctx.Err() == nil {
				c.once(ctx)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r := b.report
	name := fmt.Sprintf("%d paused sandboxes at random for %s: ", n, last)
	r.value(name+"resumes", "", float64(len(c.resumed)), "", fmt.Sprintf("%d at once", workers))
	r.value(name+"lost or different", "", float64(len(c.failed)), "0", firstError(c.failed))
	r.add("  resume", "ms", c.resumed, "", "")
	r.add("  pause", "ms", c.paused, "", "")
	r.value("  plain files, each", "MiB", (plain-plain0)/float64(n), "", "on the disk")
	r.value("  plain files and what is behind them, each", "MiB", (all-all0)/float64(n), "", "on the disk")
	return nil
}

// sleepers makes sandboxes that hold something and pauses them.
func (d *daemon) sleepers(ctx context.Context, n, workers int) ([]box, error) {
	var mu sync.Mutex
	var boxes []box
	var failed []error
	var wg sync.WaitGroup
	todo := make(chan struct{}, n)
	for range n {
		todo <- struct{}{}
	}
	close(todo)
	for range workers {
		wg.Go(func() {
			for range todo {
				s, err := d.create(ctx)
				if err == nil {
					err = hold(ctx, d.edge(s), 1)
				}
				if err == nil {
					err = d.pause(ctx, s)
				}
				mu.Lock()
				boxes = append(boxes, s)
				if err != nil {
					failed = append(failed, err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return boxes, errors.Join(failed...)
}

// chaos is a set of paused sandboxes of which each has one worker at most.
type chaos struct {
	d *daemon

	mu              sync.Mutex
	idle            []box
	asked           map[string]int // how often each was, by id
	resumed, paused series
	failed          []error
}

// once resumes one at random, compares it and pauses it. One that failed is not
// used again.
func (c *chaos) once(ctx context.Context) {
	c.mu.Lock()
	if len(c.idle) == 0 {
		c.mu.Unlock()
		_ = pause(ctx, 10*time.Millisecond)
		return
	}
	i := rand.IntN(len(c.idle))
	s := c.idle[i]
	c.idle[i] = c.idle[len(c.idle)-1]
	c.idle = c.idle[:len(c.idle)-1]
	c.asked[s.ID]++
	n := c.asked[s.ID]
	c.mu.Unlock()

	begin := time.Now()
	err := c.d.resume(ctx, s)
	resumed := millis(time.Since(begin))
	if err == nil {
		err = intact(ctx, c.d.edge(s), n)
	}
	begin = time.Now()
	if err == nil {
		err = c.d.pause(ctx, s)
	}
	paused := millis(time.Since(begin))

	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			c.failed = append(c.failed, fmt.Errorf("sandbox %s: %w", s.ID, err))
		}
		return
	}
	c.resumed.add(resumed)
	c.paused.add(paused)
	c.idle = append(c.idle, s)
}
