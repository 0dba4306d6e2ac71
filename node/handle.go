package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"golang.org/x/sys/unix"
)

const handleVersion = 1

// handleFile is what a later process needs to take a machine back. It holds no
// secret: tokens are derived, and the environment is the record's.
type handleFile struct {
	Version int
	BootID  string // of the host: a handle from before a reboot has no machine
	Handle  nacre.Handle
	Slot    nacre.Slot
	Policy  nacre.EgressPolicy
	Shape   Shape
	Spec    *nacre.StartSpec `json:",omitempty"` // nil for a standby
	Started time.Time
	Exit    *nacre.Exit `json:",omitempty"`
	Host    string      `json:",omitempty"` // the guest's name; "" is the machine's
	Agent   string      `json:",omitempty"` // what the machine booted with, by the name that says its content; "" of one that was restored
	From    *lineage    `json:",omitempty"`
	Unmet   bool        `json:"-"` // the guest has not confirmed that it is Spec's: the file's name says so
}

// file describes the unit; u.mu is held.
func (u *unit) file() handleFile {
	h := handleFile{Version: handleVersion, Slot: u.slot, Policy: u.policy, Shape: u.shape, Started: u.started, Exit: u.exit, Host: u.host, Agent: u.bootedWith, Unmet: u.unmet}
	if u.from != nil {
		from := *u.from
		h.From = &from
	}
	h.Handle.Machine = u.id
	if u.machine != nil {
		h.Handle = u.machine.Handle()
	}
	if u.spec.Sandbox != "" {
		spec := u.spec
		spec.Env = nil
		h.Spec = &spec
	}
	return h
}

// handleStore keeps one file for each machine.
//
// A write replaces the file in one step but is not synced: a handle has to outlive
// this process, not the host, for when the host loses power the machine is gone
// too. A file that a power cut left torn is set aside, and what it told of is
// swept by name.
//
// The file of a machine whose guest has not confirmed whose it is has a name of its
// own, which outweighs an earlier file: the confirmation, for which a create waits,
// is a rename.
type handleStore struct{ dir, bootID string }

const (
	handleEnd = ".json"
	unmetEnd  = ".unmet" + handleEnd
)

func (s handleStore) path(id nacre.MachineID, end string) string {
	return filepath.Join(s.dir, string(id)+end)
}

// save writes the handle. One that was unmet before stays so until it is confirmed.
func (s handleStore) save(h handleFile) error {
	h.BootID = s.bootID
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	path := s.path(h.Handle.Machine, handleEnd)
	if h.Unmet {
		path = s.path(h.Handle.Machine, unmetEnd)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		os.Remove(tmp)
		return hostError(err, "the machine's handle could not be written")
	}
	return os.Rename(tmp, path)
}

// confirm makes the unmet handle one of a guest that knows whose it is.
func (s handleStore) confirm(id nacre.MachineID) error {
	if err := os.Rename(s.path(id, unmetEnd), s.path(id, handleEnd)); err != nil {
		return hostError(err, "the machine's handle could not be renamed")
	}
	return nil
}

func (s handleStore) remove(id nacre.MachineID) error {
	for _, end := range []string{handleEnd, unmetEnd} { // the earlier first
		if err := os.Remove(s.path(id, end)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// load reads every handle. Files that cannot be understood are renamed to *.bad
// and told to the caller; they stop nobody.
func (s handleStore) load() (good []handleFile, bad []string, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		name := e.Name()
		path := filepath.Join(s.dir, name)
		if strings.HasSuffix(name, ".tmp") {
			os.Remove(path)
			continue
		}
		if !strings.HasSuffix(name, handleEnd) {
			continue
		}
		id, unmet := strings.CutSuffix(name, unmetEnd)
		if !unmet {
			id = strings.TrimSuffix(name, handleEnd)
			if _, err := os.Lstat(s.path(nacre.MachineID(id), unmetEnd)); err == nil {
				continue // of the standby that it was
			}
		}
		h, err := readHandle(path)
		if err == nil && (h.Handle.Machine != nacre.MachineID(id) || !h.Handle.Machine.Valid()) {
			err = fmt.Errorf("it is of machine %q", h.Handle.Machine)
		}
		if err == nil && h.Spec != nil && !h.Spec.Sandbox.Valid() {
			err = fmt.Errorf("it is of sandbox %q", h.Spec.Sandbox)
		}
		if err != nil {
			bad = append(bad, fmt.Sprintf("%s: %v", name, err))
			if err := os.Rename(path, path+".bad"); err != nil {
				return nil, nil, err
			}
			continue
		}
		h.Unmet = unmet
		good = append(good, h)
	}
	return good, bad, nil
}

func readHandle(path string) (h handleFile, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(data, &h); err != nil {
		return h, err
	}
	if h.Version != handleVersion {
		return h, fmt.Errorf("version %d, and this program knows %d", h.Version, handleVersion)
	}
	return h, nil
}

// hostBootID names the host's present run, "" where the kernel does not tell.
func hostBootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// hostError gives a failure of the host's file system its code.
func hostError(err error, message string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return nacre.Wrap(nacre.CodeNoSpace, err, message+": the host's disk is full; free some space, then try again")
	}
	return nacre.Wrap(nacre.CodeInternal, err, message)
}

func errClosed() error {
	return nacre.Errorf(nacre.CodeUnavailable, "the node is shutting down; try again")
}
