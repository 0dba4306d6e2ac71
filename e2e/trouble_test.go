package e2e

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

// TestFault05_HangingMachines: a sandbox whose process stands still can be ended,
// and a standby that does is never handed out.
func TestFault05_HangingMachines(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "2")
	inst := d.instance()
	d.settled(inst, 2)
	c := d.client()
	sbs := many(t, c, 2)
	stopped, neighbour := sbs[0], sbs[1]
	d.settled(inst, 2)
	pid := d.handles()[stopped.ID].Handle.State.PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for _, standby := range d.standbys() {
		if err := syscall.Kill(standby, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	sb, err := c.Create(t.Context())
	if err != nil {
		t.Fatalf("a create while the standbys hang: %v", err)
	}
	if _, err := sb.Run(t.Context(), "true"); err != nil {
		t.Error(err)
	}
	t.Logf("a create while both standbys hang took %s", time.Since(begin).Round(time.Millisecond))
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if _, err := neighbour.Run(t.Context(), "true"); err != nil {
		t.Errorf("the one beside: %v", err)
	}
	inTime(t, 5*time.Second, "a sandbox that stands still ended", func() time.Duration {
		begin := time.Now()
		if err := stopped.Kill(t.Context()); err != nil {
			t.Errorf("ending a sandbox that stands still: %v", err)
		}
		took := time.Since(begin)
		if err := syscall.Kill(pid, 0); err == nil {
			t.Error("its process is there")
		}
		return took
	})
	d.settled(inst, 2) // others stand by
}

// TestFault05_HangingAgent: who asks whether a sandbox runs that does not answer hears
// so within seconds. One whose agent hangs is paused all the same; a resume of it tells
// in time that it hangs still, and it stays paused until it is resumed with its files.
func TestFault05_HangingAgent(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "0")
	c := d.client()
	sb := many(t, c, 1)[0]
	if err := sb.Files.WriteFile(t.Context(), "f", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	health := func() (answer, error) {
		return d.ask(t.Context(), http.MethodGet, "/health", nil, as("E2b-Sandbox-Id", sb.ID, "E2b-Sandbox-Port", "49983"))
	}
	answers := func(want int) {
		t.Helper()
		inTime(t, 5*time.Second, "its health is told", func() time.Duration {
			begin := time.Now()
			a, err := health()
			if err != nil || a.Status != want {
				t.Errorf("its health: %s %v, want %d", a, err, want)
			}
			return time.Since(begin)
		})
		up, err := sb.IsRunning(t.Context())
		if (err == nil) != (want == 204) || up != (want == 204) {
			t.Errorf("is it running: %v %v", up, err)
		}
	}
	answers(204)
	pid := d.handles()[sb.ID].Handle.State.PID
	for _, again := range []func(){func() {}, func() { d.kill9(); d.up() }} { // over a connection that is kept, and a new one
		again()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		answers(504)
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		answers(204)
	}

	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan struct{})
	go func() {
		defer close(told)
		_, _ = sb.Run(ctx, "kill -STOP 1", client.User("root")) // nobody is left to say that it ended
	}()
	d.eventually(patience, func() error {
		if a, err := health(); err != nil || a.Status != 504 {
			return fmt.Errorf("it goes on: %s %v", a, err)
		}
		return nil
	})
	cancel()
	<-told
	answers(504)
	if err := sb.Pause(t.Context()); err != nil {
		t.Fatalf("a pause: %v", err)
	}
	begin := time.Now()
	err := sb.Resume(t.Context())
	took := time.Since(begin) // a guest has half a minute to answer
	if err == nil || !strings.Contains(err.Error(), "agent did not answer") || took > 45*time.Second {
		t.Errorf("a resume: %v after %s", err, took)
	}
	t.Logf("a resume of one that hangs was given up after %s", took.Round(time.Millisecond))
	if info, err := sb.Info(t.Context()); err != nil || info.State != nacre.StatePaused {
		t.Errorf("after it: %+v %v", info, err)
	}
	if err := sb.Resume(t.Context(), client.Reboot()); err != nil {
		t.Fatalf("a resume with its files: %v", err)
	}
	answers(204)
	if text, err := sb.Files.ReadFile(t.Context(), "f"); err != nil || string(text) != "kept" {
		t.Errorf("its file: %q %v", text, err)
	}
	d.agree()
}

// standbys are the processes of the machines that wait for a sandbox.
func (d *daemon) standbys() []int {
	d.t.Helper()
	taken := map[int]bool{}
	for _, h := range d.handles() {
		taken[h.Handle.State.PID] = true
	}
	var out []int
	for _, f := range d.machines(d.instance()) {
		if h, err := readHandle(f); err == nil && !taken[h.Handle.State.PID] {
			out = append(out, h.Handle.State.PID)
		}
	}
	return out
}

// TestFault09_StoreIsLocked: while nobody can write records, commands, files and
// previews flow; what needs a record is refused with a reason, and works later.
func TestFault09_StoreIsLocked(t *testing.T) {
	d := start(t, "--memory-mib", "256", "--standby", "1")
	c := d.client()
	sb := many(t, c, 1)[0]
	d.serveInside(sb, 8000, "preview")
	use := func(i int) time.Duration {
		t.Helper()
		begin := time.Now()
		if _, err := sb.Run(t.Context(), "true"); err != nil {
			t.Fatalf("a command: %v", err)
		}
		if err := sb.Files.WriteFile(t.Context(), "f", []byte(strconv.Itoa(i))); err != nil {
			t.Fatalf("a file: %v", err)
		}
		if a := d.preview(sb.ID, 8000, "/"); a.Status != 200 {
			t.Fatalf("a preview: %s", a)
		}
		return time.Since(begin)
	}
	db, err := sql.Open("sqlite", "file:"+d.path("nacre.db")+"?_txlock=exclusive")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec("UPDATE teams SET name = name"); err != nil {
		t.Fatal(err)
	}

	refused := make(chan error, 1)
	begin := time.Now()
	go func() {
		_, err := c.Create(t.Context())
		refused <- err
	}()
	for i := 0; len(refused) == 0; i++ {
		if took := use(i); took > 5*time.Second {
			t.Errorf("a command, a file and a preview took %s", took)
		}
		if time.Since(begin) > 45*time.Second {
			t.Fatal("a create is neither done nor refused")
		}
	}
	if err := <-refused; !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("a create: %v", err)
	}
	t.Logf("refused after %s", time.Since(begin).Round(time.Millisecond))
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context()); err != nil {
		t.Errorf("a create afterwards: %v", err)
	}
	d.agree()
}

// TestFault18_NoMoreFiles: a server that ran into its limit of open files says
// so, goes on, and is well when there are some again.
func TestFault18_NoMoreFiles(t *testing.T) {
	d := prepared(t, "--memory-mib", "256", "--standby", "0")
	d.ownBinary()
	d.up()
	c := d.client()
	sb := many(t, c, 1)[0]
	pid := d.cmd.Process.Pid
	inst := d.instance()
	before := d.settled(inst, 0)
	now := openFiles(t, pid)
	setLimit := func(soft int) {
		t.Helper()
		if err := command("", "prlimit", "--pid", strconv.Itoa(pid), fmt.Sprintf("--nofile=%d:", soft)); err != nil {
			t.Fatal(err)
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	was := 0
	for line := range strings.Lines(string(limits)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			was, _ = strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	var fitted []*client.Sandbox // what was open for a moment when it was counted made room for them
	for refused, limit := 0, now+8; refused < 4; {
		if limit < now/2 {
			t.Fatalf("creates go on with %d files", limit)
		}
		setLimit(limit)
		sb, err := c.Create(t.Context())
		if err == nil {
			fitted, limit = append(fitted, sb), limit-2
			continue
		}
		refused++
		if !errors.Is(err, client.ErrUnavailable) || !strings.Contains(err.Error(), "files") {
			t.Errorf("a create without free descriptors: %v", err)
		}
	}
	setLimit(was)
	for _, sb := range fitted {
		if err := sb.Kill(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if _, err := sb.Run(t.Context(), "true"); err != nil {
		t.Errorf("what ran before: %v", err)
	}
	again, err := c.Create(t.Context())
	if err != nil {
		t.Fatalf("a create with files again: %v", err)
	}
	if err := again.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	d.eventually(patience, func() error {
		if now := d.settled(inst, 0); now.String() != before.String() {
			return fmt.Errorf("left behind:\nbefore %s\nafter  %s", before, now)
		}
		return nil
	})
}
