package envd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/nacrehq/nacre"
)

// Tunnel connects to a port of the guest's loopback. Nobody listening is
// CodeUnavailable. It needs Options.Dial.
func (c *Client) Tunnel(ctx context.Context, port int) (net.Conn, error) {
	if c.opts.Dial == nil {
		return nil, nacre.Errorf(nacre.CodeUnsupported, "a tunnel needs a direct way to the guest")
	}
	conn, err := c.opts.Dial(ctx, nacre.AgentPort)
	if err != nil {
		return nil, transportError(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	br, err := c.upgrade(ctx, conn, port)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		var known *nacre.Error
		if errors.As(err, &known) {
			return nil, err
		}
		return nil, transportError(ctx, err)
	}
	if br.Buffered() == 0 {
		return conn, nil
	}
	return &bufferedConn{Conn: conn, br: br}, nil
}

func (c *Client) upgrade(ctx context.Context, conn net.Conn, port int) (*bufio.Reader, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+PathTunnel+"?port="+strconv.Itoa(port), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	req.Header.Set(HeaderHostToken, c.opts.HostToken)
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	limited := &io.LimitedReader{R: conn, N: maxHeaders}
	br := bufio.NewReader(limited)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, err
	}
	limited.N = 1<<63 - 1
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, statusError(resp)
	}
	return br, nil
}

// bufferedConn is a connection of which a little was read already.
type bufferedConn struct {
	net.Conn
	br *bufio.Reader
}

func (b *bufferedConn) Read(p []byte) (int, error) {
	if b.br.Buffered() > 0 {
		return b.br.Read(p[:min(len(p), b.br.Buffered())])
	}
	return b.Conn.Read(p)
}

// CloseWrite passes the end of what we send on, where the connection can.
func (b *bufferedConn) CloseWrite() error {
	if hc, ok := b.Conn.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return b.Conn.Close()
}
