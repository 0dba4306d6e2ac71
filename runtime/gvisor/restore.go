package gvisor

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/cpuid"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/nacrehq/nacre"
)

// gvisorVersion is the version in go.mod (a test compares them). gVisor reads only
// its own version's checkpoints.
const gvisorVersion = "v0.0.0-20260905035102-160fafc42237"

// restoreKey names what a snapshot can only be restored on. gVisor wants the
// processor to have all features that the guest's programs have seen.
func restoreKey() string {
	cpuid.Initialize()
	fs := cpuid.HostFeatureSet()
	sum := sha256.Sum256([]byte(fs.FlagString()))
	return fmt.Sprintf("gvisor/%s/%s/%x", gvisorVersion, runtime.GOARCH, sum[:6])
}

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
	missing := map[string]bool{}
	for _, name := range s.all() {
		missing[name] = true
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
		if st.Size() != e.Size {
			return damaged(e.Name, fmt.Errorf("%d bytes, want %d", st.Size(), e.Size))
		}
	}
	for name := range missing {
		return damaged(manifestFile, fmt.Errorf("it lacks %s", name))
	}
	return nil
}

// checkSums compares the files that want names.
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
	return s.checkSums(s.all()...)
}

// Restore implements nacre.Runtime.
func (r *Runtime) Restore(ctx context.Context, spec nacre.MachineSpec, dir string) (nacre.Machine, error) {
	if err := validate(spec); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(spec.AgentPath) {
		return nil, nacre.Invalidf("AgentPath", "%q is no absolute path", spec.AgentPath)
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
	if err := s.checkSums(s.small()...); err != nil {
		return nil, err
	}
	return r.launch(ctx, &launch{r: r, spec: spec, snap: s})
}

// agentImage returns the path of the agent's file system: the spec's agent, or the
// one that the snapshot's guest goes on with.
func (l *launch) agentImage() (string, error) {
	if l.fresh() {
		return l.r.agents.image(l.spec.AgentPath)
	}
	return l.r.agents.keep(filepath.Join(l.snap.dir, agentImgFile), filepath.Base(l.snap.Birth.Agent), filepath.Dir(l.spec.AgentPath),
		func() error { return l.snap.checkSums(agentImgFile) })
}

// fresh tells whether the guest boots, with or without files that it has already.
func (l *launch) fresh() bool { return l.snap == nil || l.snap.FilesOnly }

// giveLayer hands over the files that a fresh guest begins with.
func (l *launch) giveLayer() error {
	if l.snap == nil || !l.snap.FilesOnly {
		return nil
	}
	for _, name := range []string{layerFile, treeFile, metaFile, pagesFile} {
		f, err := l.open(filepath.Join(l.snap.dir, name), os.O_RDONLY)
		if err != nil {
			return err
		}
		l.give("fs-restore-fds", f)
	}
	return nil
}

// load has gVisor make the snapshot's kernel its own. The pages come behind: the
// guest runs as soon as the kernel is there, and waits for a page that it touches
// before its turn.
func (s *snapshot) load(c *urpc.Client) error {
	opt := boot.RestoreOpts{HavePagesFile: true, Background: true}
	for _, name := range []string{kernelFile, metaFile, pagesFile} {
		f, err := openForLoad(filepath.Join(s.dir, name))
		if err != nil {
			return err
		}
		defer f.Close()
		opt.Files = append(opt.Files, f)
	}
	if err := c.Call(boot.ContMgrRestore, &opt, nil); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}

// uncachedSize is from where on pages are read past the host's cache: what is
// larger than that fills the machine's memory limit with a second copy of it, and
// comes from the disk anyway. (2 GiB: 2.5 s instead of 3.7 s until all is there;
// 512 MiB: 0.6 s instead of 0.5 s.)
const uncachedSize = 1 << 30

func openForLoad(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err == nil && st.Size() >= uncachedSize && !isCached(f, st.Size()) {
		// A file system without O_DIRECT is read through its cache.
		if direct, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0); err == nil {
			f.Close()
			return direct, nil
		}
	}
	return f, nil
}

// isCached tells whether most of the file is in the host's cache, as a snapshot is
// that was just taken, or restored before: it is faster from there, and what is not
// on the disk yet need not go there first. Kernels before 6.5 cannot tell.
func isCached(f *os.File, size int64) bool {
	var c unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Len: uint64(size)}, &c, 0)
	return err == nil && int64(c.Cache)*int64(os.Getpagesize()) > size/2
}
