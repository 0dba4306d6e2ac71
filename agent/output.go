package agent

import (
	"errors"
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/nacrehq/nacre"
	"golang.org/x/sys/unix"
)

// How output is cut into events. Each event costs both ends far more than its
// bytes: a client in Python copies all that it has so far. So what comes fast is
// read in large steps, while the first of it, and all that comes slowly, goes out
// at once.
const (
	firstChunk  = 16 << 10
	outputChunk = 256 << 10            // the largest event, and what a pipe holds
	quickRead   = time.Millisecond     // reads closer than this are one burst
	burstBytes  = 64 << 10             // of a burst go out at once
	burstPause  = 2 * time.Millisecond // then the pipe fills for so long
)

type streamKind int

const (
	streamStdout streamKind = iota
	streamStderr
	streamTerm
)

// chunk is output on its way to one subscriber. data is valid until done.
type chunk struct {
	kind streamKind
	data []byte
	wg   *sync.WaitGroup
}

func (c chunk) done() { c.wg.Done() }

// subscriber receives a process's output. Whoever takes a chunk calls its done;
// gone is closed when nobody will take one any more.
type subscriber struct {
	ch   chan chunk
	gone chan struct{}
	kept []keptChunk // what was said before
}

func newSubscriber() *subscriber {
	return &subscriber{ch: make(chan chunk), gone: make(chan struct{})}
}

// broadcast hands output to all subscribers and waits for the slowest: memory
// stays flat and the process itself is slowed, by its full pipe.
type broadcast struct {
	mu   sync.Mutex
	subs []*subscriber
	tail *outputTail // nil: nothing is kept
}

func (b *broadcast) add(s *subscriber) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subs = append(b.subs, s)
}

// addAfter adds a subscriber that has seen so much, and returns what it gets of the
// rest; ok is false where nothing is kept, and then it is not added.
func (b *broadcast) addAfter(s *subscriber, seen nacre.OutputSeen) (k nacre.KeptOutput, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tail == nil {
		return k, false
	}
	k, s.kept = b.tail.after(seen)
	b.subs = append(b.subs, s)
	return k, true
}

func (b *broadcast) remove(s *subscriber) {
	close(s.gone)
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, x := range b.subs {
		if x == s {
			b.subs = append(b.subs[:i:i], b.subs[i+1:]...)
			return
		}
	}
}

// publish returns when every subscriber has passed the data on or is gone.
func (b *broadcast) publish(kind streamKind, data []byte) {
	b.mu.Lock()
	if b.tail != nil {
		b.tail.add(kind, data)
	}
	subs := b.subs
	b.mu.Unlock()
	if len(subs) == 0 {
		return
	}
	var wg sync.WaitGroup
	for _, s := range subs {
		wg.Add(1)
		select {
		case s.ch <- chunk{kind, data, &wg}:
		case <-s.gone:
			wg.Done()
		}
	}
	wg.Wait()
}

// pump reads one output stream of a process until its end, long after the
// process's own end if a background job holds it: closing it early would kill
// that job by SIGPIPE.
type pump struct {
	p       *process
	kind    streamKind
	f       *os.File
	holds   int           // what the kernel keeps for us; 0: too little to wait for
	drained chan struct{} // closed when the process's own output is out
	lines   lineLogger

	burst  int       // bytes of the present burst
	behind time.Time // when the last read was passed on
}

func newPump(p *process, kind streamKind, f *os.File) *pump {
	return &pump{p: p, kind: kind, f: f, drained: make(chan struct{})}
}

// endAfter bounds the wait for the stream's end, once the process has ended.
func (pm *pump) endAfter(grace time.Duration) {
	_ = pm.f.SetReadDeadline(time.Now().Add(grace))
}

func (pm *pump) run() {
	buf := make([]byte, firstChunk)
	held := 0    // bytes at buf's start that are half a character
	budget := -1 // after the grace: how much is still the process's own; -1 all
	for {
		end := len(buf)
		if budget > 0 {
			end = min(end, held+budget)
		}
		n, err := pm.f.Read(buf[held:end])
		if budget > 0 {
			budget -= n
		}
		data := buf[:held+n]
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			// Whatever is in the pipe now was written before; the rest is not ours.
			_ = pm.f.SetReadDeadline(time.Time{})
			budget = pm.pending()
		case err != nil:
			pm.deliver(data)
			pm.lines.flush(pm)
			_ = pm.f.Close()
			close(pm.drained)
			return
		default:
			quick := time.Since(pm.behind) < quickRead
			whole := completeUTF8(data)
			pm.deliver(data[:whole])
			if len(data) == len(buf) && len(buf) < outputChunk && pm.holds > 0 {
				buf = make([]byte, 2*len(buf)) // data keeps the old one
			}
			held = copy(buf, data[whole:])
			pm.pace(n, quick)
		}
		if budget == 0 {
			pm.deliver(buf[:held])
			pm.lines.flush(pm)
			close(pm.drained)
			pm.discard()
			return
		}
	}
}

// pace lets the pipe fill while a burst lasts, unless the burst fills it anyway.
func (pm *pump) pace(n int, quick bool) {
	if !quick {
		pm.burst = 0
	}
	pm.burst += n
	if pm.burst > burstBytes && n < pm.holds/2 {
		time.Sleep(burstPause)
	}
	pm.behind = time.Now()
}

func (pm *pump) deliver(data []byte) {
	if len(data) == 0 {
		return
	}
	if pm.kind != streamTerm {
		pm.lines.add(pm, data)
	}
	pm.p.out.publish(pm.kind, data)
}

// discard serves a background job that outlives the process: it may write, and
// nobody listens.
func (pm *pump) discard() {
	buf := make([]byte, 4<<10)
	for {
		n, err := pm.f.Read(buf)
		if n > 0 && pm.kind != streamTerm {
			pm.lines.add(pm, buf[:n])
		}
		if err != nil {
			pm.lines.flush(pm)
			_ = pm.f.Close()
			return
		}
	}
}

// pending is how much can be read without waiting.
func (pm *pump) pending() int {
	rc, err := pm.f.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	_ = rc.Control(func(fd uintptr) {
		if v, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
			n = v
		}
	})
	return n
}

// completeUTF8 returns how much of data can be decoded alone: less than all only
// if data ends within a character. Clients decode each event for itself.
func completeUTF8(data []byte) int {
	n := len(data)
	for i := n - 1; i >= 0 && i >= n-(utf8.UTFMax-1); i-- {
		c := data[i]
		if c < utf8.RuneSelf {
			return n
		}
		if utf8.RuneStart(c) {
			if !utf8.FullRune(data[i:]) {
				return i
			}
			return n
		}
	}
	return n
}
