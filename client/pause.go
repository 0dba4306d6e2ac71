package client

import (
	"context"
	"net/http"
)

// A PauseOption shapes a Pause.
type PauseOption interface{ pause(*pauseRequest) }

type pauseRequest struct {
	Memory  *bool `json:"memory,omitempty"`
	Healthy bool  `json:"requireHealthyGuest,omitempty"`
}

type pauseOption func(*pauseRequest)

func (f pauseOption) pause(r *pauseRequest) { f(r) }

// Strict refuses the pause with ErrUnavailable while the sandbox's agent does not
// answer: one whose agent never does comes back by Reboot alone.
func Strict() PauseOption { return pauseOption(func(r *pauseRequest) { r.Healthy = true }) }

// FilesOnlyOption is what FilesOnly returns.
type FilesOnlyOption struct{}

// FilesOnly keeps the files alone, for Pause and Snapshot, and for Create whenever
// its sandbox is paused at its deadline. What goes on from there boots.
func FilesOnly() FilesOnlyOption { return FilesOnlyOption{} }

func (FilesOnlyOption) pause(r *pauseRequest)       { no := false; r.Memory = &no }
func (FilesOnlyOption) snapshot(r *snapshotRequest) { no := false; r.Memory = &no }
func (FilesOnlyOption) create(s *newSandbox)        { no := false; s.AutoPauseMemory = &no }

type connectOption func(*connectRequest)

func (f connectOption) connect(r *connectRequest) { f(r) }

// Reboot makes Connect and Resume boot a paused sandbox with its files instead of
// restoring its memory, which is given up. One that runs is left as it is.
func Reboot() ConnectOption {
	return connectOption(func(r *connectRequest) { no := false; r.Memory = &no })
}

// Pause keeps the sandbox's memory and files and stops everything. A paused
// sandbox costs no memory and no processor, and stays until it is killed. Resume
// and Client.Connect bring it back with its processes; what is connected to it
// now, commands that are followed too, ends with ErrNotRunning.
//
// One that is paused already is ErrConflict. When it fails, with ErrNoSpace on a
// full disk, the sandbox runs on.
func (s *Sandbox) Pause(ctx context.Context, opts ...PauseOption) error {
	return s.client.Pause(ctx, s.ID, opts...)
}

// Resume brings a paused sandbox back; the handle is good again. Of one that runs
// it extends the deadline as Client.Connect does. When it fails the sandbox is
// paused as before.
func (s *Sandbox) Resume(ctx context.Context, opts ...ConnectOption) error {
	_, err := s.client.Connect(ctx, s.ID, opts...)
	return err
}

// Restore puts the sandbox, running or paused, back to a snapshot of its own or of
// what it was forked from. What it did since is lost. A snapshot that is not of
// its line is ErrConflict, one that cannot be restored is refused before anything
// is given up.
func (s *Sandbox) Restore(ctx context.Context, snapshotID string) error {
	return s.client.Restore(ctx, s.ID, snapshotID)
}

// Pause is Sandbox.Pause by id.
func (c *Client) Pause(ctx context.Context, id string, opts ...PauseOption) error {
	var body pauseRequest
	for _, o := range opts {
		o.pause(&body)
	}
	_, err := c.do(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/pause"), in: body, long: true})
	return err
}

// Restore is Sandbox.Restore by id.
func (c *Client) Restore(ctx context.Context, id, snapshotID string) error {
	body := map[string]string{"snapshotID": snapshotID}
	_, err := c.do(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/restore"), in: body, long: true})
	return err
}
