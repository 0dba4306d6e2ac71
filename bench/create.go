package main

import (
	"context"
	"time"
)

const agentExec = "raw agent exec: bash -l -c 'echo ok'"

// benchCreate: what a client waits for between asking for a sandbox and reading
// its first command's output, when a standby is there. Beside each create the same
// command runs in a sandbox that is there already, over the agent's own socket:
// nothing that makes a sandbox can be faster than that.
func benchCreate(ctx context.Context, b *bench) error {
	d, err := b.withStandbys(ctx)
	if err != nil {
		return err
	}
	py, err := b.sdk(ctx, d)
	if err != nil {
		return err
	}
	defer py.close()
	return d.with(ctx, func(s box) error {
		agent, err := d.direct(s)
		if err != nil {
			return err
		}
		var total, made, first, killed, raw, goTotal series
		for i := range b.samples(100) + 2 {
			if err := d.settle(ctx); err != nil {
				return err
			}
			begin := time.Now()
			if _, err := execute(ctx, agent, shellOK[:]...); err != nil {
				return err
			}
			took := millis(time.Since(begin))
			if err := d.settle(ctx); err != nil {
				return err
			}
			var t struct{ Create, First, Kill float64 }
			if err := py.do(&t, "create"); err != nil {
				return err
			}
			if i < 2 {
				continue // the SDK's imports, the first connections
			}
			raw.add(took)
			total.add(t.Create + t.First)
			made.add(t.Create)
			first.add(t.First)
			killed.add(t.Kill)
			if i%4 != 0 {
				continue
			}
			if err := d.settle(ctx); err != nil {
				return err
			}
			g, err := d.createAndRun(ctx)
			if err != nil {
				return err
			}
			goTotal.add(g)
		}
		r := b.report
		r.add("create -> first command answered, standby, Python SDK", "ms", total, "", "")
		r.add("  of which create", "ms", made, "", "")
		r.add("  of which the first command", "ms", first, "", "")
		r.add("the same over plain HTTP, without the SDK", "ms", goTotal, "", "")
		r.add(agentExec, "ms", raw, "", "in a sandbox that is there")
		r.value("create -> first command over raw agent exec, SDK", "ms", total.at(50)-raw.at(50), "p50 <= 10", "difference of the medians")
		r.value("  its p99 over the median of raw agent exec, SDK", "ms", total.at(99)-raw.at(50), "p99 <= 30", "")
		r.value("create -> first command over raw agent exec, HTTP", "ms", goTotal.at(50)-raw.at(50), "", "difference of the medians")
		r.add("kill, Python SDK", "ms", killed, "", "")
		return nil
	})
}

// createAndRun is create.py's loop body in Go, with connections kept: what is left
// is the server's and the guest's. It returns milliseconds.
func (d *daemon) createAndRun(ctx context.Context) (float64, error) {
	begin := time.Now()
	s, err := d.create(ctx)
	if err != nil {
		return 0, err
	}
	_, err = execute(ctx, d.edge(s), shellOK[:]...)
	took := millis(time.Since(begin))
	if kerr := d.kill(ctx, s); err == nil {
		err = kerr
	}
	return took, err
}

// benchCold: the same without standbys, and `runsc do` of the same gVisor in the
// same run, one after the other.
func benchCold(ctx context.Context, b *bench) error {
	runsc, err := b.runsc(ctx)
	if err != nil {
		return err
	}
	d, err := b.start(ctx, "--standby", "0")
	if err != nil {
		return err
	}
	defer d.destroy()
	py, err := b.sdk(ctx, d)
	if err != nil {
		return err
	}
	defer py.close()
	var total, goTotal, peer series
	for i := range b.samples(20) + 2 {
		var t struct{ Create, First, Kill float64 }
		if err := py.do(&t, "create"); err != nil {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
		g, err := d.createAndRun(ctx)
		if err != nil {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
		begin := time.Now()
		if err := command(ctx, runsc, "--network=none", "--platform=systrap", "do", "/bin/true"); err != nil {
			return err
		}
		took := millis(time.Since(begin))
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
		if i < 2 {
			continue
		}
		total.add(t.Create + t.First)
		goTotal.add(g)
		peer.add(took)
	}
	r := b.report
	r.add("create -> first command answered, no standby, Python SDK", "ms", total, "", "")
	r.add("the same over plain HTTP, without the SDK", "ms", goTotal, "", "")
	r.add("peer: runsc --network=none do /bin/true", "ms", peer, "", "on the host's own files; no network, no API, no agent")
	r.value("no standby, Python SDK / runsc do", "x", total.at(50)/peer.at(50), "<= 0.8", "medians")
	r.value("no standby, HTTP / runsc do", "x", goTotal.at(50)/peer.at(50), "", "medians")
	return nil
}
