package guesttest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/image"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/node"
)

// keeper holds one of everything that a pause must not lose, and tells on demand
// whether it is there.
const keeper = `
import os, socket, sys, threading, random
block = random.randbytes(64 << 20)
total = hash(block)
deleted = open('/tmp/deleted', 'w+b'); deleted.write(b'still here'); deleted.flush(); os.unlink('/tmp/deleted')
r, w = os.pipe(); os.write(w, b'in the pipe')
a, b = socket.socketpair(socket.AF_UNIX); a.send(b'in the socket')
un = socket.socket(socket.AF_UNIX); un.bind('/tmp/unix'); un.listen()
tcp = socket.create_server(('0.0.0.0', 8000))
def serve():
    while True:
        c, _ = tcp.accept(); c.send(b'hello\n'); c.close()
threading.Thread(target=serve, daemon=True).start()
print('ready', flush=True)
for line in sys.stdin:
    peer = socket.socket(socket.AF_UNIX); peer.connect('/tmp/unix'); end, _ = un.accept(); end.send(b'anew')
    deleted.seek(0)
    print('kept', hash(block) == total, deleted.read(), os.read(r, 99), b.recv(99), peer.recv(99), 'over', flush=True)
    os.write(w, b'in the pipe'); a.send(b'in the socket')
`

const kept = "kept True b'still here' b'in the pipe' b'in the socket' b'anew' over"

// TestPauseKeeps: what a user has running is there after a pause, under another
// daemon and on another machine.
func TestPauseKeeps(t *testing.T) {
	w := newWorld(t)
	w.start()
	spec := w.spec()
	w.begin(spec)
	procs := w.guest(spec.Sandbox).Processes()
	launch := func(s nacre.ProcessSpec) nacre.ProcessStream {
		t.Helper()
		p, err := procs.Start(t.Context(), s)
		w.check(err)
		return p
	}
	keep := launch(nacre.ProcessSpec{Cmd: "/usr/bin/python3", Args: []string{"-uc", keeper}, Stdin: true, User: "root", Tag: "keeper"})
	w.until(keep, "ready")
	term := launch(nacre.ProcessSpec{Cmd: "/bin/bash", Args: []string{"--norc", "-i"}, Term: &nacre.TermSize{Cols: 80, Rows: 24}})
	asleep := time.Now()
	nap := launch(nacre.ProcessSpec{Cmd: "/bin/bash", Args: []string{"-c", "sleep 6; echo slept"}})
	_ = nap.Close()
	sleeps := func() bool { return time.Since(asleep) < 6*time.Second } // for sure; a busy host may be too slow to see it
	names := w.shell(spec.Sandbox, "hostname; cat /etc/hostname /etc/machine-id; echo $WHO; echo -n last > /root/last")

	begin := time.Now()
	m, err := w.n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true})
	w.check(err)
	t.Logf("paused in %v, stood still for %v, %.1f MiB", time.Since(begin), m.Stopped, float64(m.DiskBytes)/(1<<20))
	// Streams that were open end with a clear error, at once.
	for _, p := range []nacre.ProcessStream{keep, term} {
		ended := make(chan error, 1)
		go func() {
			for {
				if _, err := p.Next(); err != nil {
					ended <- err
					return
				}
			}
		}()
		select {
		case err := <-ended:
			if !nacre.IsCode(err, nacre.CodeUnavailable) {
				t.Errorf("an open stream ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("an open stream hangs")
		}
		_ = p.Close()
	}

	w.restart()
	spec.Snapshot = m.ID
	begin = time.Now()
	st := w.begin(spec)
	t.Logf("resumed in %v: %+v", time.Since(begin), st)
	if got := w.shell(spec.Sandbox, "hostname; cat /etc/hostname /etc/machine-id; echo $WHO; cat /root/last >&2"); got != names+"\nlast" {
		t.Errorf("it was %q and is %q", names, got)
	}
	procs = w.guest(spec.Sandbox).Processes()
	list, err := procs.List(t.Context())
	w.check(err)
	for _, p := range []nacre.ProcessStream{keep, term, nap} {
		if !slices.ContainsFunc(list, func(i nacre.ProcessInfo) bool { return i.PID == p.PID() }) && (p != nap || sleeps()) {
			t.Errorf("process %d is not in the list", p.PID())
		}
	}
	again, err := procs.Connect(t.Context(), keep.PID())
	w.check(err)
	defer again.Close()
	w.check(procs.Input(t.Context(), keep.PID(), []byte("?\n")))
	w.until(again, kept)
	shell, err := procs.Connect(t.Context(), term.PID())
	w.check(err)
	defer shell.Close()
	w.check(procs.Input(t.Context(), term.PID(), []byte("echo $((6*7))th\n")))
	w.until(shell, "42th")
	c, err := w.n.Dial(t.Context(), spec.Sandbox, 8000)
	w.check(err)
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "hello\n" {
		t.Errorf("the listening socket says %q, %v", line, err)
	}
	c.Close()
	w.clock(spec.Sandbox)
	slept, err := procs.Connect(t.Context(), nap.PID())
	inTime := sleeps()
	if err == nil {
		out, exit := w.drain(slept)
		if inTime && !strings.Contains(out, "slept") || exit == nil || exit.Code != 0 {
			t.Errorf("the sleep ended with %q, %+v", out, exit)
		}
	} else if inTime {
		t.Errorf("the sleep is gone after %v: %v", time.Since(asleep), err)
	}
	// Again and again.
	for range 3 {
		m, err = w.n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: true})
		w.check(err)
		old := spec.Snapshot
		spec.Snapshot = m.ID
		w.begin(spec)
		w.check(w.n.DeleteSnapshot(t.Context(), old))
		procs = w.guest(spec.Sandbox).Processes()
		again, err := procs.Connect(t.Context(), keep.PID())
		w.check(err)
		w.check(procs.Input(t.Context(), keep.PID(), []byte("?\n")))
		w.until(again, kept)
		again.Close()
	}
}

// clock compares the guest's wall clock with the host's.
func (w *world) clock(id nacre.SandboxID) {
	w.t.Helper()
	before := time.Now()
	text := w.shell(id, "date +%s.%N")
	after := time.Now()
	sec, err := strconv.ParseFloat(text, 64)
	w.check(err)
	at := time.UnixMicro(int64(sec * 1e6))
	if at.Before(before.Add(-50*time.Millisecond)) || at.After(after.Add(50*time.Millisecond)) {
		w.t.Errorf("the guest's clock says %v between %v and %v", at, before, after)
	}
}

// TestContract is the contract of nacre.Node on real machines.
func TestContract(t *testing.T) {
	w := newWorld(t)
	w.start()
	var under func(t *testing.T) nacretest.NodeUnderTest
	under = func(t *testing.T) nacretest.NodeUnderTest {
		return nacretest.NodeUnderTest{Node: w.n, Traffic: w.n, Telemetry: w.n, Spec: w.spec,
			Restart: func(t *testing.T) nacretest.NodeUnderTest { w.restart(); return under(t) }}
	}
	nacretest.TestNode(t, func(t *testing.T) nacretest.NodeUnderTest {
		w.end()
		list, err := w.n.Snapshots(t.Context())
		w.check(err)
		for _, m := range list {
			w.check(w.n.DeleteSnapshot(t.Context(), m.ID))
		}
		return under(t)
	})
}

// TestChunksOfGuests: of real guests too a second snapshot and a fork cost what
// changed, and a guest goes on from files that were put together again.
func TestChunksOfGuests(t *testing.T) {
	w := newWorld(t)
	w.tweak = func(o *image.ArtifactOptions) {
		o.Settle, o.Quiet, o.Rest, o.PlainMiB = time.Nanosecond, time.Nanosecond, 0.01, 1
	}
	w.start()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.check(w.arts.Run(ctx)) })
	defer wg.Wait()
	defer cancel()
	// chunked waits until the plain files are gone, and returns what the chunks grew by.
	var last int64
	chunked := func(what string, m nacre.SnapshotManifest) int64 {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(w.dir, "snapshots", "plain", string(m.ID))); os.IsNotExist(err) {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the plain files are not dropped")
			}
		}
		use, err := w.arts.Use(t.Context())
		w.check(err)
		added := use.Chunks - last
		last = use.Chunks
		t.Logf("%s: %.1f MiB, its chunks %.1f MiB more", what, float64(m.DiskBytes)/(1<<20), float64(added)/(1<<20))
		return added
	}
	spec := w.spec()
	w.begin(spec)
	p, err := w.guest(spec.Sandbox).Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "/usr/bin/python3", Args: []string{"-uc", keeper}, Stdin: true, User: "root"})
	w.check(err)
	w.until(p, "ready")
	keep := func(id nacre.SandboxID, pause bool) nacre.SnapshotManifest {
		t.Helper()
		m, err := w.n.Snapshot(t.Context(), id, nacre.SnapshotSpec{ID: nacre.NewSnapshotID(), Pause: pause})
		w.check(err)
		return m
	}
	whole := chunked("the first", keep(spec.Sandbox, false))
	w.shell(spec.Sandbox, "ls -lR /usr/share/doc > /root/list; python3 -c 'import json'")
	m := keep(spec.Sandbox, true)
	if second := chunked("the second", m); second > whole/5 {
		t.Errorf("the second snapshot cost %d bytes, the first %d", second, whole)
	}
	spec.Snapshot = m.ID
	begin := time.Now()
	w.begin(spec)
	t.Logf("put together and resumed in %v", time.Since(begin))
	procs := w.guest(spec.Sandbox).Processes()
	again, err := procs.Connect(t.Context(), p.PID())
	w.check(err)
	defer again.Close()
	w.check(procs.Input(t.Context(), p.PID(), []byte("?\n")))
	w.until(again, kept)
	for range 2 {
		fork := w.spec()
		fork.Snapshot = m.ID
		w.begin(fork)
		w.shell(fork.Sandbox, "echo $RANDOM > /root/own")
		if cost := chunked("a fork", keep(fork.Sandbox, true)); cost > whole/10 {
			t.Errorf("a fork cost %d bytes, the first %d", cost, whole)
		}
	}
}

// TestWarmStandbys: what a template's start command began runs in every sandbox that
// is handed over, which was restored before anybody asked for it.
func TestWarmStandbys(t *testing.T) {
	w := newWorld(t)
	w.standby = node.Standby{Count: 2, Quiet: time.Millisecond, Patience: time.Millisecond}
	n := w.start()
	first := w.spec()
	w.begin(first)
	p, err := w.guest(first.Sandbox).Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "/usr/bin/python3", Args: []string{"-uc", keeper}, Stdin: true, User: "root"})
	w.check(err)
	w.until(p, "ready")
	m, err := n.Snapshot(t.Context(), first.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID()})
	w.check(err)
	w.check(n.Stop(t.Context(), first.Sandbox))

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.check(n.Run(ctx)) })
	defer wg.Wait()
	defer cancel()
	spec := w.spec()
	spec.Snapshot = m.ID
	n.KeepReady(node.Shape{Build: spec.Build, Resources: spec.Resources, Snapshot: m.ID})
	names := map[string]bool{}
	for range 3 {
		for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			c, err := n.Capacity(t.Context())
			w.check(err)
			if c.Standbys > 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatal("there is no standby")
			}
		}
		spec.Sandbox = nacre.NewSandboxID()
		begin := time.Now()
		st := w.begin(spec)
		t.Logf("handed over in %v", time.Since(begin))
		if st.BootPath != nacre.BootStandby {
			t.Errorf("%+v", st)
		}
		procs := w.guest(spec.Sandbox).Processes()
		again, err := procs.Connect(t.Context(), p.PID())
		w.check(err)
		w.check(procs.Input(t.Context(), p.PID(), []byte("?\n")))
		w.until(again, kept)
		again.Close()
		names[w.shell(spec.Sandbox, "hostname; cat /etc/machine-id; echo $WHO")] = true
	}
	if len(names) != 3 {
		t.Errorf("they share names: %v", names)
	}
}

// TestFault23_ForksShareNothing: forks of a running sandbox have no random stream,
// name, machine-id, environment or log line in common.
func TestFault23_ForksShareNothing(t *testing.T) {
	w := newWorld(t)
	w.start()
	parent := w.spec()
	parent.Env = map[string]string{"SECRET": "the parent's"}
	w.begin(parent)
	ask := `hostname; cat /etc/machine-id; head -c16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; python3 -c 'import random,uuid,secrets; print(random.random()); print(uuid.uuid4()); print(secrets.token_hex())'`
	w.shell(parent.Sandbox, "echo from the parent")
	m, err := w.n.Snapshot(t.Context(), parent.Sandbox, nacre.SnapshotSpec{ID: nacre.NewSnapshotID()})
	w.check(err)
	t.Logf("stood still for %v, %.1f MiB", m.Stopped, float64(m.DiskBytes)/(1<<20))
	const forks = 10
	var mu sync.Mutex
	seen := map[string]string{}
	note := func(who, out string) {
		mu.Lock()
		defer mu.Unlock()
		for line := range strings.Lines(out) {
			if other, ok := seen[line]; ok {
				t.Errorf("%s and %s both have %q", who, other, line)
			}
			seen[line] = who
		}
	}
	note("the parent", w.shell(parent.Sandbox, ask))
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range forks {
		wg.Go(func() {
			s := w.spec()
			s.Snapshot, s.Env = m.ID, map[string]string{"MINE": "yes"}
			if _, err := w.n.Start(t.Context(), s); err != nil {
				t.Error(err)
				return
			}
			note(fmt.Sprint("fork ", i), w.shell(s.Sandbox, ask))
			if got := w.shell(s.Sandbox, "echo $MINE$SECRET"); got != "yes" {
				t.Errorf("the environment is %q", got)
			}
			w.clock(s.Sandbox)
			logs, err := w.n.Logs(context.Background(), s.Sandbox, nacre.LogQuery{Type: nacre.LogStdout})
			if err != nil {
				t.Error(err)
			}
			for _, e := range logs {
				if strings.Contains(e.Message, "from the parent") {
					t.Error("a fork's log has its parent's line")
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d forks and their first commands took %v", forks, time.Since(begin))
	w.shell(parent.Sandbox, "true")
}
