package agent_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
)

// TestFastOutputIsFewEvents: a program that writes fast in small steps is passed
// on in large ones, whole and in order; one that writes slowly is heard at once,
// line by line.
func TestFastOutputIsFewEvents(t *testing.T) {
	g := newGuest(t)
	c := g.initialised(t, "")
	run := func(script string, heard func(nacre.ProcessStream)) (out []byte, events int) {
		s, err := c.Processes().Start(context.Background(), nacre.ProcessSpec{Cmd: "/bin/bash", Args: []string{"-c", script}, Stdin: true})
		must(t, err)
		for {
			e, err := s.Next()
			must(t, err)
			if e.Exit != nil {
				return out, events
			}
			out = append(out, e.Stdout...)
			events++
			heard(s)
		}
	}
	const writes = 5000
	out, events := run("dd if=/dev/zero bs=4096 count=5000 2>/dev/null | tr '\\0' '\\n' | dd bs=4096 2>/dev/null", func(nacre.ProcessStream) {})
	if !bytes.Equal(out, bytes.Repeat([]byte("\n"), writes*4096)) {
		t.Errorf("%d bytes came, want %d", len(out), writes*4096)
	}
	if events > writes/4 {
		t.Errorf("%d writes came as %d events", writes, events)
	}
	// A program that waits for an answer to each line: one held back would be waited
	// for without end.
	out, events = run("for i in 1 2 3 4 5; do echo $i; read; done", func(s nacre.ProcessStream) {
		must(t, c.Processes().Input(context.Background(), s.PID(), []byte("\n")))
	})
	if want := "1\n2\n3\n4\n5\n"; string(out) != want || events != strings.Count(want, "\n") {
		t.Errorf("%q came as %d events", out, events)
	}
}
