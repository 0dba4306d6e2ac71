package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// handleTunnel joins the connection to a port of the guest's loopback, where
// the host's network does not reach.
func (a *Agent) handleTunnel(w http.ResponseWriter, r *http.Request) {
	port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 16)
	if err != nil || port == 0 {
		writeError(w, http.StatusBadRequest, "port is not a number from 1 to 65535")
		return
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "tcp") {
		w.Header().Set("Upgrade", "tcp")
		writeError(w, http.StatusUpgradeRequired, "a tunnel needs Connection: Upgrade and Upgrade: tcp")
		return
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	p := strconv.FormatUint(port, 10)
	inner, err := d.DialContext(r.Context(), "tcp", net.JoinHostPort("127.0.0.1", p))
	if err != nil {
		var err6 error
		if inner, err6 = d.DialContext(r.Context(), "tcp", net.JoinHostPort("::1", p)); err6 != nil {
			writeError(w, http.StatusBadGateway, "nothing listens on port "+p)
			return
		}
	}
	defer func() { _ = inner.Close() }()
	outer, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeError(w, http.StatusInternalServerError, "the connection cannot be taken over")
		return
	}
	defer func() { _ = outer.Close() }()
	_ = outer.SetDeadline(time.Time{})
	if _, err := io.WriteString(outer, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"); err != nil {
		return
	}
	stop := context.AfterFunc(a.closing, func() {
		_ = outer.Close()
		_ = inner.Close()
	})
	defer stop()
	in := io.Reader(outer)
	if n := buffered.Reader.Buffered(); n > 0 {
		in = io.MultiReader(io.LimitReader(buffered.Reader, int64(n)), outer)
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		copyHalf(inner, in)
	}()
	copyHalf(outer, inner)
	<-sent
}

// copyHalf copies until src ends and passes that end on. When dst takes no more
// the source is closed too, so that nobody waits for it.
func copyHalf(dst net.Conn, src io.Reader) {
	_, err := io.Copy(dst, src)
	if hc, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		if hc.CloseWrite() == nil {
			return
		}
	}
	_ = dst.Close()
	if c, ok := src.(io.Closer); ok && err != nil && !errors.Is(err, net.ErrClosed) {
		_ = c.Close()
	}
}
