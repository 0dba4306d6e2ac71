package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/nacrehq/nacre/server"
)

// adminKey is a key as the admin socket answers it.
type adminKey struct {
	ID        string     `json:"id"`
	Team      string     `json:"team"`
	Name      string     `json:"name,omitempty"`
	Key       string     `json:"key,omitempty"` // only from the call that made it
	Hint      string     `json:"hint,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	UsedAt    *time.Time `json:"used_at,omitempty"` // a minute coarse
	RevokedAt *time.Time `json:"revoked_at,omitempty"`
}

// admin is the command's side of the admin socket of the server on this host.
type admin struct {
	dataDir string
	http    *http.Client
}

func newAdmin(dataDir string) *admin {
	return &admin{dataDir: dataDir, http: server.AdminClient(dataDir)}
}

func (a *admin) createKey(ctx context.Context, team, name string) (adminKey, error) {
	var out adminKey
	err := a.call(ctx, http.MethodPost, "/keys", map[string]string{"team": team, "name": name}, &out)
	return out, err
}

// keys lists the keys of one team, or with "" of all.
func (a *admin) keys(ctx context.Context, team string) ([]adminKey, error) {
	out := []adminKey{}
	path := "/keys"
	if team != "" {
		path += "?team=" + url.QueryEscape(team)
	}
	err := a.call(ctx, http.MethodGet, path, nil, &out)
	return out, err
}

func (a *admin) revokeKey(ctx context.Context, team, id string) error {
	return a.call(ctx, http.MethodDelete, "/keys/"+url.PathEscape(id)+"?team="+url.QueryEscape(team), nil, nil)
}

func (a *admin) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://nacre"+path, body)
	if err != nil {
		return err
	}
	resp, err := a.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no server runs on %s; start one with `nacre up`, or name its directory with --data-dir", a.dataDir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the server on %s belongs to another user; run the command as that user, such as with sudo", a.dataDir)
	case err != nil:
		return fmt.Errorf("the server on %s does not answer: %w", a.dataDir, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		var e struct {
			Message string `json:"message"`
		}
		if json.NewDecoder(resp.Body).Decode(&e) != nil || e.Message == "" {
			e.Message = "it answered " + resp.Status
		}
		return fmt.Errorf("the server on %s: %s", a.dataDir, e.Message)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}
