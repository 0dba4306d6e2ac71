package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// forked is an element of a fork's answer.
type forked struct {
	Sandbox *box
	Error   *struct{ Message string }
}

func (d *daemon) fork(ctx context.Context, s box, count int) ([]box, error) {
	var all []forked
	if err := d.call(ctx, http.MethodPost, "/sandboxes/"+s.ID+"/fork", fmt.Sprintf(`{"count":%d,"timeout":600}`, count), &all); err != nil {
		return nil, err
	}
	out := make([]box, 0, count)
	for _, f := range all {
		if f.Sandbox == nil {
			return out, errors.New(f.Error.Message)
		}
		out = append(out, *f.Sandbox)
	}
	return out, nil
}

// snapshots takes some of a running sandbox: how long each took, how long the sandbox
// stood still for it, and its size.
func (d *daemon) snapshots(ctx context.Context, s box, times int) (took, still, bytes series, err error) {
	for range times {
		var snap struct {
			SnapshotID string
			StoppedMS  float64
			SizeBytes  int64
		}
		begin := time.Now()
		if err := d.call(ctx, http.MethodPost, "/sandboxes/"+s.ID+"/snapshots", "{}", &snap); err != nil {
			return took, still, bytes, err
		}
		took.since(begin)
		still.add(snap.StoppedMS)
		bytes.add(float64(snap.SizeBytes) / (1 << 20))
		if err := d.call(ctx, http.MethodDelete, "/templates/"+snap.SnapshotID, "", nil); err != nil {
			return took, still, bytes, err
		}
	}
	return took, still, bytes, nil
}

// benchFork: snapshots of a running sandbox, how long it stood still, and its forks.
func benchFork(ctx context.Context, b *bench) error {
	d, err := b.start(ctx, "--standby", "0")
	if err != nil {
		return err
	}
	defer d.destroy()
	return d.with(ctx, func(s box) error {
		a := d.edge(s)
		if err := hold(ctx, a, 1); err != nil {
			return err
		}
		took, still, bytes, err := d.snapshots(ctx, s, b.samples(15))
		if err != nil {
			return err
		}
		r := b.report
		r.add("snapshot of a running sandbox, idle", "ms", took, "", "")
		r.add("  of which it stood still", "ms", still, "<= 50", "")
		r.add("  its size", "MiB", bytes, "", "")
		for _, c := range []struct {
			name     string
			n, times int
			aim      string
		}{{"one fork", 1, 15, "<= 100"}, {"ten forks", 10, 5, "<= 600"}} {
			var made, answered series
			for range b.samples(c.times) {
				begin := time.Now()
				forks, err := d.fork(ctx, s, c.n)
				if err != nil {
					return err
				}
				made.since(begin)
				for _, f := range forks {
					if err := intact(ctx, d.edge(f), 1); err != nil {
						return fmt.Errorf("in a fork: %w", err)
					}
				}
				answered.since(begin)
				for _, f := range forks {
					if err := d.kill(ctx, f); err != nil {
						return err
					}
				}
			}
			r.add(c.name+" of a running sandbox", "ms", made, c.aim, "")
			r.add("  and its memory and file compared, one after the other", "ms", answered, "", "")
		}
		if b.quick {
			return nil
		}
		return b.ratio(ctx, d, s)
	})
}

// ratio: what ten snapshots of one sandbox, in which something changes in between,
// occupy once the chunks behind them are cut.
func (b *bench) ratio(ctx context.Context, d *daemon, s box) error {
	const n = 10
	plain0, all0 := d.diskOf()
	for i := range n {
		if err := d.call(ctx, http.MethodPost, "/sandboxes/"+s.ID+"/snapshots", "{}", nil); err != nil {
			return err
		}
		if _, err := execute(ctx, d.edge(s), "/bin/sh", "-c", fmt.Sprintf("head -c 1000000 /dev/urandom > /tmp/change%d", i)); err != nil {
			return err
		}
	}
	plain, all := d.diskOf()
	for last, quiet := all-plain, 0; quiet < 40; quiet++ { // they are cut once the host is quiet
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
		if plain, all = d.diskOf(); all-plain != last {
			last, quiet = all-plain, 0
		}
	}
	plain, all = plain-plain0, all-all0
	r := b.report
	r.value("ten snapshots of one sandbox: plain files", "MiB", plain, "", "on the disk; 1 MB of the sandbox changes between two")
	r.value("ten snapshots of one sandbox: the chunks behind them", "MiB", all-plain, "", "on the disk")
	r.value("  chunks / plain files", "x", (all-plain)/plain, "", "")
	return nil
}
