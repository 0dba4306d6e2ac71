package agent_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"golang.org/x/sys/unix"
)

// TestTerminalKeepsItsSize: a shell that sets the size that it read before a resize,
// as readline does ahead of each prompt, undoes it for a moment only; a size that the
// guest chose stays.
func TestTerminalKeepsItsSize(t *testing.T) {
	c := newGuest(t).initialised(t, "")
	s, err := c.Processes().Start(t.Context(), nacre.ProcessSpec{Cmd: "/bin/sh", Args: []string{"-c", "tty; exec sleep 1000"},
		Term: &nacre.TermSize{Cols: 80, Rows: 24}})
	must(t, err)
	t.Cleanup(func() { _ = c.Processes().Signal(context.Background(), s.PID(), 9) })
	name := ""
	for !strings.HasSuffix(name, "\n") {
		e, err := s.Next()
		must(t, err)
		name += string(e.Term)
	}
	tty, err := os.OpenFile(strings.TrimSpace(name), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer tty.Close()
	fd := int(tty.Fd())
	size := func() nacre.TermSize {
		w, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		must(t, err)
		return nacre.TermSize{Cols: int(w.Col), Rows: int(w.Row)}
	}
	set := func(s nacre.TermSize) {
		must(t, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(s.Cols), Row: uint16(s.Rows)}))
	}
	read := size()
	for _, want := range []nacre.TermSize{{Cols: 100, Rows: 30}, {Cols: 120, Rows: 40}, {Cols: 80, Rows: 24}, {Cols: 132, Rows: 44}} {
		before := size()
		must(t, c.Processes().Resize(t.Context(), s.PID(), want))
		for _, old := range []nacre.TermSize{before, read} { // the shell may have been there for several resizes
			set(old)
			for end := time.Now().Add(30 * time.Second); size() != want; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("the size is %v, %v was asked for", size(), want)
				}
			}
		}
	}
	chosen := nacre.TermSize{Cols: 77, Rows: 11}
	set(chosen)
	for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if size() != chosen {
			t.Fatalf("the guest chose %v and has %v", chosen, size())
		}
	}
}
