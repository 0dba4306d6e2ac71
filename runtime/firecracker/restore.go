package firecracker

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/snapfile"
	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// snapshot is a snapshot that was opened to be restored or verified.
type snapshot struct {
	*snapfile.Snapshot
	birth birth
}

// openSnapshot reads the manifest and refuses what cannot be restored here.
func (r *Runtime) openSnapshot(dir string) (*snapshot, error) {
	s := &snapshot{}
	var err error
	if s.Snapshot, err = r.format().Open(dir, &s.birth); err != nil {
		return nil, err
	}
	if n := s.Size(diskFile); n != upperSize(s.Birth.UpperMiB) {
		return nil, snapfile.Damaged(diskFile, fmt.Errorf("%d bytes, want %d", n, upperSize(s.Birth.UpperMiB)))
	}
	return s, nil
}

// VerifySnapshot implements nacre.Runtime.
func (r *Runtime) VerifySnapshot(_ context.Context, dir string) error {
	s, err := r.openSnapshot(dir)
	if err != nil {
		return err
	}
	return s.CheckAll()
}

// Restore implements nacre.Runtime.
func (r *Runtime) Restore(ctx context.Context, spec nacre.MachineSpec, dir string) (nacre.Machine, error) {
	if err := validate(spec); err != nil {
		return nil, err
	}
	s, err := r.openSnapshot(dir)
	if err != nil {
		return nil, err
	}
	if err := s.Fits(spec); err != nil {
		return nil, err
	}
	if id, err := snapfile.ImageID(spec.Root.Image); err == nil {
		if err := s.FitsImage(id); err != nil {
			return nil, err
		}
	}
	if err := s.Check(stateFile); err != nil {
		return nil, err
	}
	if !s.FilesOnly {
		spec.Resources.HugePages = s.birth.HugePages
	}
	return r.launch(ctx, &launch{r: r, spec: spec, snap: s})
}

// restore has the VMM load the snapshot, and tells the guest who and when it is
// before anybody else may reach it.
func (l *launch) restore(ctx context.Context, a *api) error {
	err := a.put(ctx, "/snapshot/load", newSnapshotLoad(l.r.version, l.birth))
	if err != nil {
		return err
	}
	l.resumed = time.Since(l.begun)
	entropy := make([]byte, 64)
	_, _ = rand.Read(entropy) // never fails
	err = awaitGuest(ctx, l.jail.root, func() string {
		b, err := json.Marshal(wire.Restored{Hostname: l.spec.Hostname, UnixNano: l.r.cfg.Clock().UnixNano(), Entropy: entropy})
		if err != nil {
			panic(err) // plain data
		}
		return "restored " + string(b)
	})
	if err == nil {
		err = l.setClock(ctx)
	}
	if err != nil {
		return err
	}
	// The VMM has the files open: their names are not needed any more.
	for _, name := range []string{stateName, memName, pagerSocket} {
		if err := os.Remove(filepath.Join(l.jail.root, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// fullDisk recognises the one error of the VMM's that has a code of its own.
func fullDisk(text string) bool {
	return strings.Contains(text, unix.ENOSPC.Error()) || strings.Contains(text, "os error 28")
}
