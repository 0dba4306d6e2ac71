package agent

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/nacrehq/nacre"
)

// TestOutputTail: whatever was said and seen, what is given is what was said beyond it,
// in its order, and ends with the last byte; what is missing lies before it and was
// too much to keep; and no more is held than twice what may be.
func TestOutputTail(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		room := rapid.IntRange(1, 300).Draw(t, "room")
		tail := &outputTail{room: func() int { return room }}
		var all [streamTerm + 1][]byte
		n := byte(0)
		for range rapid.IntRange(0, 40).Draw(t, "pieces") {
			kind := streamKind(rapid.IntRange(0, 2).Draw(t, "kind"))
			piece := make([]byte, rapid.IntRange(1, 400).Draw(t, "size"))
			for i := range piece {
				n++
				piece[i] = n
			}
			tail.add(kind, piece)
			all[kind] = append(all[kind], piece...)
			if len(tail.data)+partBytes*len(tail.parts) > 2*room+partBytes {
				t.Fatalf("%d bytes in %d parts are held of %d", len(tail.data), len(tail.parts), room)
			}
		}
		var seen [streamTerm + 1]int64
		for kind := range seen {
			seen[kind] = int64(rapid.IntRange(0, len(all[kind])+2).Draw(t, "seen"))
		}
		k, chunks := tail.after(seenOf(seen))
		var got [streamTerm + 1][]byte
		for _, c := range chunks {
			got[c.kind] = append(got[c.kind], c.data...)
		}
		kept := 0
		for kind, from := range [streamTerm + 1]int64{k.From.Stdout, k.From.Stderr, k.From.Term} {
			if !bytes.Equal(got[kind], all[kind][from:]) {
				t.Fatalf("of %d from %d on came %v, want %v", kind, from, got[kind], all[kind][from:])
			}
			kept += len(got[kind])
			if from > seen[kind] && len(tail.data)+partBytes*len(tail.parts) < min(room, len(all[kind]))-partBytes {
				t.Fatalf("of %d begins at %d, %d were seen, and there was room", kind, from, seen[kind])
			}
		}
		if want := (nacre.OutputSeen{Stdout: int64(len(all[0])), Stderr: int64(len(all[1])), Term: int64(len(all[2]))}); k.To != want {
			t.Fatalf("it had come to %+v, want %+v", k.To, want)
		}
	})
}
