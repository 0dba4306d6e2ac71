package edge

import (
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"
)

// A stream of the Connect protocol is a row of messages, each one byte of flags,
// four of length and the message; the last has the flag 2 and says how the call
// ended (connectrpc.com/docs/protocol, "Streaming RPCs"). When the guest dies in
// the middle there is no last one, and a client reports a broken connection. The
// edge knows better: it adds the last message, which the clients turn into their
// documented exception.
const (
	endStream    = 2
	prefixLength = 5
	goneMessage  = `{"error":{"code":"unavailable","message":"the sandbox is not running anymore"}}`
)

// endBrokenStreams makes a Connect stream of the agent end properly also when
// the guest does not.
func endBrokenStreams(resp *http.Response) {
	if resp.StatusCode == http.StatusOK && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/connect+") {
		resp.Body = &connectStream{body: resp.Body}
	}
}

// connectStream follows the messages that pass and gives the last one itself when
// the body breaks off between two. A body that breaks off inside a message stays
// broken.
type connectStream struct {
	body io.ReadCloser

	prefix  [prefixLength]byte
	have    int    // bytes of prefix seen
	payload uint32 // bytes of the message yet to come
	ended   bool   // the last message has passed
	tail    []byte // of our own last message
}

func (s *connectStream) Close() error { return s.body.Close() }

func (s *connectStream) Read(p []byte) (int, error) {
	if s.tail != nil {
		return s.readTail(p)
	}
	n, err := s.body.Read(p)
	s.follow(p[:n])
	if err == nil || s.ended || s.have != 0 || s.payload != 0 {
		return n, err
	}
	if n > 0 && !errors.Is(err, io.EOF) {
		return n, nil // the next read fails again
	}
	s.tail = append([]byte{endStream, 0, 0, 0, byte(len(goneMessage))}, goneMessage...)
	if n > 0 {
		return n, nil
	}
	return s.readTail(p)
}

func (s *connectStream) readTail(p []byte) (int, error) {
	n := copy(p, s.tail)
	s.tail = s.tail[n:]
	if len(s.tail) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// follow keeps count of where in the row of messages p ends.
func (s *connectStream) follow(p []byte) {
	for len(p) > 0 {
		if s.payload > 0 {
			skip := min(uint32(min(len(p), 1<<30)), s.payload)
			s.payload -= skip
			p = p[skip:]
			continue
		}
		n := copy(s.prefix[s.have:], p)
		s.have += n
		p = p[n:]
		if s.have == prefixLength {
			s.have = 0
			s.payload = binary.BigEndian.Uint32(s.prefix[1:])
			s.ended = s.ended || s.prefix[0]&endStream != 0
		}
	}
}
