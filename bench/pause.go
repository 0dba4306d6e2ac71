package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/server"
)

// holder keeps so many MiB of random bytes in memory, one of them also in a file. At
// each question it says whether both have the sum that they had after the last one, and
// how many it was asked, and then changes a page of both: who goes on from an earlier
// state counts wrong. It reads all of its memory then, so the next pause is not one of
// a guest that is still being loaded.
const holder = `
import hashlib, os, sys, zlib
blocks = [os.urandom(1 << 20) for _ in range(max(1, int(sys.argv[1])))]
memory, disk = bytearray(blocks[0]), open('/tmp/held', 'w+b', buffering=0)
disk.write(memory)
for f in ('/tmp/ask', '/tmp/answer'):
    os.mkfifo(f)
open('/tmp/ready', 'w').close()
def others():
    crc = 0
    for block in blocks[1:]:
        crc = zlib.crc32(block, crc)
    return crc
total, rest, n = hashlib.sha256(memory).digest(), others(), 0
while True:
    open('/tmp/ask').read()
    disk.seek(0)
    same = others() == rest and hashlib.sha256(memory).digest() == total and hashlib.sha256(disk.read()).digest() == total
    n += 1
    at, page = n * 524287 % (len(memory) - 4096), os.urandom(4096)
    memory[at:at + 4096] = page
    disk.seek(at)
    disk.write(page)
    total = hashlib.sha256(memory).digest()
    with open('/tmp/answer', 'w') as out:
        out.write(f'{same} {n}\n')
`

// hold starts a holder and waits until its memory is filled.
func hold(ctx context.Context, a nacre.Agent, mib int) error {
	if _, err := a.Files().Write(ctx, "user", "/tmp/holder.py", strings.NewReader(holder)); err != nil {
		return err
	}
	p, err := a.Processes().Start(ctx, nacre.ProcessSpec{Cmd: "/usr/bin/python3", Args: []string{"/tmp/holder.py", strconv.Itoa(mib)}, User: "user"})
	if err != nil {
		return err
	}
	_ = p.Close()
	_, err = execute(ctx, a, "/bin/sh", "-c", "until [ -e /tmp/ready ]; do sleep 0.05; done")
	return err
}

// intact fails unless memory and file are what they were after the question before
// this one, which is the n-th.
func intact(ctx context.Context, a nacre.Agent, n int) error {
	_, err := execute(ctx, a, "/bin/sh", "-c", fmt.Sprintf(`echo > /tmp/ask; [ "$(cat /tmp/answer)" = "True %d" ]`, n))
	return err
}

func (d *daemon) pause(ctx context.Context, s box) error {
	return d.call(ctx, http.MethodPost, "/sandboxes/"+s.ID+"/pause", "{}", nil)
}

func (d *daemon) resume(ctx context.Context, s box) error {
	return d.call(ctx, http.MethodPost, "/sandboxes/"+s.ID+"/connect", `{"timeout":3600}`, nil)
}

// occupied is what files below a directory occupy on the disk, in MiB.
func occupied(dir string) float64 {
	var n int64
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went away meanwhile
		}
		if info, err := e.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok && !info.IsDir() {
				n += st.Blocks * 512
			}
		}
		return nil
	})
	return float64(n) / (1 << 20)
}

// benchPause: how long a pause and a resume take, by what the sandbox has in memory,
// and what the paused sandbox occupies. Between the two as much is written to the same
// disk by itself, which is what a pause is to be compared with; the host has back what
// the machine held when the resume begins.
func benchPause(ctx context.Context, b *bench) error {
	d, err := b.start(ctx, "--standby", "0", "--memory-mib", "3072")
	if err != nil {
		return err
	}
	defer d.destroy()
	for _, c := range []struct {
		name  string
		mib   int
		times int
		aim   string
		still string
	}{
		{"idle", 0, 20, "", "<= 50"}, {"512 MiB touched", 512, 5, "<= 100", "<= 52"}, {"2 GiB touched", 2048, 3, "<= 400", "<= 58"},
	} {
		if b.quick && c.mib > 512 {
			continue
		}
		err := d.with(ctx, func(s box) error {
			a := d.edge(s)
			if err := hold(ctx, a, c.mib); err != nil {
				return err
			}
			var paused, raw, resumed, first, disk series
			before, err := d.quietDisk(ctx)
			if err != nil {
				return err
			}
			for n := range b.samples(c.times) {
				begin := time.Now()
				if err := d.pause(ctx, s); err != nil {
					return err
				}
				paused.since(begin)
				plain, _ := d.diskOf()
				disk.add(plain - before)
				took, err := writeDurably(filepath.Join(d.dir, "snapshots"), int64((plain-before)*(1<<20)))
				if err != nil {
					return err
				}
				raw.add(millis(took))
				if err := d.freed(ctx); err != nil {
					return err
				}
				begin = time.Now()
				if err := d.resume(ctx, s); err != nil {
					return err
				}
				resumed.since(begin)
				if _, err := execute(ctx, a, "/bin/true"); err != nil {
					return err
				}
				first.since(begin)
				if err := intact(ctx, a, n+1); err != nil {
					return fmt.Errorf("after a resume: %w", err)
				}
			}
			r := b.report
			r.add("pause, "+c.name, "ms", paused, c.aim, "")
			r.add("  the same bytes written to the disk by themselves", "ms", raw, "", "4 writes of 4 MiB in flight, past the cache, synced")
			r.value("  pause / that", "x", paused.at(50)/raw.at(50), "", "of the medians")
			r.add("resume, "+c.name, "ms", resumed, "<= 200", "")
			r.add("resume -> first command answered, "+c.name, "ms", first, "", "")
			r.add("a paused sandbox's plain files, "+c.name, "MiB", disk, "", "on the disk")
			took, still, _, err := d.snapshots(ctx, s, b.samples(c.times))
			if err != nil {
				return err
			}
			r.add("snapshot while it runs, "+c.name, "ms", took, "", "")
			r.add("  of which it stood still", "ms", still, c.still, "")
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// freed returns when no memory is promised to machines: those that there are belong to
// paused sandboxes, and are being cleared away.
func (d *daemon) freed(ctx context.Context) error {
	for {
		s, err := server.WaitReady(ctx, d.dir)
		if err != nil {
			return err
		}
		if s.Capacity == nil || s.Capacity.MemoryPromised == 0 {
			return nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("the host did not get back what paused sandboxes held: %w", err)
		}
	}
}

// benchWake: a request that resumes its sandbox, beside a resume through the API.
func benchWake(ctx context.Context, b *bench) error {
	d, err := b.start(ctx, "--standby", "0")
	if err != nil {
		return err
	}
	defer d.destroy()
	var s box
	if err := d.call(ctx, http.MethodPost, "/sandboxes", `{"templateID":"base","timeout":900,"autoPause":true,"autoResume":{"enabled":true}}`, &s); err != nil {
		return err
	}
	a := d.edge(s)
	server, err := a.Processes().Start(ctx, nacre.ProcessSpec{Cmd: "/usr/bin/python3", Args: []string{"-m", "http.server", "8000"}, User: "user"})
	if err != nil {
		return err
	}
	_ = server.Close()
	request := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, d.file.APIURL+"/", nil)
		if err != nil {
			return err
		}
		req.Host = "8000-" + s.ID + "." + d.file.Domain
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}
	for request() != nil {
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	var running, resumed, woken series
	for range b.samples(20) {
		begin := time.Now()
		if err := request(); err != nil {
			return err
		}
		running.since(begin)
		if err := d.pauseAndRest(ctx, s); err != nil {
			return err
		}
		begin = time.Now()
		if err := d.resume(ctx, s); err != nil {
			return err
		}
		resumed.since(begin)
		if err := d.pauseAndRest(ctx, s); err != nil {
			return err
		}
		begin = time.Now()
		if err := request(); err != nil {
			return err
		}
		woken.since(begin)
	}
	r := b.report
	r.add("HTTP request to a running sandbox", "ms", running, "", "python3 -m http.server")
	r.add("HTTP request that wakes a paused sandbox", "ms", woken, "", "")
	r.value("  over a resume and a request", "ms", woken.at(50)-resumed.at(50)-running.at(50), "<= 5", "difference of the medians")
	return d.kill(ctx, s)
}

// quietDisk waits until the plain files are what they were three seconds ago: a
// template's own snapshot may be made at the moment.
func (d *daemon) quietDisk(ctx context.Context) (float64, error) {
	last, _ := d.diskOf()
	for same := 0; same < 3; same++ {
		if err := pause(ctx, time.Second); err != nil {
			return 0, err
		}
		if now, _ := d.diskOf(); now != last {
			last, same = now, 0
		}
	}
	return last, nil
}

// diskOf is what a data directory's snapshots and what is behind them occupy, in MiB.
func (d *daemon) diskOf() (plain, all float64) {
	plain = occupied(filepath.Join(d.dir, "snapshots", "plain"))
	all = occupied(filepath.Join(d.dir, "snapshots"))
	if entries, err := os.ReadDir(filepath.Join(d.dir, "blobs")); err == nil && len(entries) > 0 {
		all += occupied(filepath.Join(d.dir, "blobs"))
	}
	return plain, all
}

// pauseAndRest leaves a paused sandbox until the server has made ready for the next
// start, as those that somebody comes back to are.
func (d *daemon) pauseAndRest(ctx context.Context, s box) error {
	if err := d.pause(ctx, s); err != nil {
		return err
	}
	return pause(ctx, 500*time.Millisecond)
}
