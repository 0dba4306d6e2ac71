package agent_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/nacrehq/nacre"
)

// BenchmarkExec is one command, from the request to the end of its stream, over
// the agent's own socket.
func BenchmarkExec(b *testing.B) {
	g := newGuest(b)
	c := g.initialised(b, "")
	for b.Loop() {
		s, err := c.Processes().Start(context.Background(), nacre.ProcessSpec{Cmd: "/bin/true"})
		must(b, err)
		for err == nil {
			_, err = s.Next()
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
	}
}
