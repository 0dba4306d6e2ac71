package bulk

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
)

// burst is a connection whose peer has sent data; a read never waits.
type burst struct {
	net.Conn
	data  []byte
	reads int
	end   error
}

func (b *burst) Read(p []byte) (int, error) {
	b.reads++
	if len(b.data) == 0 {
		return 0, b.end
	}
	n := copy(p, b.data)
	b.data = b.data[n:]
	return n, nil
}

// TestBulkReads: whatever small steps the reader takes, a fast sender is read in
// large ones, nothing is lost or twice, and afterwards no buffer is kept.
func TestBulkReads(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	sent := make([]byte, 8<<20)
	for i := range sent {
		sent[i] = byte(rng.Uint32())
	}
	reset := errors.New("reset")
	for _, end := range []error{io.EOF, reset} {
		src := &burst{data: sent, end: end}
		c := &conn{Conn: src}
		r := bufio.NewReaderSize(c, 4<<10)
		var got bytes.Buffer
		var err error
		for err == nil {
			var n int
			p := make([]byte, 1+rng.IntN(64<<10))
			n, err = r.Read(p)
			got.Write(p[:n])
		}
		if !bytes.Equal(got.Bytes(), sent) || !errors.Is(err, end) {
			t.Errorf("%d of %d bytes came, then %v; want %v", got.Len(), len(sent), err, end)
		}
		if most := len(sent)/size + 8; src.reads > most {
			t.Errorf("%d reads for %d bytes, want at most %d", src.reads, len(sent), most)
		}
		if c.buf != nil {
			t.Error("an idle connection keeps a buffer")
		}
	}
}

// TestBulkLeavesSmallReads: requests that fit the reader are passed on as they come.
func TestBulkLeavesSmallReads(t *testing.T) {
	src := &burst{end: io.EOF}
	c := &conn{Conn: src}
	p := make([]byte, 4<<10)
	for range 3 {
		src.data = []byte("GET / HTTP/1.1\r\n\r\n")
		if n, err := c.Read(p); err != nil || string(p[:n]) != "GET / HTTP/1.1\r\n\r\n" {
			t.Fatalf("%q, %v", p[:n], err)
		}
		if c.buf != nil {
			t.Fatal("a small request took a buffer")
		}
	}
}
