package main

import (
	"context"
	"time"
)

// benchRestart: how long a kill takes, and how long sandboxes cannot be reached
// while the server starts again: from the start of its process to its first
// answers. The sandboxes run meanwhile.
func benchRestart(ctx context.Context, b *bench) error {
	d, err := b.withStandbys(ctx)
	if err != nil {
		return err
	}
	var killed series
	for range b.samples(20) {
		if err := d.settle(ctx); err != nil {
			return err
		}
		s, err := d.create(ctx)
		if err != nil {
			return err
		}
		if _, err := execute(ctx, d.edge(s), shellOK[:]...); err != nil {
			return err
		}
		begin := time.Now()
		if err := d.kill(ctx, s); err != nil {
			return err
		}
		killed.since(begin)
	}
	b.report.add("kill", "ms", killed, "", "answered when nothing of the sandbox is left on the host")

	return d.with(ctx, func(s box) error {
		var ready, ran series
		for range b.samples(5) {
			d.stop()
			begin := time.Now()
			if err := d.up(ctx); err != nil {
				return err
			}
			if err := d.call(ctx, "GET", "/sandboxes/"+s.ID, "", nil); err != nil {
				return err
			}
			ready.since(begin)
			if _, err := execute(ctx, d.edge(s), shellOK[:]...); err != nil {
				return err
			}
			ran.since(begin)
		}
		b.report.add("server restart -> first request answered", "ms", ready, "", "with a sandbox and standbys to take back; asked every 50 ms")
		b.report.add("server restart -> command in the old sandbox", "ms", ran, "", "")
		return nil
	})
}
