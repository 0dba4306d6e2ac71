package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// api speaks to one Firecracker process over its socket.
type api struct {
	http http.Client
}

// newAPI returns a client of the socket in the directory.
func newAPI(dir, socket string) *api {
	return &api{http.Client{Transport: &http.Transport{
		// One connection a call: they are few, and none is left open when the VMM ends.
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialSocket(ctx, dir, socket)
		},
	}}}
}

// apiError is Firecracker's own explanation.
type apiError struct {
	call   string
	status int
	text   string
}

func (e *apiError) Error() string {
	return fmt.Sprintf("firecracker: %s: %d: %s", e.call, e.status, e.text)
}

// call sends body, when it is not nil, and reads the answer into out, when that is not.
func (a *api) call(ctx context.Context, method, path string, body, out any) error {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://firecracker"+path, in)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	resp, err := a.http.Do(req)
	if err != nil {
		return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
	}
	if resp.StatusCode >= 300 {
		var fault struct {
			Message string `json:"fault_message"`
		}
		if json.Unmarshal(b, &fault) != nil || fault.Message == "" {
			fault.Message = string(b)
		}
		return &apiError{method + " " + path, resp.StatusCode, fault.Message}
	}
	if out != nil {
		return json.Unmarshal(b, out)
	}
	return nil
}

func (a *api) put(ctx context.Context, path string, body any) error {
	return a.call(ctx, http.MethodPut, path, body, nil)
}

// awaitUp returns when the socket is listened on. Its file is there before.
func (a *api) awaitUp(ctx context.Context) (info instanceInfo, err error) {
	for {
		err = a.call(ctx, http.MethodGet, "/", nil, &info)
		if err == nil || !(errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)) {
			return info, err
		}
		select {
		case <-ctx.Done():
			return info, context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
}

// setState pauses the guest's processors or lets them go on. A repeat is no error.
func (a *api) setState(ctx context.Context, state string) error {
	return a.call(ctx, http.MethodPatch, "/vm", map[string]string{"state": state}, nil)
}

const (
	statePaused  = "Paused"
	stateResumed = "Resumed"
)

type instanceInfo struct {
	State   string `json:"state"` // "Not started", "Running", "Paused"
	Version string `json:"vmm_version"`
}

type bootSource struct {
	Kernel string `json:"kernel_image_path"`
	Args   string `json:"boot_args"`
}

type drive struct {
	ID       string `json:"drive_id"`
	Path     string `json:"path_on_host"`
	IsRoot   bool   `json:"is_root_device"`
	ReadOnly bool   `json:"is_read_only"`
	Engine   string `json:"io_engine,omitempty"`
}

type machineConfig struct {
	CPUs      int    `json:"vcpu_count"`
	MemoryMiB int    `json:"mem_size_mib"`
	SMT       bool   `json:"smt"`
	Track     bool   `json:"track_dirty_pages"`
	Pages     string `json:"huge_pages,omitempty"` // "2M"
}

type networkInterface struct {
	ID  string `json:"iface_id"`
	Dev string `json:"host_dev_name"`
	MAC string `json:"guest_mac"`
}

type vsock struct {
	CID  int    `json:"guest_cid"`
	Path string `json:"uds_path"`
}

type snapshotCreate struct {
	Type  string `json:"snapshot_type"`
	State string `json:"snapshot_path"`
	Mem   string `json:"mem_file_path"`
}

type snapshotLoad struct {
	State  string     `json:"snapshot_path"`
	Mem    memBackend `json:"mem_backend"`
	Track  bool       `json:"track_dirty_pages,omitempty"`
	Diffs  bool       `json:"enable_diff_snapshots,omitempty"` // Track's name before 1.13
	Resume bool       `json:"resume_vm"`
}

// newSnapshotLoad is what a release is told to restore a machine. It is not told
// clock_realtime, which 1.16 offers: with it the guest's monotonic clock would jump by
// the age of the snapshot, and every time-out in the guest with it. What the time is
// the guest's first program is told.
func newSnapshotLoad(v version, b birth) snapshotLoad {
	l := snapshotLoad{State: "/" + stateName, Mem: memBackend{"File", "/" + memName}, Resume: true}
	if b.HugePages {
		l.Mem = memBackend{"Uffd", "/" + pagerSocket}
	}
	if v.compare(version{1, 13, 0}) < 0 {
		l.Diffs = b.Tracks
	} else {
		l.Track = b.Tracks
	}
	return l
}

type memBackend struct {
	Type string `json:"backend_type"`
	Path string `json:"backend_path"`
}
