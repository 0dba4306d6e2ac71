package main

import (
	"context"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
)

// benchExec: a command in a sandbox that runs, through the edge and over the
// agent's own socket, in turns; and through the SDK.
func benchExec(ctx context.Context, b *bench) error {
	d, err := b.withStandbys(ctx)
	if err != nil {
		return err
	}
	err = d.with(ctx, func(s box) error {
		direct, err := d.direct(s)
		if err != nil {
			return err
		}
		edge := d.edge(s)
		for _, c := range []struct {
			name string
			argv []string
		}{{"/bin/true", []string{"/bin/true"}}, {"bash -l -c 'echo ok'", shellOK[:]}} {
			near, far, err := inTurns(ctx, b.samples(300), func(a *envd.Client) error {
				_, err := execute(ctx, a, c.argv...)
				return err
			}, direct, edge)
			if err != nil {
				return err
			}
			b.report.add("exec "+c.name+", through the edge", "ms", far, "", "")
			b.report.add("exec "+c.name+", agent's own socket", "ms", near, "", "")
			b.report.value("exec "+c.name+", edge / agent", "x", far.at(50)/near.at(50), "<= 1.5", "medians")
		}
		near, far, err := inTurns(ctx, b.samples(1000), func(a *envd.Client) error { return a.Healthy(ctx) }, direct, edge)
		if err != nil {
			return err
		}
		b.report.add("empty request to the agent, through the edge", "ms", far, "", "")
		b.report.add("empty request to the agent, its own socket", "ms", near, "", "")
		return b.benchMiosaExec(ctx, d, s, edge)
	})
	if err != nil {
		return err
	}
	py, err := b.sdk(ctx, d)
	if err != nil {
		return err
	}
	defer py.close()
	var t struct{ Run series }
	if err := py.do(&t, "warm", b.samples(200)); err != nil {
		return err
	}
	b.report.add("exec bash -l -c 'echo ok', Python SDK", "ms", t.Run, "", "")
	return nil
}

// inTurns calls do n times with each of two clients, one after the other.
func inTurns(ctx context.Context, n int, do func(*envd.Client) error, first, second *envd.Client) (a, b series, err error) {
	return alternate(ctx, n, func() error { return do(first) }, func() error { return do(second) })
}

// alternate does two things n times, one after the other, so that whatever else the
// host does hits both alike.
func alternate(ctx context.Context, n int, first, second func() error) (a, b series, err error) {
	for i := range n + 3 {
		for _, turn := range []struct {
			do   func() error
			took *series
		}{{first, &a}, {second, &b}} {
			begin := time.Now()
			if err := turn.do(); err != nil {
				return nil, nil, err
			}
			if i >= 3 { // the first ones connect
				turn.took.since(begin)
			}
		}
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
	}
	return a, b, nil
}

// benchMiosaExec: a command through MIOSA's API, beside the same through the edge.
func (b *bench) benchMiosaExec(ctx context.Context, d *daemon, s box, edge *envd.Client) error {
	near, far, err := alternate(ctx, b.samples(300),
		func() error { _, err := execute(ctx, edge, shellOK[:]...); return err },
		func() error {
			return d.call(ctx, "POST", "/api/v1/sandboxes/"+s.ID+"/exec", `{"command":"echo ok"}`, nil)
		})
	if err != nil {
		return err
	}
	b.report.add("MIOSA exec 'echo ok'", "ms", far, "", "over HTTP, through the API")
	b.report.value("MIOSA exec / the Moru SDK's way through the edge", "x", far.at(50)/near.at(50), "<= 2", "medians")
	return nil
}

// benchOutput: how fast a command's output comes out.
func benchOutput(ctx context.Context, b *bench) error {
	d, err := b.withStandbys(ctx)
	if err != nil {
		return err
	}
	size := b.size(64 << 20)
	err = d.with(ctx, func(s box) error {
		direct, err := d.direct(s)
		if err != nil {
			return err
		}
		for _, c := range []struct {
			name  string
			agent nacre.Agent
			argv  []string
		}{
			{"stdout in large writes, through the edge", d.edge(s), []string{"/bin/dd", "if=/dev/zero", "bs=1M", "count=" + number(float64(size>>20))}},
			{"stdout in large writes, agent's own socket", direct, []string{"/bin/dd", "if=/dev/zero", "bs=1M", "count=" + number(float64(size>>20))}},
			{"stdout in writes of 4 KiB, through the edge", d.edge(s), []string{"/bin/dd", "if=/dev/zero", "bs=4096", "count=" + number(float64(size>>12))}},
		} {
			var rate series
			for range b.samples(5) {
				begin := time.Now()
				n, err := execute(ctx, c.agent, c.argv...)
				if err != nil {
					return err
				}
				rate.add(perSecond(n, begin))
			}
			b.report.add(c.name, "MB/s", rate, "", "")
		}
		return nil
	})
	if err != nil {
		return err
	}
	py, err := b.sdk(ctx, d)
	if err != nil {
		return err
	}
	defer py.close()
	var took series
	for range b.samples(3) {
		var t struct{ Output float64 }
		if err := py.do(&t, "output", 20_000_000); err != nil {
			return err
		}
		took.add(t.Output)
	}
	b.report.add("20 MB of stdout, Python SDK", "ms", took, "", "head | tr in the guest; the SDK copies all it has for each event")
	return nil
}
