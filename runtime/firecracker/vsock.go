package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// errGuest is what the guest's first program refused.
type errGuest struct{ reason string }

func (e errGuest) Error() string { return "the guest says: " + strconv.Quote(e.reason) }

// askNow connects to the guest's first program, says one thing, which is made when it
// can be said, and reads the answer. What follows on the connection is the caller's.
func askNow(ctx context.Context, dir string, what func() string) (*net.UnixConn, error) {
	c, err := dialSocket(ctx, dir, vsockName)
	if err != nil {
		return nil, err
	}
	u := c.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { _ = u.SetDeadline(time.Unix(1, 0)) })
	if err = connectPort(u); err == nil {
		err = exchange(u, what())
	}
	if !stop() { // the deadline is set, or is about to be
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

// connectPort has Firecracker connect to the guest.
func connectPort(c net.Conn) error {
	if _, err := fmt.Fprintf(c, "CONNECT %d\n", wire.Port); err != nil {
		return err
	}
	// Firecracker's own answer, when the guest has accepted; it hangs up otherwise.
	line, err := readLine(c)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "OK ") {
		return fmt.Errorf("vsock: %q", line)
	}
	return nil
}

func exchange(c net.Conn, what string) error {
	if _, err := io.WriteString(c, what+"\n"); err != nil {
		return err
	}
	line, err := readLine(c)
	if err != nil {
		return err
	}
	if line == "ok" {
		return nil
	}
	return errGuest{strings.TrimPrefix(line, "no ")}
}

// readLine reads no byte more than the line.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := []byte{0}; len(line) < wire.MaxLine; line = append(line, b[0]) {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
	}
	return "", errors.New("the guest's answer is too long")
}

// Waiting for a guest: how long one attempt may take and what is between two. A
// connection that is made right after a snapshot was loaded can be accepted and then
// reset without either end seeing it (seen with 1.12.1), so attempts are short; on a
// host that is busy they grow.
const (
	firstAttempt = 400 * time.Millisecond
	lastAttempt  = 5 * time.Second
	betweenTries = 2 * time.Millisecond
)

// awaitGuest asks until the guest's first program answers; what is made anew for each
// attempt.
func awaitGuest(ctx context.Context, dir string, what func() string) error {
	for patience := firstAttempt; ; patience = min(2*patience, lastAttempt) {
		begin := time.Now()
		try, cancel := context.WithTimeout(ctx, patience)
		c, err := askNow(try, dir, what)
		cancel()
		if err == nil {
			return c.Close()
		}
		var refused errGuest
		if errors.As(err, &refused) {
			return err
		}
		if time.Since(begin) < firstAttempt/2 {
			patience /= 2 // nobody listens yet: that says nothing about the host's speed
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(betweenTries):
		}
	}
}
