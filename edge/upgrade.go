package edge

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/nacrehq/nacre"
)

// upgradeOf returns the protocol that a request wants to go on in, or "".
func upgradeOf(r *http.Request) string {
	if !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "Upgrade") {
		return ""
	}
	return r.Header.Get("Upgrade")
}

// serveUpgrade passes on a request for a WebSocket or the like. It has a
// connection of its own and, once the guest agreed, costs little memory while it
// is silent: there may be ten thousand of them.
func (e *Edge) serveUpgrade(w http.ResponseWriter, r *http.Request, h hop) {
	guest, err := e.conns.connect(r.Context(), machineKey{h.route.Sandbox, h.route.Machine}, h.target.port)
	if err != nil {
		e.proxyError(w, withHop(r, h), err)
		return
	}
	defer func() { _ = guest.Close() }()
	stop := context.AfterFunc(r.Context(), func() { _ = guest.Close() })
	defer stop()

	head := &io.LimitedReader{R: guest, N: maxGuestHeader}
	br := bufio.NewReaderSize(head, 1<<10)
	out := upgradeRequest(withHop(r, h))
	if err := out.Write(guest); err != nil {
		e.proxyError(w, withHop(r, h), err)
		return
	}
	resp, err := readFinalResponse(br, out)
	if err != nil {
		e.proxyError(w, withHop(r, h), err)
		return
	}
	head.N = math.MaxInt64 // only the header's size is bounded
	if resp.StatusCode != http.StatusSwitchingProtocols {
		copyResponse(w, resp)
		return
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil { // HTTP/2 has no upgrades
		writeError(w, http.StatusHTTPVersionNotSupported, "an upgrade needs HTTP/1.1")
		return
	}
	defer func() { _ = client.Close() }()
	stop() // the server ends r's context when it lets go of the connection
	confineCookies(resp.Header)
	if _, err := fmt.Fprintf(client, "HTTP/1.1 101 Switching Protocols\r\n"); err != nil {
		return
	}
	if err := resp.Header.Write(client); err != nil {
		return
	}
	if _, err := io.WriteString(client, "\r\n"); err != nil {
		return
	}
	joinStreams(end{e.touching(client, h.route.Sandbox), rest(buffered.Reader)}, end{guest, rest(br)})
}

// touching makes what a client sends over a connection count as use of the sandbox.
func (e *Edge) touching(client net.Conn, id nacre.SandboxID) net.Conn {
	if e.activity == nil {
		return client
	}
	return &touchingConn{Conn: client, touch: func() { e.activity.Touch(id) }, last: e.clock(), clock: e.clock}
}

type touchingConn struct {
	net.Conn
	touch func()
	clock nacre.Clock
	last  time.Time // of the one goroutine that reads
}

func (c *touchingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		if now := c.clock(); now.Sub(c.last) >= touchEvery {
			c.last = now
			c.touch()
		}
	}
	return n, err
}

// CloseWrite ends our direction only, where the connection can.
func (c *touchingConn) CloseWrite() error { return closeWrite(c.Conn) }

// upgradeRequest is the request that the guest sees.
func upgradeRequest(in *http.Request) *http.Request {
	out := in.Clone(in.Context())
	protocol := upgradeOf(in)
	for _, list := range in.Header["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			out.Header.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding"} {
		out.Header.Del(name)
	}
	rewrite(&httputil.ProxyRequest{In: in, Out: out})
	out.Header.Set("Connection", "Upgrade")
	out.Header.Set("Upgrade", protocol)
	if out.Header.Get("User-Agent") == "" {
		out.Header["User-Agent"] = []string{""} // else Go puts its own there
	}
	return out
}

// readFinalResponse skips the interim answers that may come before the real one.
func readFinalResponse(br *bufio.Reader, req *http.Request) (*http.Response, error) {
	for range 5 {
		resp, err := http.ReadResponse(br, req)
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
	return nil, errors.New("too many interim answers")
}

// copyResponse passes on a refusal to upgrade.
func copyResponse(w http.ResponseWriter, resp *http.Response) {
	defer func() { _ = resp.Body.Close() }()
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade"} {
		resp.Header.Del(name)
	}
	confineCookies(resp.Header)
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

// end is one end of a joined stream: the connection, and what was read of it
// already.
type end struct {
	conn net.Conn
	head []byte
}

// rest returns what a reader holds, so that the reader need not be kept.
func rest(r *bufio.Reader) []byte {
	held, _ := r.Peek(r.Buffered()) // never short: it asks for what is there
	return bytes.Clone(held)
}

// joinStreams copies both ways until both ended; the end of one is passed on.
func joinStreams(a, b end) {
	var wg sync.WaitGroup
	wg.Go(func() { copyOneWay(a, b) })
	copyOneWay(b, a)
	wg.Wait()
}

func copyOneWay(to, from end) {
	if err := copyQuietly(to.conn, from); err != nil {
		_ = to.conn.Close()
		_ = from.conn.Close()
		return
	}
	_ = closeWrite(to.conn)
}

// quiet is what a silent direction holds; bulk what a busy one borrows.
const quiet = 512

var bulk = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// copyQuietly copies until the end. It waits with a small buffer and takes a big
// one for as long as there is more than fits.
func copyQuietly(to io.Writer, from end) error {
	if len(from.head) > 0 {
		if _, err := to.Write(from.head); err != nil {
			return err
		}
	}
	small := make([]byte, quiet)
	for {
		n, err := from.conn.Read(small)
		if n > 0 {
			if _, err := to.Write(small[:n]); err != nil {
				return err
			}
		}
		if err == nil && n == len(small) {
			err = copyBulk(to, from.conn)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// copyBulk copies while reads come back more than half full.
func copyBulk(to io.Writer, from io.Reader) error {
	buf := bulk.Get().(*[32 << 10]byte)
	defer bulk.Put(buf)
	for {
		n, err := from.Read(buf[:])
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil || n < len(buf)/2 {
			return err
		}
	}
}

// closeWrite ends one direction where the connection can.
func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
