package gvisor

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/cpuid"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/snapfile"
)

// gvisorVersion is the version in go.mod (a test compares them). gVisor reads only
// its own version's checkpoints.
const gvisorVersion = "v0.0.0-20260905035102-160fafc42237"

// restoreKey names what a snapshot can only be restored on: the processor has all
// features that the guest's programs have seen, and no others, for those that it starts
// from then on see what is there (letCPUID).
func restoreKey() string {
	cpuid.Initialize()
	fs := cpuid.HostFeatureSet()
	sum := sha256.Sum256([]byte(fs.FlagString() + unnamedFeatures(fs)))
	return fmt.Sprintf("gvisor/%s/%s/%x", gvisorVersion, runtime.GOARCH, sum[:6])
}

// snapshot is a snapshot that was opened to be restored or verified.
type snapshot struct {
	*snapfile.Snapshot
	birth birth
}

// openSnapshot reads the manifest and refuses what cannot be restored here.
func (r *Runtime) openSnapshot(dir string) (*snapshot, error) {
	s := &snapshot{}
	var err error
	s.Snapshot, err = r.format().Open(dir, &s.birth)
	return s, err
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
	if !filepath.IsAbs(spec.AgentPath) {
		return nil, nacre.Invalidf("AgentPath", "%q is no absolute path", spec.AgentPath)
	}
	s, err := r.openSnapshot(dir)
	if err != nil {
		return nil, err
	}
	if err := s.Fits(spec); err != nil {
		return nil, err
	}
	if err := s.Check(vital(s.FilesOnly)...); err != nil {
		return nil, err
	}
	return r.launch(ctx, &launch{r: r, spec: spec, snap: s})
}

// agentImage returns the path of the agent's file system: the spec's agent, or the
// one that the snapshot's guest goes on with.
func (l *launch) agentImage() (string, error) {
	if l.fresh() {
		return l.r.agents.Of(l.spec.AgentPath, agentImage)
	}
	return l.r.agents.Keep(l.snap.Path(agentImgFile), filepath.Base(l.snap.birth.Agent), filepath.Dir(l.spec.AgentPath),
		func() error { return l.snap.Check(agentImgFile) })
}

// fresh tells whether the guest boots, with or without files that it has already.
func (l *launch) fresh() bool { return l.snap == nil || l.snap.FilesOnly }

// giveLayer hands over the files that a fresh guest begins with.
func (l *launch) giveLayer() error {
	if l.snap == nil || !l.snap.FilesOnly {
		return nil
	}
	for _, name := range []string{layerFile, treeFile, metaFile, pagesFile} {
		f, err := l.open(l.snap.Path(name), os.O_RDONLY)
		if err != nil {
			return err
		}
		l.give("fs-restore-fds", f)
	}
	return nil
}

// uncachedSize is from where on pages are written and read past the host's cache: what
// is that large would fill the machine's memory limit with a second copy of it, and
// goes to the disk and comes from there anyway.
const uncachedSize = 128 << 20

func openForLoad(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err == nil && st.Size() >= uncachedSize && !isCached(int(f.Fd()), st.Size()) {
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
func isCached(fd int, size int64) bool {
	var c unix.Cachestat_t
	err := unix.Cachestat(uint(fd), &unix.CachestatRange{Len: uint64(size)}, &c, 0)
	return err == nil && int64(c.Cache)*int64(os.Getpagesize()) > size/2
}
