package edge

import (
	"errors"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"
)

// stallTime is how long a client whose guest has gone in the middle of its request may
// take for the next piece of it. With that piece the request fails and the client's
// connection serves its next one; without, the answer and the connection's end are all
// that can be given.
const stallTime = 500 * time.Millisecond

// errStalled is the error of a request whose guest has gone while its client sent
// nothing.
var errStalled = errors.New("the guest has gone, and the client sends nothing")

// uploads ends requests whose guest has gone. The transport alone waits for the next
// piece of the body before it tells, which a client that waits for an answer never
// sends.
type uploads struct{ next *http.Transport }

func (u uploads) RoundTrip(r *http.Request) (*http.Response, error) {
	client := hopOf(r.Context()).client
	if client == nil || r.Body == nil || r.Body == http.NoBody {
		return u.next.RoundTrip(r)
	}
	up := &upload{client: client}
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{GotConn: up.goesOver})
	resp, err := u.next.RoundTrip(r.WithContext(ctx))
	if !up.end() {
		return resp, err
	}
	if err == nil {
		_ = resp.Body.Close() // the client's connection is not in order anymore
		return nil, errStalled
	}
	return nil, errors.Join(errStalled, err)
}

// upload is a request on its way to a guest, until its answer begins.
type upload struct {
	client *http.ResponseController

	mu    sync.Mutex
	conn  *conn
	timer *time.Timer
	ended bool
	cut   bool
}

// goesOver is told of the connection that is used, and of the next one when that was
// an old one that had ended.
func (u *upload) goesOver(info httptrace.GotConnInfo) {
	guest, ok := info.Conn.(*conn)
	if !ok {
		return
	}
	u.mu.Lock()
	u.leave()
	u.conn = guest
	u.mu.Unlock()
	if !guest.carry(u) {
		u.gone(guest)
	}
}

// gone is told when a connection is closed.
func (u *upload) gone(guest *conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended || u.conn != guest || u.timer != nil {
		return
	}
	u.timer = time.AfterFunc(stallTime, func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if !u.ended && u.conn == guest {
			u.cut = u.client.SetReadDeadline(time.Unix(1, 0)) == nil
		}
	})
}

// leave forgets the connection; mu is held.
func (u *upload) leave() {
	if u.conn != nil {
		u.conn.carried.CompareAndSwap(u, nil)
	}
	if u.timer != nil {
		u.timer.Stop()
		u.timer = nil
	}
}

// end tells whether the client was cut off.
func (u *upload) end() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ended = true
	u.leave()
	return u.cut
}

// closeStalled lets the client's connection end with the answer: what comes over it
// next might be the rest of the request.
func closeStalled(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, errStalled) && r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
}
