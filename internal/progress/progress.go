// Package progress shows how far long work is: a bar on a terminal, plain lines
// otherwise, so that a log stays readable.
package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// Bar shows one piece of work after the other. Its methods may be called by
// several goroutines.
type Bar struct {
	w   io.Writer
	tty bool

	mu    sync.Mutex
	step  string
	last  time.Time
	lines int // percent last printed, when not on a terminal
	drawn bool
}

// New writes to f.
func New(f *os.File) *Bar { return &Bar{w: f, tty: term.IsTerminal(int(f.Fd()))} }

// Set says that done of total is reached in the step. total <= 0 means unknown.
func (b *Bar) Set(step string, done, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fresh := step != b.step
	if fresh {
		b.endLine()
		b.step, b.lines, b.last = step, -1, time.Time{}
	}
	percent := -1
	if total > 0 {
		percent = int(min(100, 100*done/total))
	}
	if b.tty {
		if now := time.Now(); fresh || percent == 100 || now.Sub(b.last) > 80*time.Millisecond {
			b.last, b.drawn = now, true
			fmt.Fprint(b.w, "\r\x1b[K"+b.line(percent))
		}
		return
	}
	if fresh || percent >= b.lines+25 {
		b.lines = max(percent, 0)
		fmt.Fprintln(b.w, b.line(percent))
	}
}

func (b *Bar) line(percent int) string {
	if percent < 0 {
		return "  " + b.step + " ..."
	}
	if !b.tty {
		return fmt.Sprintf("  %s: %d%%", b.step, percent)
	}
	const width = 30
	full := percent * width / 100
	return fmt.Sprintf("  %-34s [%s%s] %3d%%", b.step, strings.Repeat("=", full), strings.Repeat(" ", width-full), percent)
}

// patience is how long work goes on in silence, and every how long a log is told
// that it still does.
const (
	patience = 300 * time.Millisecond
	logEvery = 10 * time.Second
)

// Wait shows a step of which only the beginning and the end are known, with the
// time that it takes, until stop is called. One that is over at once shows nothing.
func (b *Bar) Wait(step string) (stop func()) {
	return b.Watch(step, func() (done, total int64) { return 0, 0 })
}

// Watch is Wait for a step that can be looked at: how far it is is shown once look
// knows it.
func (b *Bar) Watch(step string, look func() (done, total int64)) (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	begin := time.Now()
	go func() {
		defer close(ended)
		every := logEvery
		if b.tty {
			every = time.Second
		}
		for wait := patience; ; wait = every {
			select {
			case <-quit:
				return
			case <-time.After(wait):
				if done, total := look(); total > 0 {
					b.Set(step, done, total)
				} else {
					b.elapsed(step, time.Since(begin))
				}
			}
		}
	}()
	return func() {
		close(quit)
		<-ended
		b.Done()
	}
}

func (b *Bar) elapsed(step string, d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	line := "  " + step + " ..."
	if d >= time.Second {
		line += fmt.Sprintf(" %ds", int(d.Seconds()))
	}
	if b.tty {
		b.drawn = true
		fmt.Fprint(b.w, "\r\x1b[K"+line)
		return
	}
	fmt.Fprintln(b.w, line)
}

// Done ends the current line. The bar may be used again.
func (b *Bar) Done() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endLine()
	b.step = ""
}

func (b *Bar) endLine() {
	if b.drawn {
		fmt.Fprintln(b.w)
		b.drawn = false
	}
}
