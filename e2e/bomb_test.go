package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nacrehq/nacre/client"
)

// neighbour is a sandbox in which commands run one after the other.
type neighbour struct {
	t      testing.TB
	n      atomic.Int64
	worst  time.Duration
	cancel context.CancelFunc
	done   chan struct{}
}

// pressed begins to run commands in a sandbox.
func pressed(t testing.TB, sb *client.Sandbox) *neighbour {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	nb := &neighbour{t: t, cancel: cancel, done: make(chan struct{})}
	run := func() error {
		begin := time.Now()
		_, err := sb.Run(ctx, "true")
		nb.worst = max(nb.worst, time.Since(begin))
		return err
	}
	go func() {
		defer close(nb.done)
		for ctx.Err() == nil {
			if err := run(); err != nil {
				if ctx.Err() == nil {
					t.Errorf("a neighbour was hurt: %v", err)
				}
				return
			}
			nb.n.Add(1)
		}
	}()
	t.Cleanup(func() { cancel(); <-nb.done })
	return nb
}

// unhurt ends the commands, of which some must have run, none for long.
func (nb *neighbour) unhurt() {
	nb.t.Helper()
	for late := time.After(slow(patience)); nb.n.Load() < 5; {
		select {
		case <-nb.done:
			return // it was hurt
		case <-late:
			nb.t.Errorf("beside it %d commands ran", nb.n.Load())
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	nb.cancel()
	<-nb.done
	nb.t.Logf("%d commands beside it, the slowest in %s", nb.n.Load(), nb.worst.Round(time.Millisecond))
	if nb.worst > 5*time.Second {
		nb.t.Errorf("beside it a command took %s", nb.worst)
	}
}

// cgroupFile reads a number of a sandbox's cgroup, by the names of both versions.
func (d *daemon) cgroupFile(h handle, controller, v1, v2 string) int64 {
	d.t.Helper()
	inst := strings.Split(h.Slot.Name, "-")[1]
	group := cmp.Or(h.Handle.State.Group, string(h.Handle.Machine))
	for _, path := range []string{
		filepath.Join("/sys/fs/cgroup", controller, "nacre-"+inst, group, v1),
		filepath.Join("/sys/fs/cgroup", "nacre-"+inst, group, v2),
	} {
		if text, err := os.ReadFile(path); err == nil {
			n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if err != nil {
				d.t.Fatal(err)
			}
			return n
		}
	}
	return -1 // it has ended
}

func TestFault13_ForkBomb(t *testing.T) {
	const maxPIDs = 600
	d := start(t, "--memory-mib", "512", "--standby", "0", "--max-pids", strconv.Itoa(maxPIDs))
	sbs := many(t, d.client(), 2)
	bomb, h := sbs[0], d.handles()[sbs[0].ID]
	beside := pressed(t, sbs[1])
	if _, err := bomb.Start(t.Context(), "bomb() { bomb | bomb & }; bomb"); err != nil {
		t.Fatal(err)
	}
	most := int64(0)
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		most = max(most, d.cgroupFile(h, "pids", "pids.current", "pids.current"))
	}
	beside.unhurt()
	if most > maxPIDs {
		t.Errorf("%d tasks on the host, and %d are allowed", most, maxPIDs)
	}
	state := "goes on"
	if _, alive := d.handles()[bomb.ID]; !alive {
		o := d.outcome(bomb.ID)
		state = "ended: " + o.Reason + ", " + o.Detail
		if o.Reason != "crash" && o.Reason != "oom" || o.Detail == "" {
			t.Errorf("it ended without a reason: %+v", o)
		}
	}
	t.Logf("at most %d tasks; the bomb's sandbox %s", most, state)
	begin := time.Now()
	if err := bomb.Kill(t.Context()); err != nil && !errors.Is(err, client.ErrNotFound) {
		t.Error(err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("killing it took %s", took)
	}
	if left := d.cgroupFile(h, "pids", "pids.current", "pids.current"); left != -1 {
		t.Errorf("%d tasks are left", left)
	}
}

func TestFault14_MemoryBomb(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0")
	sbs := many(t, d.client(), 2)
	bomb, h := sbs[0], d.handles()[sbs[0].ID]
	beside := pressed(t, sbs[1])
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// The host's kernel ends the process, as on any Linux, or the whole sandbox.
	if _, err := bomb.Run(ctx, "echo before"); err != nil {
		t.Fatal(err)
	}
	d.logged(bomb.ID, "before\n")
	_, err := bomb.Run(ctx, `python3 -c 'x = []
while True: x.append(b"x" * (8 << 20))'`)
	var exit *client.ExitError
	if !errors.As(err, &exit) && !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("who waited for the bomb was told %v", err)
	}
	if exit != nil {
		t.Logf("the process was ended after %s (%v), the sandbox goes on", time.Since(begin).Round(time.Millisecond), err)
		// There is no process to end for this.
		_, err = bomb.Run(ctx, "cat /dev/zero > /dev/shm/bomb")
		if !errors.Is(err, client.ErrUnavailable) {
			t.Errorf("who waited for the second bomb was told %v", err)
		}
	}
	o := d.outcome(bomb.ID)
	if o.EndReason != "error" || o.Reason != "oom" || !strings.Contains(o.Detail, "memory") {
		t.Errorf("it ended: %+v", o)
	}
	t.Logf("out of memory after %s: %q", time.Since(begin).Round(time.Millisecond), o.Detail)
	beside.unhurt()
	a := d.preview(bomb.ID, 8000, "/")
	var body map[string]any
	if err := a.decode(&body); err != nil || a.Status != 502 ||
		fmt.Sprint(body) != fmt.Sprint(map[string]any{"sandboxId": bomb.ID, "message": "The sandbox was not found", "code": 502}) {
		t.Errorf("a preview afterwards: %s", a)
	}
	if a := d.call(d.note().APIKey, "GET", "/sandboxes/"+bomb.ID, nil); a.Status != 404 || !strings.Contains(a.Body, "oom") {
		t.Errorf("the record afterwards: %s", a)
	}
	if out := d.cli("logs", bomb.ID); out != "before\n" {
		t.Errorf("logs: %q", out)
	}
	var runs []struct{ ID, Reason, Detail string }
	if err := json.Unmarshal([]byte(d.cli("ps", "-a", "--json")), &runs); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, r := range runs {
		found = found || r.ID == bomb.ID && r.Reason == "oom" && r.Detail == o.Detail
	}
	if !found {
		t.Errorf("ps -a --json: %+v", runs)
	}
	if left := d.cgroupFile(h, "memory", "memory.usage_in_bytes", "memory.current"); left != -1 {
		t.Errorf("%d bytes are in use still", left)
	}
}

func TestFault15_DiskBomb(t *testing.T) {
	const sizeMiB = 256
	d := start(t, "--memory-mib", "1024", "--standby", "0", "--disk-mib", strconv.Itoa(sizeMiB))
	sbs := many(t, d.client(), 2)
	sb, neighbour := sbs[0], sbs[1]
	uppers, err := filepath.Glob(d.path("images", "uppers", string(d.handles()[sb.ID].Handle.Machine), "*", "*"))
	if err != nil || len(uppers) != 1 {
		t.Fatalf("writable layer: %v %v", uppers, err)
	}
	onHost := func() int64 {
		var st syscall.Stat_t
		if err := syscall.Stat(uppers[0], &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	full := func(what, line string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		res, err := sb.Run(ctx, line)
		var exit *client.ExitError
		if !errors.As(err, &exit) || !strings.Contains(res.Stderr+res.Stdout, "No space left on device") {
			t.Fatalf("%s: %v\n%+v", what, err, res)
		}
		if got := onHost(); got > (sizeMiB+8)<<20 {
			t.Errorf("%s: %d MiB on the host, and %d are allowed", what, got>>20, sizeMiB)
		}
	}

	full("a large file", "cat /dev/zero > /tmp/fill")
	err = sb.Files.WriteFile(t.Context(), "upload", make([]byte, 8<<20))
	if !errors.Is(err, client.ErrNoSpace) {
		t.Errorf("an upload to a full disk: %v", err)
	}
	a, err := d.ask(t.Context(), "POST", "/files?path=upload2", make([]byte, 8<<20),
		as("E2b-Sandbox-Id", sb.ID, "Content-Type", "application/octet-stream", "X-Access-Token", d.accessToken(sb.ID)))
	if err != nil || a.Status != 507 {
		t.Errorf("on the wire: %s %v", a, err)
	}
	if err := neighbour.Files.WriteFile(t.Context(), "f", make([]byte, 8<<20)); err != nil {
		t.Errorf("its neighbour's disk: %v", err)
	}
	if _, err := sb.Run(t.Context(), "rm -f /tmp/fill upload upload2"); err != nil {
		t.Errorf("rm on a full disk: %v", err)
	}
	if err := sb.Files.WriteFile(t.Context(), "upload", make([]byte, 64<<20)); err != nil {
		t.Errorf("after rm: %v", err)
	}

	// A hole is no data, whatever the file's size says.
	if res, err := sb.Run(t.Context(), "rm upload; truncate -s 1G sparse && echo end >> sparse && tail -c 4 sparse"); err != nil || res.Stdout != "end\n" {
		t.Errorf("a sparse file: %v %+v", err, res)
	}
	if got := onHost(); got > (sizeMiB+8)<<20 {
		t.Errorf("the sparse file takes %d MiB of the host", got>>20)
	}
	full("a sparse file that is filled", "cat /dev/zero 1<> sparse")
	if _, err := sb.Run(t.Context(), "rm sparse"); err != nil {
		t.Error(err)
	}
	begin := time.Now()
	full("many small files", `mkdir many; cd many; python3 -c '
for i in range(10**7):
    with open(str(i), "w") as f: f.write("x")'`)
	t.Logf("small files until the disk was full: %s", time.Since(begin).Round(time.Millisecond))
	if _, err := sb.Run(t.Context(), "rm -rf many && echo works > f && cat f"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// accessToken is the token that the SDKs hold.
func (d *daemon) accessToken(id string) string {
	d.t.Helper()
	a := d.call(d.note().APIKey, "GET", "/sandboxes/"+id, nil)
	var c created
	if err := a.decode(&c); err != nil || c.EnvdAccessToken == "" {
		d.t.Fatalf("%s %v", a, err)
	}
	return c.EnvdAccessToken
}

// slowly passes on what it is given in small bits with pauses, until it is told
// to hurry.
type slowly struct {
	n     atomic.Int64
	hurry atomic.Bool
}

func (s *slowly) Write(p []byte) (int, error) {
	s.n.Add(int64(len(p)))
	if !s.hurry.Load() {
		time.Sleep(20 * time.Millisecond)
	}
	return len(p), nil
}

// large is how much is moved: as much as NACRE_E2E_LARGE says, such as 10240 for ten
// GiB, which takes minutes and as much of the disk.
func large(t testing.TB, usual int64) int64 {
	t.Helper()
	text := os.Getenv("NACRE_E2E_LARGE")
	if text == "" {
		return usual
	}
	mib, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("NACRE_E2E_LARGE: %v", err)
	}
	return mib << 20
}

// TestFault19_Firehose: a process that writes without end and a client that reads
// slowly: the process waits, and nobody's memory fills.
func TestFault19_Firehose(t *testing.T) {
	size := large(t, 512<<20)
	d := start(t, "--memory-mib", "512", "--standby", "0")
	sb := many(t, d.client(), 1, client.Timeout(time.Hour))[0]
	if _, err := sb.Run(t.Context(), "head -c 64M /dev/zero"); err != nil { // warm
		t.Fatal(err)
	}
	h, pid := d.handles()[sb.ID], d.cmd.Process.Pid
	daemon, guest := rss(t, pid), d.cgroupFile(h, "memory", "memory.usage_in_bytes", "memory.current")
	most, mostGuest := daemon, guest
	look := func() {
		most = max(most, rss(t, pid))
		mostGuest = max(mostGuest, d.cgroupFile(h, "memory", "memory.usage_in_bytes", "memory.current"))
	}
	out := &slowly{}
	p, err := sb.Start(t.Context(), fmt.Sprintf("dd if=/dev/zero bs=1M count=%d status=none", size>>20), client.Stdout(out))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		look()
	}
	slow := out.n.Load()
	if slow > size/2 {
		t.Errorf("the writer was not held back: %d bytes came in slow motion", slow)
	}
	out.hurry.Store(true)
	begin := time.Now()
	for ended := false; !ended; {
		select {
		case <-p.Done():
			ended = true
		case <-time.After(50 * time.Millisecond):
			look()
		}
	}
	if _, err := p.Wait(); err != nil || out.n.Load() != size {
		t.Errorf("%d bytes of %d came: %v", out.n.Load(), size, err)
	}
	rate := float64(size-slow) / time.Since(begin).Seconds() / 1e6
	t.Logf("%.0f MB/s; server %d -> %d MiB, sandbox %d -> %d MiB", rate, daemon>>20, most>>20, guest>>20, mostGuest>>20)
	if most > daemon+96<<20 {
		t.Errorf("the server's memory grew from %d to %d MiB", daemon>>20, most>>20)
	}
	if mostGuest > guest+128<<20 {
		t.Errorf("the sandbox's memory grew from %d to %d MiB", guest>>20, mostGuest>>20)
	}
	logs := int64(0)
	files, err := filepath.Glob(d.path("node", "logs", sb.ID+"*"))
	for _, f := range files {
		if st, err := os.Stat(f); err == nil {
			logs += st.Size()
		}
	}
	if err != nil || logs > 32<<20 {
		t.Errorf("the log takes %d MiB: %v", logs>>20, err)
	}
}

// TestLargeFiles: a gigabyte up and down again passes through the server without
// staying in it.
func TestLargeFiles(t *testing.T) {
	size := large(t, 1<<30)
	d := start(t, "--memory-mib", "1024", "--standby", "0", "--disk-mib", fmt.Sprint(size>>20+1024))
	sb := many(t, d.client(), 1, client.Timeout(time.Hour))[0]
	if err := sb.Files.WriteFile(t.Context(), "warm", make([]byte, 32<<20)); err != nil {
		t.Fatal(err)
	}
	pid := d.cmd.Process.Pid
	before := rss(t, pid)
	most := before
	watch := func() func() {
		end, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				most = max(most, rss(t, pid))
				select {
				case <-end:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}()
		return func() { close(end); <-done }
	}
	stop := watch()
	begin := time.Now()
	info, err := sb.Files.Write(t.Context(), "large", io.LimitReader(pattern{}, size))
	up := time.Since(begin)
	if err != nil || info.Path == "" {
		t.Fatalf("upload: %+v %v", info, err)
	}
	begin = time.Now()
	r, err := sb.Files.Open(t.Context(), "large")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n, err := io.Copy(check{t, new(int64)}, r)
	down := time.Since(begin)
	stop()
	if n != size || err != nil {
		t.Errorf("%d bytes came back: %v", n, err)
	}
	t.Logf("up %.0f MB/s, down %.0f MB/s, server %d -> %d MiB", float64(size)/up.Seconds()/1e6, float64(size)/down.Seconds()/1e6, before>>20, most>>20)
	if most > before+96<<20 {
		t.Errorf("the server's memory grew from %d to %d MiB", before>>20, most>>20)
	}
}

// block is what pattern repeats: a prime length, so that nothing lines up.
var block = bytes.Repeat([]byte("0123456789abcdef-"), 4099)

type pattern struct{}

func (pattern) Read(p []byte) (int, error) { return copy(p, block[:min(len(p), len(block))]), nil }

// check compares nothing but the alphabet, which a lost or doubled piece keeps;
// the length tells of those.
type check struct {
	t *testing.T
	n *int64
}

func (c check) Write(p []byte) (int, error) {
	*c.n += int64(len(p))
	if bytes.IndexByte(p, 0) >= 0 {
		c.t.Errorf("zero bytes near %d", *c.n)
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}
