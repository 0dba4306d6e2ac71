package edge

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func message(flags byte, text string) string {
	return string([]byte{flags, 0, 0, 0, byte(len(text))}) + text
}

// TestBrokenStreamEndsWithItsCode: what a client reads of a stream whose guest
// died, however the bytes were cut on their way.
func TestBrokenStreamEndsWithItsCode(t *testing.T) {
	broken := errors.New("connection reset")
	gone := message(endStream, goneMessage)
	for _, c := range []struct {
		name, body string
		err        error // how the body ends; nil means EOF
		want       string
		wantErr    error
	}{
		{"whole", message(0, `{"a":1}`) + message(2, `{}`), nil, message(0, `{"a":1}`) + message(2, `{}`), nil},
		{"cut between messages", message(0, `{"a":1}`), broken, message(0, `{"a":1}`) + gone, nil},
		{"ends early", message(0, `{"a":1}`), nil, message(0, `{"a":1}`) + gone, nil},
		{"cut before the first", "", broken, gone, nil},
		{"cut after the last", message(2, `{}`), broken, message(2, `{}`), broken},
		{"cut inside a prefix", message(0, `{}`) + "\x00\x00", broken, message(0, `{}`) + "\x00\x00", broken},
		{"cut inside a message", message(0, `{"a":1}`)[:8], broken, message(0, `{"a":1}`)[:8], broken},
		{"empty message", message(0, ""), broken, message(0, "") + gone, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			end := c.err
			if end == nil {
				end = io.EOF
			}
			for name, cut := range map[string]func(io.Reader) io.Reader{
				"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "with its error": iotest.DataErrReader,
			} {
				body := cut(io.MultiReader(bytes.NewReader([]byte(c.body)), iotest.ErrReader(end)))
				got, err := io.ReadAll(&connectStream{body: io.NopCloser(body)})
				if string(got) != c.want || !errors.Is(err, c.wantErr) {
					t.Errorf("%s: got %q, %v; want %q, %v", name, got, err, c.want, c.wantErr)
				}
			}
		})
	}
}

func FuzzConnectStream(f *testing.F) {
	f.Add([]byte(message(0, "{}")+message(2, "{}")), 3)
	f.Add([]byte{0, 255, 255, 255, 255, 1}, 1)
	f.Fuzz(func(t *testing.T, body []byte, size int) {
		s := &connectStream{body: io.NopCloser(bytes.NewReader(body))}
		p := make([]byte, 1+min(max(size, 0), 100))
		var got []byte
		for {
			n, err := s.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				break
			}
			if len(got) > len(body)+200 {
				t.Fatal("more came out than went in")
			}
		}
		if !bytes.HasPrefix(got, body) {
			t.Fatal("what passed was changed")
		}
	})
}
