package gvisor

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What a kernel is made of stays, and so does what it is written with until it is
// written: a collection of the sandbox's own memory while it is loaded or saved finds
// little, and takes a quarter of the time of ten restores at once, and in a profile a
// fifth of a checkpoint's processor time. So the first one comes late then, and the
// second as ever.
const (
	usualPercent = 100
	lateRoom     = 32 << 20    // bytes that may be used until then
	lateTime     = time.Second // when a kernel is there or written for sure, or slow for other reasons
)

// late is this process's collection that comes late. The zero value is ready.
type late struct {
	mu   sync.Mutex
	over *time.Timer
}

// begin has the next collection come when lateRoom more was used, or after so long.
func (l *late) begin(after time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	// The runtime takes 4 MiB for the least that lives.
	live := max(s[0].Value.Uint64(), 4<<20)
	debug.SetGCPercent(max(usualPercent, int(lateRoom*100/live)))
	// It runs after the first collection.
	runtime.AddCleanup(new([64]byte), func(int) { debug.SetGCPercent(usualPercent) }, 0)
	if l.over != nil {
		l.over.Stop()
	}
	l.over = time.AfterFunc(after, func() {
		debug.SetGCPercent(usualPercent)
		debug.FreeOSMemory()
	})
}

// hear has the collection come late whenever the file, a pipe, says that a snapshot is
// about to be taken. It runs in the sandbox as long as that does.
func (l *late) hear(f *os.File) {
	var b [64]byte
	for {
		if _, err := f.Read(b[:]); err != nil {
			return
		}
		l.begin(lateTime)
	}
}

// giveNotice makes the pipe that tells the sandbox of snapshots. It has a name, for the
// daemon may be another one by then.
func (l *launch) giveNotice() error {
	path := filepath.Join(l.spec.StateDir, noticeFile)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	// For writing too, so that it does not end with a writer.
	f, err := l.open(path, os.O_RDWR|unix.O_NONBLOCK)
	if err == nil {
		l.orders.notice(f)
	}
	return err
}

// notice tells the sandbox that a snapshot is about to be taken. Without it the
// snapshot takes longer, so one that cannot be told, as an older release's, does not
// matter, and nobody waits for one that does not hear.
func (m *machine) notice() {
	path := filepath.Join(m.st.Dir, noticeFile)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte{0})
		_ = unix.Close(fd)
	}
	if err != nil && err != unix.ENOENT {
		m.r.cfg.Log.Debug("a sandbox was not told of its snapshot", "machine", m.ID(), "error", err)
	}
}
