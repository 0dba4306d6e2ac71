package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"github.com/nacrehq/nacre"
	pb "github.com/nacrehq/nacre/agent/envd/filesystempb"
	"golang.org/x/sys/unix"
)

const (
	// watchMask is what clients can be told of.
	watchMask = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MODIFY | unix.IN_DELETE | unix.IN_MOVED_FROM |
		unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	// What a watcher keeps for its reader, and how many directories it follows.
	maxWatchEvents = 16 << 10
	maxWatchDirs   = 8 << 10
)

// watcher follows one directory, or the tree below it, by inotify. Its own
// goroutine reads the kernel's queue as it fills; drain does so at once.
type watcher struct {
	recursive bool
	more      chan struct{} // holds a token when there is something to take
	f         *os.File
	done      chan struct{}

	mu     sync.Mutex
	fd     int // of f, valid until closed
	closed bool
	dirs   map[int32]string // watch descriptor to path relative to the root, "" the root
	root   string
	queue  []*pb.FilesystemEvent
	lost   int
	buf    []byte
	// made holds the names that a scan of a new directory found in this drain: the
	// kernel may report them too.
	made map[madeName]bool
	// movedFrom is a directory that left its name; where it went follows, or nothing.
	movedFrom map[uint32]string
}

type madeName struct {
	wd   int32
	name string
}

// newWatcher watches from its return on.
func newWatcher(root string, recursive bool) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, nacre.Wrap(nacre.CodeExhausted, err, "the guest has no room for another watcher: "+err.Error())
	}
	w := &watcher{
		recursive: recursive, root: root, fd: fd,
		more: make(chan struct{}, 1), done: make(chan struct{}),
		f: os.NewFile(uintptr(fd), "inotify"), dirs: map[int32]string{},
		buf: make([]byte, 16<<10),
	}
	w.mu.Lock()
	err = w.add("", nil)
	w.mu.Unlock()
	if err != nil {
		_ = w.f.Close()
		return nil, err
	}
	go w.run()
	return w, nil
}

// run drains whenever the kernel has something.
func (w *watcher) run() {
	defer close(w.done)
	rc, err := w.f.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Read(func(uintptr) bool {
		w.drain()
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.closed
	})
}

// close ends the watcher. Only its owner calls it, once.
func (w *watcher) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	_ = w.f.Close()
	<-w.done
}

// take returns and forgets what happened, and how much of it was lost.
func (w *watcher) take() ([]*pb.FilesystemEvent, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	events, lost := w.queue, w.lost
	w.queue, w.lost = nil, 0
	return events, lost
}

func (w *watcher) lostAgain(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost += n
}

// drain takes over everything that the kernel has queued, without waiting.
func (w *watcher) drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	before, lostBefore := len(w.queue), w.lost
	for {
		n, err := unix.Read(w.fd, w.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			break
		}
		w.parse(w.buf[:n])
	}
	// The queue is empty: nothing about what a scan found can come any more, and
	// a directory that only left went out of the tree.
	w.made = nil
	for _, rel := range w.movedFrom {
		w.forget(rel)
	}
	w.movedFrom = nil
	if len(w.queue) > before || w.lost > lostBefore {
		select {
		case w.more <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) parse(b []byte) {
	for len(b) >= unix.SizeofInotifyEvent {
		raw := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
		size := unix.SizeofInotifyEvent + int(raw.Len)
		if size > len(b) {
			return
		}
		name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:size]), "\x00")
		w.event(raw.Wd, raw.Mask, raw.Cookie, name)
		b = b[size:]
	}
}

func (w *watcher) event(wd int32, mask, cookie uint32, name string) {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		w.lost++
		w.rescan()
		return
	}
	dir, known := w.dirs[wd]
	if mask&unix.IN_IGNORED != 0 {
		delete(w.dirs, wd)
		return
	}
	if !known {
		return
	}
	if name == "" {
		w.selfEvent(wd, mask)
		return
	}
	rel := filepath.Join(dir, name)
	isDir := mask&unix.IN_ISDIR != 0
	switch {
	case mask&unix.IN_CREATE != 0:
		if w.made[madeName{wd, name}] {
			delete(w.made, madeName{wd, name})
			return
		}
		w.push(rel, pb.EventType_EVENT_TYPE_CREATE)
		if isDir && w.recursive {
			w.follow(rel, true)
		}
	case mask&unix.IN_MOVED_TO != 0:
		w.push(rel, pb.EventType_EVENT_TYPE_CREATE)
		if isDir && w.recursive {
			if from, ok := w.movedFrom[cookie]; ok {
				delete(w.movedFrom, cookie)
				w.renamed(from, rel)
			} else {
				w.follow(rel, false)
			}
		}
	case mask&unix.IN_MODIFY != 0:
		w.push(rel, pb.EventType_EVENT_TYPE_WRITE)
	case mask&unix.IN_DELETE != 0:
		delete(w.made, madeName{wd, name})
		w.push(rel, pb.EventType_EVENT_TYPE_REMOVE)
	case mask&unix.IN_MOVED_FROM != 0:
		delete(w.made, madeName{wd, name})
		w.push(rel, pb.EventType_EVENT_TYPE_RENAME)
		if isDir && w.recursive {
			if w.movedFrom == nil {
				w.movedFrom = map[uint32]string{}
			}
			w.movedFrom[cookie] = rel
		}
	case mask&unix.IN_ATTRIB != 0:
		w.push(rel, pb.EventType_EVENT_TYPE_CHMOD)
	}
}

// selfEvent is about a watched directory itself. Its parent tells of all but the root.
func (w *watcher) selfEvent(wd int32, mask uint32) {
	if wd != w.rootWD() {
		return
	}
	switch {
	case mask&unix.IN_DELETE_SELF != 0:
		w.push(".", pb.EventType_EVENT_TYPE_REMOVE)
	case mask&unix.IN_MOVE_SELF != 0:
		w.push(".", pb.EventType_EVENT_TYPE_RENAME)
	}
}

func (w *watcher) push(rel string, t pb.EventType) {
	if len(w.queue) >= maxWatchEvents {
		w.lost++
		return
	}
	w.queue = append(w.queue, &pb.FilesystemEvent{Name: validText(rel), Type: t})
}

func (w *watcher) rootWD() int32 {
	for wd, rel := range w.dirs {
		if rel == "" {
			return wd
		}
	}
	return -1
}

// follow watches a directory that appeared, and all below it. With tell, what
// was made in it before the watch is reported as created.
func (w *watcher) follow(rel string, tell bool) {
	var found func(wd int32, name, rel string)
	if tell {
		found = func(wd int32, name, rel string) {
			if w.made == nil {
				w.made = map[madeName]bool{}
			}
			w.made[madeName{wd, name}] = true
			w.push(rel, pb.EventType_EVENT_TYPE_CREATE)
		}
	}
	// One that went away again is no fault.
	if err := w.add(rel, found); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
		w.lost++
	}
}

// add watches a directory and, in a recursive watcher, those below it. found is
// called for each entry once its directory is watched.
func (w *watcher) add(rel string, found func(wd int32, name, rel string)) error {
	if len(w.dirs) >= maxWatchDirs {
		return nacre.Errorf(nacre.CodeExhausted, "more than %d directories to watch: watch a smaller tree", maxWatchDirs)
	}
	path := filepath.Join(w.root, rel)
	mask := uint32(watchMask | unix.IN_ONLYDIR)
	if rel != "" {
		mask |= unix.IN_DONT_FOLLOW
	}
	wd, err := unix.InotifyAddWatch(w.fd, path, mask)
	if err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM) {
			return nacre.Wrap(nacre.CodeExhausted, err, "the guest has no room for another watch")
		}
		return fileError(err, path)
	}
	w.dirs[int32(wd)] = rel
	if !w.recursive {
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fileError(err, path)
	}
	for _, e := range entries {
		sub := filepath.Join(rel, e.Name())
		if found != nil {
			found(int32(wd), e.Name(), sub)
		}
		if !e.IsDir() {
			continue
		}
		if err := w.add(sub, found); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) && !nacre.IsCode(err, nacre.CodeInvalid) {
			return err
		}
	}
	return nil
}

// below tells whether rel is dir or lies in it.
func below(rel, dir string) bool { return rel == dir || strings.HasPrefix(rel, dir+"/") }

// renamed moves the paths of a directory that moved within the tree: its watches
// stayed with it.
func (w *watcher) renamed(from, to string) {
	for wd, rel := range w.dirs {
		if below(rel, from) {
			w.dirs[wd] = to + rel[len(from):]
		}
	}
}

// forget stops watching a directory that left the tree.
func (w *watcher) forget(dir string) {
	for wd, rel := range w.dirs {
		if below(rel, dir) {
			_, _ = unix.InotifyRmWatch(w.fd, uint32(wd))
			delete(w.dirs, wd)
		}
	}
}

// rescan watches what was made while the kernel's queue was full.
func (w *watcher) rescan() {
	if w.recursive {
		w.follow("", false)
	}
}
