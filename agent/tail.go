package agent

import "github.com/nacrehq/nacre"

// What the newest output of processes that the host asked for may take: of one, and of
// all that run together as long as each has leastTail.
const (
	mostTail  = 256 << 10
	leastTail = 16 << 10
	allTails  = 8 << 20
	partBytes = 32 // what a part costs beside its bytes, roughly
)

// outputTail is the newest output of one process, so that who was cut off misses
// nothing: what was on its way to it and what was said before it came back. A
// broadcast guards it.
type outputTail struct {
	room  func() int
	data  []byte
	parts []tailPart // of data, in its order
	end   [streamTerm + 1]int64
}

// tailPart is n bytes of one output in a row.
type tailPart struct {
	kind streamKind
	n    int
}

// keptChunk is output that was said before a subscriber came.
type keptChunk struct {
	kind streamKind
	data []byte
}

// tailRoom is how much one process may keep.
func (t *processTable) tailRoom() int {
	return int(min(mostTail, max(leastTail, allTails/max(1, t.kept.Load()))))
}

func (t *outputTail) add(kind streamKind, data []byte) {
	t.end[kind] += int64(len(data))
	room := t.room()
	if len(data) > room {
		t.data, t.parts = t.data[:0], t.parts[:0]
		data = data[len(data)-room:]
	}
	if n := len(t.parts); n > 0 && t.parts[n-1].kind == kind {
		t.parts[n-1].n += len(data)
	} else {
		t.parts = append(t.parts, tailPart{kind, len(data)})
	}
	t.data = append(t.data, data...)
	// All is moved once it is twice as much as is kept, and not with each byte.
	if size := len(t.data) + partBytes*len(t.parts); size > 2*room {
		t.drop(size - room)
	}
}

// drop forgets the oldest of it, about as much.
func (t *outputTail) drop(size int) {
	bytes, gone := 0, 0
	for ; gone < len(t.parts)-1 && size > 0; gone++ {
		n := t.parts[gone].n
		if n > size {
			break
		}
		bytes += n
		size -= n + partBytes
	}
	if n := min(max(0, size), t.parts[gone].n); n > 0 {
		t.parts[gone].n -= n
		bytes += n
	}
	t.parts = t.parts[:copy(t.parts, t.parts[gone:])]
	t.data = t.data[:copy(t.data, t.data[bytes:])]
}

// after returns what is kept beyond what was seen. Who has seen more than there is saw
// it of a later time than the guest's, which was put back: it goes on from now.
func (t *outputTail) after(seen nacre.OutputSeen) (nacre.KeptOutput, []keptChunk) {
	at := t.end // where the next byte of each output is
	for _, p := range t.parts {
		at[p.kind] -= int64(p.n)
	}
	var from [len(at)]int64
	for kind, n := range [len(at)]int64{seen.Stdout, seen.Stderr, seen.Term} {
		from[kind] = min(max(n, at[kind]), t.end[kind])
	}
	var out []keptChunk
	rest := t.data
	for _, p := range t.parts {
		skip := min(max(0, from[p.kind]-at[p.kind]), int64(p.n))
		if int(skip) < p.n {
			out = append(out, keptChunk{p.kind, append([]byte(nil), rest[skip:p.n]...)})
		}
		at[p.kind] += int64(p.n)
		rest = rest[p.n:]
	}
	return nacre.KeptOutput{From: seenOf(from), To: seenOf(t.end)}, out
}

func seenOf(n [streamTerm + 1]int64) nacre.OutputSeen {
	return nacre.OutputSeen{Stdout: n[streamStdout], Stderr: n[streamStderr], Term: n[streamTerm]}
}
