package edge

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// TestConnectionOutlivesItsGuest: a guest that goes in the middle of an upload, as in
// a pause, costs that request alone. The client's connection serves the next one,
// which may well be the one that resumes the sandbox.
func TestConnectionOutlivesItsGuest(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	w.traffic.ports[idB][nacre.AgentPort] = l.Addr().String()
	gone := make(chan struct{}, 1)
	go func() { // takes the beginning of a request, and is gone
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 16))
			_ = c.Close()
			gone <- struct{}{}
		}
	}()
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(conn)
	say := func(text string) {
		t.Helper()
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(want int) {
		t.Helper()
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != want || resp.Close {
			t.Fatalf("%s, closes: %v, %v", resp.Status, resp.Close, err)
		}
	}
	for range 20 {
		say("POST /files?path=/f HTTP/1.1\r\nHost: h\r\nE2b-Sandbox-Id: " + string(idB) + "\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
		<-gone
		say("3\r\ndef\r\n") // which the edge cannot pass on
		hear(http.StatusBadGateway)
		say("0\r\n\r\n")
		say("GET /api HTTP/1.1\r\nHost: h\r\n\r\n")
		hear(http.StatusTeapot)
	}
}

// TestStalledUpload: a client that waits in the middle of its request for a guest that
// has gone is told so, whether the guest's server closed the connection or its machine
// went without a word; and no byte it sends later is taken for another request.
func TestStalledUpload(t *testing.T) {
	for name, leave := range map[string]func(w *world, guest net.Conn){
		"closed":         func(_ *world, guest net.Conn) { _ = guest.Close() },
		"without a word": func(w *world, _ net.Conn) { w.end(idB) },
	} {
		for _, length := range []string{"Content-Length: 100000", "Transfer-Encoding: chunked"} {
			t.Run(name+"/"+length, func(t *testing.T) {
				w := newWorld(t)
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = l.Close() }()
				w.traffic.ports[idB][8000] = l.Addr().String()
				conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: "+host("8000", idB)+"\r\n"+length+"\r\n\r\n3\r\nabc\r\n"); err != nil {
					t.Fatal(err)
				}
				guest, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = guest.Close() }()
				req, err := http.ReadRequest(bufio.NewReader(guest))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(req.Body, make([]byte, 3)); err != nil { // so that the edge waits for more
					t.Fatal(err)
				}
				leave(w, guest)
				br := bufio.NewReader(conn)
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = resp.Body.Close() }()
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusBadGateway || !resp.Close {
					t.Fatalf("%s, closes: %v, %v", resp.Status, resp.Close, err)
				}
				_, _ = io.WriteString(conn, "GET /api HTTP/1.1\r\nHost: h\r\n\r\n")
				if _, err := http.ReadResponse(br, nil); err == nil {
					t.Error("the rest of the request was answered as another one")
				}
			})
		}
	}
}
