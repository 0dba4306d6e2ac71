package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// AdminClient returns an HTTP client whose every request goes to the admin
// socket of the data directory.
func AdminClient(dataDir string) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dataDir, AdminSocket))
		},
		DisableKeepAlives: true,
	}}
}

// statusOf asks a running server; nil when none runs on the directory.
func statusOf(dataDir string) *Status {
	resp, err := AdminClient(dataDir).Get("http://nacre/status")
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var s Status
	if json.NewDecoder(resp.Body).Decode(&s) != nil {
		return nil
	}
	return &s
}

// WaitReady returns when the server on the data directory is ready, or an error
// that says what it is doing instead when ctx ends first.
func WaitReady(ctx context.Context, dataDir string) (Status, error) {
	if errors.Is(unix.Access(filepath.Join(dataDir, AdminSocket), unix.W_OK), fs.ErrPermission) {
		return Status{}, fmt.Errorf("the server on %s belongs to another user; run the command as that user, such as with sudo", dataDir)
	}
	for {
		s := statusOf(dataDir)
		if s != nil && s.Ready {
			return *s, nil
		}
		select {
		case <-ctx.Done():
			if s == nil {
				return Status{}, fmt.Errorf("no server runs on %s; start one with `nacre up --data-dir %s`", dataDir, dataDir)
			}
			return *s, errors.New("the server is not ready yet: " + s.Step)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
