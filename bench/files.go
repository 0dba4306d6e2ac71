package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/nacrehq/nacre"
)

// benchFiles: a large file in and out, through the edge and over the agent's own
// socket, and what the guest's disk takes by itself: which shows where the limit
// is. The server's memory is watched meanwhile.
func benchFiles(ctx context.Context, b *bench) error {
	d, err := b.withStandbys(ctx)
	if err != nil {
		return err
	}
	size, block := b.size(1<<30), noiseBlock()
	return d.with(ctx, func(s box) error {
		direct, err := d.direct(s)
		if err != nil {
			return err
		}
		ways := []struct {
			name  string
			agent nacre.Agent
		}{{"through the edge", d.edge(s)}, {"agent's own socket", direct}}
		up, down := make([]series, len(ways)), make([]series, len(ways))
		watch := rss(d.cmd.Process.Pid)
		for range b.samples(3) {
			for i, w := range ways {
				u, v, err := transfer(ctx, w.agent, block, size)
				if err != nil {
					return fmt.Errorf("%s: %w", w.name, err)
				}
				up[i].add(u)
				down[i].add(v)
			}
		}
		before, peak := watch()
		gib := fmt.Sprintf("%.3g GiB", float64(size)/(1<<30))
		for i, w := range ways {
			target := ""
			if i == 0 {
				target = ">= 400"
			}
			b.report.add("upload of "+gib+", "+w.name, "MB/s", up[i], target, "")
			b.report.add("download of "+gib+", "+w.name, "MB/s", down[i], target, "")
		}
		b.report.value("the server's memory before", "MiB", before, "", "resident")
		b.report.value("the server's memory at most", "MiB", peak, "flat", "resident")

		var disk series
		for range b.samples(3) {
			begin := time.Now()
			count := number(float64(size >> 20))
			if _, err := execute(ctx, direct, "/bin/dd", "if=/dev/zero", "of=/home/user/disk", "bs=1M", "count="+count, "status=none"); err != nil {
				return err
			}
			disk.add(perSecond(size, begin))
		}
		b.report.add("limit: dd of "+gib+" to the guest's disk", "MB/s", disk, "", "")
		return nil
	})
}

// transfer writes a file and reads it again, and returns the rates in MB/s.
func transfer(ctx context.Context, a nacre.Agent, block []byte, size int64) (up, down float64, err error) {
	const path = "/home/user/large"
	begin := time.Now()
	if _, err := a.Files().Write(ctx, "user", path, &noise{block: block, left: int(size)}); err != nil {
		return 0, 0, err
	}
	up = perSecond(size, begin)
	begin = time.Now()
	r, _, err := a.Files().Read(ctx, "user", path)
	if err != nil {
		return 0, 0, err
	}
	defer r.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, 256<<10))
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes of %d came back", n, size)
	}
	return up, perSecond(size, begin), err
}

// noise is a file's content: a mebibyte of random bytes again and again, which
// costs no more than a copy. As that of a file its length is known.
type noise struct {
	block    []byte
	at, left int
}

func noiseBlock() []byte {
	block := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(block)
	return block
}

func (n *noise) Len() int { return n.left }

func (n *noise) Read(p []byte) (int, error) {
	if n.left == 0 {
		return 0, io.EOF
	}
	k := copy(p[:min(len(p), n.left)], n.block[n.at:])
	n.at, n.left = (n.at+k)%len(n.block), n.left-k
	return k, nil
}
