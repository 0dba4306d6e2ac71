package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// benchBurst: many creates at the same moment, each with a first command. None
// may fail: what cannot run at once waits its turn.
func benchBurst(ctx context.Context, b *bench) error {
	d, err := b.withStandbys(ctx)
	if err != nil {
		return err
	}
	n := 100
	if b.quick {
		n = 20
	}
	if err := d.settle(ctx); err != nil {
		return err
	}
	var mu sync.Mutex
	var made, answered, killed series
	var failed []error
	var boxes []box
	var wg sync.WaitGroup
	begin := time.Now()
	for range n {
		wg.Go(func() {
			s, err := d.create(ctx)
			at := millis(time.Since(begin))
			if err == nil {
				_, err = execute(ctx, d.edge(s), shellOK[:]...)
			}
			done := millis(time.Since(begin))
			mu.Lock()
			defer mu.Unlock()
			if s.ID != "" {
				boxes = append(boxes, s)
			}
			if err != nil {
				failed = append(failed, err)
				return
			}
			made.add(at)
			answered.add(done)
		})
	}
	wg.Wait()
	wall := time.Since(begin)
	begin = time.Now()
	for _, s := range boxes {
		wg.Go(func() {
			if d.kill(context.WithoutCancel(ctx), s) == nil {
				mu.Lock()
				defer mu.Unlock()
				killed.since(begin)
			}
		})
	}
	wg.Wait()
	r := b.report
	name := fmt.Sprintf("%d creates at once: ", n)
	r.value(name+"failed", "", float64(len(failed)), "0", firstError(failed))
	r.add(name+"created", "ms", made, "p99 <= 3000", "from the common start")
	r.add(name+"first command answered", "ms", answered, "", "from the common start")
	r.value(name+"creates and commands", "1/s", float64(len(answered))/wall.Seconds(), "", "")
	r.add(fmt.Sprintf("%d kills at once", len(boxes)), "ms", killed, "", "from the common start")
	return nil
}

func firstError(errs []error) string {
	if err := errors.Join(errs...); err != nil {
		return errs[0].Error()
	}
	return ""
}
