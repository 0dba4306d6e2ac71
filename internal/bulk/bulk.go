// Package bulk reads connections in large steps while a lot comes. HTTP's readers
// ask for a few kilobytes, or for one chunk of a body, at a time; a system call is
// not free, and dear in a guest.
package bulk

import (
	"io"
	"net"
	"sync"
)

const (
	size      = 256 << 10 // how much of a fast sender is read at once
	smallRead = 4 << 10   // a reader that asks for less says nothing about the sender
)

// Listener's connections read in large steps from who sends a lot, with a buffer
// of 256 KiB that they have only meanwhile.
type Listener struct{ net.Listener }

// Accept implements net.Listener.
func (l Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c}, nil
}

var buffers = sync.Pool{New: func() any { return new([size]byte) }}

// conn has a buffer only while more comes than its reader asks for.
type conn struct {
	net.Conn
	more bool        // the last read got all that it asked for
	buf  *[size]byte // nil, or with what is not read yet:
	rest []byte
}

// Read, as that of every connection here, is called by one at a time.
func (c *conn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		if !c.more || len(p) >= size {
			n, err := c.Conn.Read(p)
			c.more = n >= smallRead && n == len(p)
			return n, err
		}
		if c.buf == nil {
			c.buf = buffers.Get().(*[size]byte)
		}
		n, err := c.Conn.Read(c.buf[:])
		c.rest, c.more = c.buf[:n], n == size
		if n == 0 {
			c.release()
			return 0, err
		}
		// What came with an error is read first; the error comes again.
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	if len(c.rest) == 0 && !c.more {
		c.release()
	}
	return n, nil
}

func (c *conn) release() {
	if c.buf != nil {
		buffers.Put(c.buf)
		c.buf = nil
	}
}

// ReadFrom keeps the kernel's own copying (sendfile) where there is one.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// CloseWrite passes the end of what we send on.
func (c *conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.Conn.Close()
}
