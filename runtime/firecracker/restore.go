package firecracker

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// snapshot is a snapshot that was opened to be restored or verified.
type snapshot struct {
	manifest
	dir string
}

// openSnapshot reads the manifest and refuses what cannot be restored here.
func (r *Runtime) openSnapshot(dir string) (*snapshot, error) {
	s := &snapshot{dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nacre.Wrap(nacre.CodeNotFound, err, "there is no whole snapshot in the directory")
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &s.manifest); err != nil {
		return nil, damaged(manifestFile, err)
	}
	if s.Version != manifestVersion {
		return nil, nacre.Errorf(nacre.CodeUnsupported, "the snapshot has format %d, this node reads %d", s.Version, manifestVersion)
	}
	if s.Birth.Key != r.key {
		return nil, nacre.Errorf(nacre.CodeUnsupported, "the snapshot is bound to %s, this node is %s; restore it on a node like the one it was taken on", s.Birth.Key, r.key)
	}
	return s, s.checkSizes()
}

func damaged(file string, cause error) error {
	return nacre.Wrap(nacre.CodeConflict, cause, "the snapshot is damaged: "+file+" is not as it was written")
}

func (s *snapshot) checkSizes() error {
	missing := map[string]bool{diskFile: true}
	if !s.FilesOnly {
		missing[stateFile], missing[memFile], missing[initFile] = true, true, true
	}
	for _, e := range s.Files {
		if !missing[e.Name] {
			return damaged(manifestFile, fmt.Errorf("it names %q", e.Name))
		}
		delete(missing, e.Name)
		st, err := os.Stat(filepath.Join(s.dir, e.Name))
		if err != nil {
			return damaged(e.Name, err)
		}
		if st.Size() != e.Size || e.Name == diskFile && e.Size != upperSize(s.Birth.UpperMiB) {
			return damaged(e.Name, fmt.Errorf("%d bytes, want %d", st.Size(), e.Size))
		}
	}
	for name := range missing {
		return damaged(manifestFile, fmt.Errorf("it lacks %s", name))
	}
	return nil
}

// checkSums compares the files that want names, where a sum was taken.
func (s *snapshot) checkSums(want ...string) error {
	for _, e := range s.Files {
		for _, name := range want {
			if e.Name != name || e.Sum == "" {
				continue
			}
			sum, err := sumFile(filepath.Join(s.dir, name))
			if err != nil {
				return err
			}
			if sum != e.Sum {
				return damaged(name, fmt.Errorf("its sum is %s, want %s", sum, e.Sum))
			}
		}
	}
	return nil
}

// VerifySnapshot implements nacre.Runtime.
func (r *Runtime) VerifySnapshot(_ context.Context, dir string) error {
	s, err := r.openSnapshot(dir)
	if err != nil {
		return err
	}
	return s.checkSums(stateFile, memFile, diskFile, initFile)
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
	for _, f := range []struct {
		name      string
		was, want int
		booting   bool // may be another when the guest boots
	}{
		{"Resources.CPUs", s.Birth.CPUs, spec.Resources.CPUs, true},
		{"Resources.MemoryMiB", s.Birth.MemoryMiB, spec.Resources.MemoryMiB, true},
		{"Root.UpperMiB", s.Birth.UpperMiB, spec.Root.UpperMiB, false},
	} {
		if f.was != f.want && !(f.booting && s.FilesOnly) {
			return nil, &nacre.Error{Code: nacre.CodeConflict, Field: f.name,
				Message: fmt.Sprintf("the snapshot was taken with %s %d; it cannot be restored with %d", f.name, f.was, f.want)}
		}
	}
	if id, err := imageID(spec.Root.Image); err == nil && id != s.Birth.Image {
		return nil, nacre.Errorf(nacre.CodeConflict, "the snapshot was taken over another root image; restore it over its own")
	}
	if err := s.checkSums(stateFile); err != nil {
		return nil, err
	}
	return r.launch(ctx, &launch{r: r, spec: spec, snap: s})
}

// restore has the VMM load the snapshot, and tells the guest who and when it is
// before anybody else may reach it.
func (l *launch) restore(ctx context.Context, a *api) error {
	err := a.put(ctx, "/snapshot/load", snapshotLoad{State: "/" + stateName, Mem: memBackend{"File", "/" + memName}, Resume: true})
	if err != nil {
		return err
	}
	entropy := make([]byte, 64)
	_, _ = rand.Read(entropy) // never fails
	err = awaitGuest(ctx, l.jail.root, func() string {
		b, err := json.Marshal(wire.Restored{Hostname: l.spec.Hostname, UnixNano: l.r.cfg.Clock().UnixNano(), Entropy: entropy})
		if err != nil {
			panic(err) // plain data
		}
		return "restored " + string(b)
	})
	if err != nil {
		return err
	}
	// The VMM has the files open: their names are not needed any more.
	for _, name := range []string{stateName, memName} {
		if err := os.Remove(filepath.Join(l.jail.root, name)); err != nil {
			return err
		}
	}
	return nil
}

// fullDisk recognises the one error of the VMM's that has a code of its own.
func fullDisk(text string) bool {
	return strings.Contains(text, unix.ENOSPC.Error()) || strings.Contains(text, "os error 28")
}
