package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nacrehq/nacre/client"
)

// counting is a command whose output tells whether it is still the same one: a
// number that grows every second.
const counting = "i=0; while :; do echo $i; i=$((i+1)); sleep 1; done"

// counter follows a counting command.
type counter struct {
	sb   *client.Sandbox
	proc *client.Process
	mu   sync.Mutex
	last int
	more chan struct{} // has an element when last has grown
}

// follow attaches to a counting command, or with pid 0 starts one.
func follow(ctx context.Context, sb *client.Sandbox, pid int) (*counter, error) {
	r, w := io.Pipe()
	c := &counter{sb: sb, last: -1, more: make(chan struct{}, 1)}
	go func() {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				continue // the end of a line whose beginning went to another
			}
			c.mu.Lock()
			c.last = n
			c.mu.Unlock()
			select {
			case c.more <- struct{}{}:
			default:
			}
		}
	}()
	var err error
	if pid == 0 {
		c.proc, err = sb.Start(ctx, counting, client.Stdout(w))
	} else {
		c.proc, err = sb.Attach(ctx, pid, client.Stdout(w))
	}
	return c, err
}

func (c *counter) value() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// beyond waits until the count is larger than n.
func (c *counter) beyond(n int) error {
	late := time.After(slow(patience))
	for c.value() <= n {
		select {
		case <-c.more:
		case <-late:
			return fmt.Errorf("process %d of %s gave no number beyond %d within %s, but %d", c.proc.PID, c.sb.ID, n, slow(patience), c.value())
		}
	}
	return nil
}

// answers waits for the API's first answer and returns when it came.
func (d *daemon) answers() time.Time {
	d.t.Helper()
	key := d.note().APIKey
	d.eventually(patience, func() error {
		a, err := d.ask(d.t.Context(), http.MethodGet, "/v2/sandboxes", nil, as("X-API-Key", key))
		if err == nil && a.Status != http.StatusOK {
			err = errors.New(a.String())
		}
		return err
	})
	return time.Now()
}

// pids are the sandboxes' processes on this host.
func (d *daemon) pids() map[string]int {
	out := map[string]int{}
	for id, h := range d.handles() {
		out[id] = h.Handle.State.PID
	}
	return out
}

// many makes sandboxes, four at a time.
func many(t testing.TB, c *client.Client, n int, opts ...client.CreateOption) []*client.Sandbox {
	t.Helper()
	opts = append([]client.CreateOption{client.Timeout(slow(client.DefaultTimeout))}, opts...)
	out := make([]*client.Sandbox, n)
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(4)
	if slow(1) > 1 {
		g.SetLimit(1) // a request has its time-out, which is a real host's
	}
	for i := range out {
		g.Go(func() (err error) {
			out[i], err = c.Create(ctx, opts...)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return out
}

// each runs fn for every sandbox at once.
func each(t testing.TB, sbs []*client.Sandbox, fn func(ctx context.Context, i int, sb *client.Sandbox) error) {
	t.Helper()
	g, ctx := errgroup.WithContext(t.Context())
	for i, sb := range sbs {
		g.Go(func() error { return fn(ctx, i, sb) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// serveInside starts a web server in the sandbox and waits until it answers.
func (d *daemon) serveInside(sb *client.Sandbox, port int, text string) {
	d.t.Helper()
	line := fmt.Sprintf("mkdir -p /tmp/www && echo %s > /tmp/www/index.html && cd /tmp/www && exec python3 -m http.server %d", text, port)
	if _, err := sb.Start(d.t.Context(), line); err != nil {
		d.t.Fatal(err)
	}
	d.eventually(patience, func() error {
		if a := d.preview(sb.ID, port, "/"); a.Status != 200 || !strings.Contains(a.Body, text) {
			return errors.New(a.String())
		}
		return nil
	})
}

func TestFault01_MachinesOutliveTheDaemon(t *testing.T) {
	d := prepared(t, "--memory-mib", "256", "--standby", "2")
	d.ownBinary()
	d.up()
	c, inst := d.client(), d.instance()
	sbs := many(t, c, 30)
	counters := make([]*counter, len(sbs))
	// What is followed ends with the server's connection, not with the process.
	each(t, sbs, func(_ context.Context, i int, sb *client.Sandbox) (err error) {
		if counters[i], err = follow(t.Context(), sb, 0); err != nil {
			return err
		}
		return counters[i].beyond(-1)
	})
	d.serveInside(sbs[0], 8000, "preview")
	before, pids := d.settled(inst, 2), d.pids()
	if len(pids) != len(sbs) {
		t.Fatalf("%d handles of %d sandboxes", len(pids), len(sbs))
	}

	d.kill9()
	for _, c := range counters {
		if _, err := c.proc.Wait(); err == nil {
			t.Errorf("the stream of %s ended as if its process had", c.sb.ID)
		}
	}
	all := func() {
		each(t, sbs, func(ctx context.Context, _ int, sb *client.Sandbox) error {
			_, err := sb.Run(ctx, "true")
			return err
		})
	}
	inTime(t, 2*time.Second, "the last of 30 sandboxes answered", func() time.Duration {
		launched := time.Now()
		d.launch()
		ready := d.answers()
		all()
		took := time.Since(ready)
		again := time.Now()
		all()
		usual := time.Since(again)
		t.Logf("30 machines: API after %s, then all of them within %s, and once more within %s", ready.Sub(launched).Round(time.Millisecond), took.Round(time.Millisecond), usual.Round(time.Millisecond))
		return took
	})
	if now := d.pids(); !maps.Equal(now, pids) {
		t.Errorf("machines are other processes now: %v, before %v", now, pids)
	}
	each(t, sbs, func(_ context.Context, i int, sb *client.Sandbox) error {
		again, err := follow(t.Context(), sb, counters[i].proc.PID)
		if err != nil {
			return err
		}
		return again.beyond(counters[i].value())
	})
	if a := d.preview(sbs[0].ID, 8000, "/"); a.Status != 200 || !strings.Contains(a.Body, "preview") {
		t.Errorf("preview: %s", a)
	}
	if now := d.settled(inst, 2); now.String() != before.String() {
		t.Errorf("the restart left something:\nbefore %s\nafter  %s", before, now)
	}
	if out, err := sbs[1].Run(t.Context(), "curl -s --max-time 30 http://93.184.216.34/"); err != nil {
		t.Errorf("egress: %v %+v", err, out)
	}
}

func TestDeadlinesHoldAcrossRestarts(t *testing.T) {
	begin := time.Now()
	d := start(t, "--memory-mib", "256", "--standby", "2")
	slowest := time.Since(begin) // of the host's starts
	inTime(t, time.Second, "sandboxes ended behind their deadlines", func() time.Duration {
		c := d.client()
		// Time enough to start again, and for a command.
		open := many(t, c, 2, client.Timeout((7*time.Second + 3*slowest).Truncate(time.Second)))
		passed := many(t, c, 2)
		ends := map[string]time.Time{}
		for _, sb := range passed {
			if err := sb.SetTimeout(t.Context(), 2*time.Second); err != nil {
				t.Fatal(err)
			}
		}
		for _, sb := range append(passed, open...) {
			info, err := sb.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ends[sb.ID] = info.EndAt
		}
		d.kill9()
		time.Sleep(time.Until(ends[passed[1].ID].Add(time.Second))) // the time has to pass
		launched := time.Now()
		d.launch()
		ready := d.answers()
		slowest = max(slowest, ready.Sub(launched))
		var late, lateOpen time.Duration
		for _, sb := range passed {
			o := d.outcome(sb.ID)
			if o.EndReason != "timeout" {
				t.Errorf("%s ended for %q", sb.ID, o.EndReason)
			}
			late = max(late, o.EndedAt.Sub(ready))
		}
		each(t, open, func(ctx context.Context, _ int, sb *client.Sandbox) error {
			_, err := sb.Run(ctx, "true") // before its deadline
			return err
		})
		for _, sb := range open {
			time.Sleep(time.Until(ends[sb.ID]))
			o := d.outcome(sb.ID)
			off := o.EndedAt.Sub(ends[sb.ID])
			if o.EndReason != "timeout" || off < -time.Second {
				t.Errorf("%s ended for %q, %s after its deadline", sb.ID, o.EndReason, off)
			}
			lateOpen = max(lateOpen, off)
			if _, err := sb.Run(t.Context(), "true"); !errors.Is(err, client.ErrNotRunning) {
				t.Errorf("after its deadline: %v", err)
			}
		}
		t.Logf("deadlines that passed meanwhile were held %s after the start, others with a delay of %s", late.Round(time.Millisecond), lateOpen.Round(time.Millisecond))
		return max(late, lateOpen)
	})
	d.agree()
}

// TestFault02_UpgradeUnderLoad: the program is replaced and started again while
// sandboxes are made, used and ended.
func TestFault02_UpgradeUnderLoad(t *testing.T) {
	d := prepared(t, "--memory-mib", "256", "--standby", "2")
	d.ownBinary()
	d.up()
	c := d.client()
	sbs := many(t, c, 6)
	counters := make([]*counter, len(sbs))
	each(t, sbs, func(_ context.Context, i int, sb *client.Sandbox) (err error) {
		if counters[i], err = follow(t.Context(), sb, 0); err != nil {
			return err
		}
		return counters[i].beyond(-1)
	})
	pids := d.pids()

	load, stopLoad := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := w; load.Err() == nil; i++ {
				_ = oneLife(load, c, i) // fails while there is no server
			}
		})
	}
	old := readlink(t, d.cmd.Process.Pid)
	installBinary(t, d.bin, d.bin+".new")
	if err := os.Rename(d.bin+".new", d.bin); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	d.stop()
	t.Logf("stopped within %s", time.Since(begin).Round(time.Millisecond))
	for id, pid := range pids {
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("the process of %s ended with the server: %v", id, err)
		}
	}
	d.up()
	if now := readlink(t, d.cmd.Process.Pid); now == old || !strings.HasSuffix(now, "/nacre") {
		t.Errorf("the server is %q and was %q: not the new program", now, old)
	}
	each(t, sbs, func(_ context.Context, i int, sb *client.Sandbox) error {
		again, err := follow(t.Context(), sb, counters[i].proc.PID)
		if err != nil {
			return err
		}
		return again.beyond(counters[i].value())
	})
	now := d.pids()
	for id, pid := range pids {
		if now[id] != pid {
			t.Errorf("%s is process %d now, and was %d", id, now[id], pid)
		}
	}
	stopLoad()
	wg.Wait()
	d.agree()
}

// readlink names the program that a process runs, with its inode.
func readlink(t testing.TB, pid int) string {
	t.Helper()
	exe := fmt.Sprintf("/proc/%d/exe", pid)
	st, err := os.Stat(exe)
	if err != nil {
		t.Fatal(err)
	}
	to, err := os.Readlink(exe)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", st.Sys().(*syscall.Stat_t).Ino, to)
}

// agree waits until records and machines are the same sandboxes.
func (d *daemon) agree() {
	d.t.Helper()
	c := d.client()
	d.eventually(patience, func() error {
		machines := d.handles()
		n := 0
		for info, err := range c.List(d.t.Context()) {
			if err != nil {
				return err
			}
			n++
			if _, ok := machines[info.ID]; !ok {
				return fmt.Errorf("%s has a record and no machine", info.ID)
			}
		}
		if n != len(machines) {
			return fmt.Errorf("%d sandboxes are listed and %d machines are there", n, len(machines))
		}
		return nil
	})
}

func TestFault06_SecondServerIsRefused(t *testing.T) {
	d := start(t, "--standby", "0")
	ctx, cancel := context.WithTimeout(t.Context(), slow(time.Minute)) // it would serve for ever
	defer cancel()
	out, err := exec.CommandContext(ctx, d.bin, d.args...).CombinedOutput()
	want := regexp.MustCompile(`in use by another nacre \(process ` + strconv.Itoa(d.cmd.Process.Pid) + `\)`)
	if err == nil || ctx.Err() != nil || !want.Match(out) {
		t.Errorf("the second server: %v\n%s", err, out)
	}
	if sb, err := d.client().Create(t.Context()); err != nil {
		t.Errorf("the first server was hurt: %v", err)
	} else if _, err := sb.Run(t.Context(), "true"); err != nil {
		t.Error(err)
	}
}
