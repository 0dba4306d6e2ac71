package envd

import (
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"
)

var errTooLong = errors.New("a message of the guest is too long")

// guard ends the body of an RPC's answer where a message gets longer than maxMessage.
// connect refuses such a message too, but first reads it to its end: as much, and as
// long, as the guest likes.
func guard(r *http.Request, resp *http.Response) {
	switch {
	case r.Header.Get("Connect-Protocol-Version") == "": // no RPC
	case strings.HasPrefix(resp.Header.Get("Content-Type"), "application/connect+"):
		resp.Body = &envelopes{ReadCloser: resp.Body}
	default:
		resp.Body = &message{resp.Body, maxMessage + 1} // one byte too many is what connect notices
	}
}

// message is a body that is one message.
type message struct {
	io.ReadCloser
	left int // that may be read
}

func (m *message) Read(p []byte) (int, error) {
	if m.left == 0 && len(p) > 0 {
		return 0, errTooLong
	}
	n, err := m.ReadCloser.Read(p[:min(len(p), m.left)])
	m.left -= n
	return n, err
}

// envelopes is a body of many messages: each a byte of flags, four of its length, and
// the message.
type envelopes struct {
	io.ReadCloser
	prefix [5]byte
	got    int   // of the prefix
	left   int64 // of the message
}

func (e *envelopes) Read(p []byte) (int, error) {
	if e.left > maxMessage {
		return 0, errTooLong
	}
	n, err := e.ReadCloser.Read(p)
	for b := p[:n]; len(b) > 0; {
		if e.left > 0 {
			k := min(e.left, int64(len(b)))
			b, e.left = b[k:], e.left-k
			continue
		}
		k := copy(e.prefix[e.got:], b)
		b, e.got = b[k:], e.got+k
		if e.got == len(e.prefix) {
			e.got, e.left = 0, int64(binary.BigEndian.Uint32(e.prefix[1:]))
			if e.left > maxMessage {
				return n - len(b), nil // with the prefix, which says why it ends
			}
		}
	}
	return n, err
}
