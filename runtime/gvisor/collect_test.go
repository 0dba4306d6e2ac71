package gvisor

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

func gcPercent() uint64 {
	s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// TestCollectionComesLate: until the first one, or for a moment.
func TestCollectionComesLate(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(usualPercent))
	runtime.GC() // what other tests had does not count
	var l late
	for name, end := range map[string]func(){"collected": runtime.GC, "over": func() { l.begin(0) }} {
		l.begin(time.Hour)
		if got := gcPercent(); got <= usualPercent {
			t.Errorf("%s: %d at first", name, got)
		}
		end()
		awaitPercent(t, func(p uint64) bool { return p == usualPercent })
	}
}

// TestCollectionOfMuch: who has much already may not use many times as much more.
func TestCollectionOfMuch(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(usualPercent))
	much := make([]byte, 3*lateRoom)
	runtime.GC()
	new(late).begin(time.Hour)
	runtime.KeepAlive(much)
	if got := gcPercent(); got != usualPercent {
		t.Errorf("%d", got)
	}
}

// TestSandboxIsToldOfItsSnapshot: a sandbox hears its pipe, and its collection is late then.
func TestSandboxIsToldOfItsSnapshot(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(usualPercent))
	runtime.GC()
	r, w, err := os.Pipe()
	check(t, err)
	var l late
	done := make(chan struct{})
	go func() { l.hear(r); close(done) }()
	_, err = w.Write([]byte{0})
	check(t, err)
	awaitPercent(t, func(p uint64) bool { return p > usualPercent })
	check(t, w.Close())
	<-done
	l.begin(0)

	m := start(t, newRuntime(t), newSpec(t))
	pipe, err := os.OpenFile(filepath.Join(m.st.Dir, noticeFile), os.O_RDWR|unix.O_NONBLOCK, 0)
	check(t, err)
	defer pipe.Close()
	unread := func() int {
		n, err := unix.IoctlGetInt(int(pipe.Fd()), unix.TIOCINQ)
		check(t, err)
		return n
	}
	check(t, os.NewSyscallError("kill", unix.Kill(m.st.PID, unix.SIGSTOP)))
	eventually(t, "the sandbox goes on", func() bool { return stopped(t, m.st.PID) })
	m.notice()
	if n := unread(); n != 1 {
		t.Errorf("the pipe holds %d bytes", n)
	}
	check(t, os.NewSyscallError("kill", unix.Kill(m.st.PID, unix.SIGCONT)))
	for until := time.Now().Add(10 * time.Second); unread() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the sandbox does not hear its pipe")
		}
	}
	_, err = m.Snapshot(t.Context(), t.TempDir(), nacre.SnapshotOptions{KeepRunning: true})
	check(t, err)
}

// stopped tells whether none of the process's threads runs: the signal only asks for it.
func stopped(t *testing.T, pid int) bool {
	t.Helper()
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	check(t, err)
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err == nil && !bytes.Contains(b, []byte(") T ")) {
			return false
		}
	}
	return len(stats) > 0
}

func awaitPercent(t *testing.T, ok func(uint64) bool) {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); !ok(gcPercent()); runtime.Gosched() {
		if time.Now().After(until) {
			t.Fatalf("%d at last", gcPercent())
		}
	}
}
