package node_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
)

// TestWire4_12_MetricsAppearSoon: within 15 s of the start, and then every 5 s.
func TestWire4_12_MetricsAppearSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		spec, _ := w.begin()
		time.Sleep(3 * time.Second)
		got, err := w.n.Metrics(t.Context(), spec.Sandbox, time.Time{}, time.Time{})
		if err != nil || len(got) == 0 {
			t.Fatalf("after 3 s: %v, %v", got, err)
		}
		m := got[0]
		if m.CPUCount != 1 || m.MemTotal != 256<<20 || m.MemUsed <= 0 || m.DiskTotal != 64<<20 || m.DiskUsed <= 0 || m.CPUUsedPct < 9 || m.CPUUsedPct > 11 {
			t.Fatalf("sample: %+v", m)
		}
		time.Sleep(time.Minute)
		got, _ = w.n.Metrics(t.Context(), spec.Sandbox, time.Time{}, time.Time{})
		if len(got) < 12 || len(got) > 14 {
			t.Fatalf("%d samples after a minute", len(got))
		}
		from, to := got[3].Time, got[5].Time
		part, _ := w.n.Metrics(t.Context(), spec.Sandbox, from, to)
		if len(part) != 3 || !part[0].Time.Equal(from) || !part[2].Time.Equal(to) {
			t.Fatalf("between %s and %s: %+v", from, to, part)
		}
		time.Sleep(2 * time.Hour)
		got, _ = w.n.Metrics(t.Context(), spec.Sandbox, time.Time{}, time.Time{})
		if len(got) != 720 {
			t.Fatalf("%d samples are kept, want an hour's 720", len(got))
		}
		for i := 1; i < len(got); i++ {
			if !got[i].Time.After(got[i-1].Time) {
				t.Fatal("samples are out of order")
			}
		}
		if err := w.n.Stop(t.Context(), spec.Sandbox); err != nil {
			t.Fatal(err)
		}
		if got, _ = w.n.Metrics(t.Context(), spec.Sandbox, time.Time{}, time.Time{}); len(got) == 0 {
			t.Fatal("an ended sandbox has no metrics")
		}
	})
}

// TestASilentGuestDelaysNobodysMetrics: its own figures come from the host.
func TestASilentGuestDelaysNobodysMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		bad, st := w.begin()
		good, _ := w.begin()
		w.host.SetHook(func(op string, id nacre.MachineID) error {
			if op == "agent.stats" && id == st.Machine {
				time.Sleep(2 * time.Second)
				return nacre.Errorf(nacre.CodeUnavailable, "silent")
			}
			return nil
		})
		time.Sleep(31 * time.Second)
		for _, s := range []nacre.StartSpec{bad, good} {
			got, _ := w.n.Metrics(t.Context(), s.Sandbox, time.Time{}, time.Time{})
			if len(got) < 5 || got[0].MemUsed <= 0 {
				t.Fatalf("%d samples: %+v", len(got), got)
			}
		}
	})
}

func (w *world) logOf(id nacre.SandboxID, q nacre.LogQuery) []nacre.LogEntry {
	w.tb.Helper()
	l, err := w.n.Logs(w.tb.Context(), id, q)
	if err != nil {
		w.tb.Fatal(err)
	}
	return l
}

func (w *world) logFile(id nacre.SandboxID) string {
	return filepath.Join(w.dir, "node", "logs", string(id)+".ndjson")
}

// TestLogAcrossARestart: nothing is lost and nothing told twice, though the daemon
// was killed in the middle of a line.
func TestLogAcrossARestart(t *testing.T) {
	w := newWorld(t)
	w.start()
	spec, st := w.begin()
	g := w.host.Machine(st.Machine).Guest
	for i := range 5 {
		g.Log(nacre.LogStdout, fmt.Sprint("line ", i), nil)
	}
	w.eventually("five lines", func() bool { return len(w.logOf(spec.Sandbox, nacre.LogQuery{})) == 5 })
	w.fake.Kill()
	w.stop()
	path := w.logFile(spec.Sandbox)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()-7); err != nil {
		t.Fatal(err)
	}
	g.Log(nacre.LogStdout, "line 5", nil) // while nobody listened
	w.start()
	w.eventually("six lines", func() bool { return len(w.logOf(spec.Sandbox, nacre.LogQuery{})) == 6 })
	for i, e := range w.logOf(spec.Sandbox, nacre.LogQuery{}) {
		if e.Seq != int64(i+1) || e.Message != fmt.Sprint("line ", i) {
			t.Fatalf("entry %d: %+v", i, e)
		}
	}
}

// TestLogIsBounded: a chatty guest keeps at most two files, and the newest lines.
func TestLogIsBounded(t *testing.T) {
	w := newWorld(t)
	w.tweak = func(c *node.Config) { c.LogBytes = 10_000 }
	w.start()
	spec, st := w.begin()
	g := w.host.Machine(st.Machine).Guest
	const lines = 1000
	for i := range lines {
		g.Log(nacre.LogStdout, fmt.Sprintf("line %d %s", i, strings.Repeat("x", 100)), nil)
	}
	w.eventually("the last line", func() bool {
		l := w.logOf(spec.Sandbox, nacre.LogQuery{Backward: true, Limit: 1})
		return len(l) == 1 && l[0].Seq == lines
	})
	files, _ := filepath.Glob(filepath.Join(w.dir, "node", "logs", "*"))
	if len(files) != 2 {
		t.Fatalf("files: %v", files)
	}
	for _, f := range files {
		if info, _ := os.Stat(f); info.Size() > 10_000 {
			t.Fatalf("%s has %d bytes", f, info.Size())
		}
	}
	all := w.logOf(spec.Sandbox, nacre.LogQuery{})
	for i := 1; i < len(all); i++ {
		if all[i].Seq != all[i-1].Seq+1 {
			t.Fatal("there is a gap")
		}
	}
	back := w.logOf(spec.Sandbox, nacre.LogQuery{Backward: true})
	if len(back) != len(all) || back[0].Seq != all[len(all)-1].Seq {
		t.Fatalf("backward %d, forward %d", len(back), len(all))
	}
}

// TestLogTimesOfALyingGuest: times are held to the host's clock and grow, so that a
// cursor by time never loses an entry.
func TestLogTimesOfALyingGuest(t *testing.T) {
	w := newWorld(t)
	w.start()
	spec, st := w.begin()
	g := w.host.Machine(st.Machine).Guest
	for _, at := range []time.Time{time.Unix(0, 0), time.Now().Add(1000 * time.Hour), time.Unix(1<<40, 0), {}, time.Now()} {
		g.LogAt(at, nacre.LogStdout, "tick", nil)
	}
	w.eventually("five lines", func() bool { return len(w.logOf(spec.Sandbox, nacre.LogQuery{})) == 5 })
	all := w.logOf(spec.Sandbox, nacre.LogQuery{})
	for i, e := range all {
		if e.Time.After(time.Now()) || (i > 0 && !e.Time.After(all[i-1].Time)) {
			t.Fatalf("entry %d: %s", i, e.Time)
		}
		if got := w.logOf(spec.Sandbox, nacre.LogQuery{After: e.Time}); len(got) != len(all)-i-1 {
			t.Fatalf("%d entries after entry %d", len(got), i)
		}
	}
}

// TestFault11_LogOnAFullDisk: lines that could not be written are written when
// there is room again, without a restart.
func TestFault11_LogOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small file system needs root to be mounted")
	}
	w := newWorld(t)
	logs := filepath.Join(w.dir, "node", "logs")
	if err := os.MkdirAll(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", logs, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		w.stop()
		if err := syscall.Unmount(logs, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	hog := filepath.Join(logs, "hog")
	w.start()
	spec, st := w.begin()
	if err := os.WriteFile(hog, make([]byte, 48<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	g := w.host.Machine(st.Machine).Guest
	for range 40 {
		g.Log(nacre.LogStdout, strings.Repeat("y", 1000), nil)
	}
	w.eventually("the disk is full", func() bool { return strings.Contains(w.logged(), "a sandbox's log is interrupted") })
	if _, err := w.n.Start(t.Context(), w.spec()); err != nil {
		t.Fatalf("a full log disk hurts creates: %v", err)
	}
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	w.eventually("all lines are there", func() bool { return len(w.logOf(spec.Sandbox, nacre.LogQuery{})) == 40 })
	for i, e := range w.logOf(spec.Sandbox, nacre.LogQuery{}) {
		if e.Seq != int64(i+1) || len(e.Message) != 1000 {
			t.Fatalf("entry %d: seq %d, %d bytes", i, e.Seq, len(e.Message))
		}
	}
}

// TestOldLogsAreDeleted: by age, and not those of running sandboxes.
func TestOldLogsAreDeleted(t *testing.T) {
	w := newWorld(t)
	w.start()
	running, st := w.begin()
	gone, _ := w.begin()
	w.host.Machine(st.Machine).Guest.Log(nacre.LogStdout, "kept", nil)
	w.eventually("a line", func() bool { return len(w.logOf(running.Sandbox, nacre.LogQuery{})) == 1 })
	if err := w.n.Stop(t.Context(), gone.Sandbox); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.logFile(gone.Sandbox), []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-8 * 24 * time.Hour)
	for _, id := range []nacre.SandboxID{running.Sandbox, gone.Sandbox} {
		if err := os.Chtimes(w.logFile(id), old, old); err != nil {
			t.Fatal(err)
		}
	}
	w.restart()
	w.eventually("the old log is deleted", func() bool { _, err := os.Stat(w.logFile(gone.Sandbox)); return os.IsNotExist(err) })
	if _, err := os.Stat(w.logFile(running.Sandbox)); err != nil {
		t.Fatal("the log of a running sandbox was deleted")
	}
}

// lateLog is an agent whose log comes late, or never ends, and to nobody but who asks
// for what there is so far.
type lateLog struct {
	nacre.Agent
	late    time.Duration
	endless *atomic.Int64 // entries that were taken; nil: it ends
}

func (a lateLog) Logs(ctx context.Context, _ int64, _ func(nacre.LogEntry) error) error {
	<-ctx.Done()
	return ctx.Err()
}

func (a lateLog) LogsSoFar(ctx context.Context, after int64, fn func(nacre.LogEntry) error) error {
	select {
	case <-time.After(a.late):
	case <-ctx.Done():
		return ctx.Err()
	}
	if a.endless == nil {
		return a.Agent.LogsSoFar(ctx, after, fn)
	}
	for {
		n := a.endless.Add(1)
		if err := fn(nacre.LogEntry{Seq: after + n, Type: nacre.LogStdout, Message: strings.Repeat("x", 16<<10)}); err != nil {
			return err
		}
	}
}

// TestLastLinesAreAwaited: what a sandbox wrote is in its log when it has been stopped,
// though its guest is slow to say it; one that says nothing delays its end by two
// seconds, its pause by one, and one that says more and more no longer than it takes to
// write a few megabytes of it.
func TestLastLinesAreAwaited(t *testing.T) {
	for _, c := range []struct {
		name            string
		late            time.Duration
		endless, pauses bool
		lines           int // -1: some
		within          time.Duration
	}{
		{"slow", 1500 * time.Millisecond, false, false, 1, 2 * time.Second},
		{"silent", time.Hour, false, false, 0, 2100 * time.Millisecond},
		{"slow, paused", 700 * time.Millisecond, false, true, 1, time.Second},
		{"silent, paused", time.Hour, false, true, 0, 1100 * time.Millisecond},
		{"endless", 0, true, false, -1, 2100 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				var said *atomic.Int64
				if c.endless {
					said = new(atomic.Int64)
				}
				w.tweak = func(cfg *node.Config) {
					inner := cfg.NewAgent
					cfg.NewAgent = func(dial func(context.Context, int) (net.Conn, error), host, access string) nacre.Agent {
						return lateLog{inner(dial, host, access), c.late, said}
					}
				}
				w.start()
				defer w.stop()
				spec, st := w.begin()
				w.host.Machine(st.Machine).Guest.Log(nacre.LogStdout, "last words", nil)
				begin := time.Now()
				var err error
				if c.pauses {
					_, err = w.n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true})
				} else {
					err = w.n.Stop(t.Context(), spec.Sandbox)
				}
				if took := time.Since(begin); err != nil || took > c.within {
					t.Errorf("%v after %s", err, took)
				}
				if n := len(w.logOf(spec.Sandbox, nacre.LogQuery{})); n != c.lines && (c.lines >= 0 || n == 0) {
					t.Errorf("%d lines are there, want %d", n, c.lines)
				}
				if said != nil && said.Load() > 1000 {
					t.Errorf("%d entries were taken", said.Load())
				}
			})
		})
	}
}
