package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/snapfile"
	"github.com/nacrehq/nacre/internal/sparse"
)

// A snapshot is gVisor's checkpoint, the agent's file system, and a manifest that
// is written last. The checkpoint's pages are the guest's memory and, behind it,
// the used parts of the writable layer: to gVisor both are memory, one of them in a
// file, so what a program wrote an instant ago is in it without a sync.
const (
	kernelFile   = "kernel.img"     // gVisor's kernel: processes, sockets, directories
	metaFile     = "pages-meta.img" // where each page belongs
	pagesFile    = "pages.img"
	agentImgFile = "agent.erofs"

	// A snapshot of the files alone has these for the kernel and the agent. Its pages
	// are those of the writable layer.
	layerFile = "layer.img" // which layers there are: one
	treeFile  = "tree.tar"  // its directories, owners, names; and where in the pages its files are
)

// format is of this process's snapshots.
func (r *Runtime) format() snapfile.Format {
	return snapfile.Format{Version: 2, Key: r.key, Files: snapshotFiles, Large: func(name string) bool { return name == pagesFile }, Sum: snapfile.Sum}
}

// vital are the files that are verified before anything is started from them.
func vital(filesOnly bool) []string {
	if filesOnly {
		return []string{layerFile, treeFile, metaFile}
	}
	return []string{kernelFile, metaFile}
}

func snapshotFiles(filesOnly bool) []string {
	if filesOnly {
		return append(vital(filesOnly), pagesFile)
	}
	return append(vital(filesOnly), pagesFile, agentImgFile)
}

// birth is what a machine was booted from and its snapshots can only be restored
// on. It is kept in the state directory, for the daemon may be another one by the
// time a snapshot is taken, with another version of all this.
type birth struct {
	snapfile.Birth
	Spec  json.RawMessage // of the guest, in OCI's words
	Agent string          // the path of its file system on this host
	Upper string          // the path of its writable layer; "" of a guest that an older release booted
	Group string          // of gVisor's own cgroups: the guest's
	Tasks int             // how many the guest may have; 0 in an older release's snapshots
}

// birth records what the machine is booted from.
func (l *launch) birth(agent string) (b birth, err error) {
	s := l.spec
	b = birth{Agent: agent, Upper: filepath.Join(s.Root.UpperDir, upperFile), Group: string(s.ID), Tasks: guestTasks(s.Resources.MaxPIDs)}
	b.Birth = snapfile.Birth{Key: l.r.key, CPUs: s.Resources.CPUs, MemoryMiB: s.Resources.MemoryMiB, UpperMiB: s.Root.UpperMiB}
	guest := guestSpec(s)
	if !l.fresh() {
		guest = &specs.Spec{} // not over ours, whose lists are everybody's
		if err = json.Unmarshal(l.snap.birth.Spec, guest); err != nil {
			return b, err
		}
		guest.Hostname, b.Group = s.Hostname, l.snap.birth.Group
	}
	if b.Spec, err = json.Marshal(guest); err != nil {
		return b, err
	}
	if b.Image, err = snapfile.ImageID(s.Root.Image); err != nil {
		return b, err
	}
	if l.snap != nil {
		if err := l.snap.FitsImage(b.Image); err != nil {
			return b, err
		}
	}
	return b, snapfile.WriteJSON(filepath.Join(s.StateDir, bootFile), b)
}

// Snapshot implements nacre.Machine.
func (m *machine) Snapshot(ctx context.Context, dir string, opt nacre.SnapshotOptions) (info nacre.SnapshotInfo, err error) {
	if err := m.Gone(); err != nil {
		return info, err
	}
	done, err := m.Hold.ForSnapshot()
	if err != nil {
		return info, err
	}
	defer done()
	s := &saving{m: m, dir: dir, opt: opt}
	defer s.close()
	if err = s.prepare(ctx); err == nil {
		err = s.save(ctx)
	}
	if err != nil {
		s.discard()
		return info, snapshotError(ctx, m.goneOr(err))
	}
	return s.info, nil
}

// snapshotError gives an error its code. What gVisor says comes as a text.
func snapshotError(ctx context.Context, err error) error {
	var own *nacre.Error
	switch {
	case errors.As(err, &own):
		return err
	case ctx.Err() != nil:
		return nacre.Wrap(nacre.CodeDeadline, errors.Join(ctx.Err(), err), "the snapshot took longer than it was given; the sandbox goes on")
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) ||
		strings.Contains(err.Error(), unix.ENOSPC.Error()) || strings.Contains(err.Error(), unix.EDQUOT.Error()):
		return nacre.Wrap(nacre.CodeNoSpace, err, "the node's disk is too full for the snapshot; the sandbox goes on")
	}
	return fmt.Errorf("snapshot: %w", err)
}

// saving is one snapshot being taken.
type saving struct {
	m     *machine
	dir   string
	opt   nacre.SnapshotOptions
	birth birth
	files []string      // made by us
	out   []*os.File    // what gVisor writes, the pages last
	ahead bool          // the pages' file has room at its end
	copy  *copied       // the pages go there first; nil: to the disk while the guest stands still
	stood time.Duration // the guest, in calls that stop it by themselves
	begin time.Time
	info  nacre.SnapshotInfo

	outgrown bool // the copy had no room for the guest
}

func (s *saving) discard() {
	for _, f := range s.files {
		path := filepath.Join(s.dir, f)
		if f != agentImgFile {
			_ = os.Truncate(path, 0) // gVisor may hold what it failed to write open
		}
		_ = os.Remove(path)
	}
}

func (s *saving) create(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		s.files = append(s.files, name)
	}
	return f, err
}

// prepare does what can fail before the guest stands still.
func (s *saving) prepare(ctx context.Context) error {
	if err := snapfile.Empty(s.dir); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(s.m.st.Dir, bootFile))
	if err == nil {
		err = json.Unmarshal(b, &s.birth)
	}
	if err != nil {
		return nacre.Wrap(nacre.CodeUnsupported, err, "the machine was started by a version of nacre that took no snapshots")
	}
	if err := s.openFiles(ctx); err != nil || s.opt.FilesOnly {
		return err
	}
	s.m.notice()
	s.files = append(s.files, agentImgFile)
	return sparse.Share(s.birth.Agent, filepath.Join(s.dir, agentImgFile))
}

// openFiles makes the files that gVisor writes.
func (s *saving) openFiles(ctx context.Context) error {
	for _, name := range append(vital(s.opt.FilesOnly), pagesFile) {
		f, err := s.create(name)
		if err != nil {
			return err
		}
		s.out = append(s.out, f)
	}
	if s.opt.FilesOnly {
		return nil
	}
	return s.passCache(ctx)
}

// passCache has many pages written past the host's cache: a copy of them there takes
// memory that the host may have to find first, and time of its processors (512 MiB: 264
// ms, and 86 without). The file has room ahead, or each write would look for its own.
func (s *saving) passCache(ctx context.Context) error {
	u, err := s.m.Usage(ctx)
	if err != nil || u.MemoryBytes < uncachedSize {
		return err
	}
	last := len(s.out) - 1
	f, err := os.OpenFile(s.out[last].Name(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil // a file system that always has its cache
	}
	s.out[last].Close()
	s.out[last] = f
	s.ahead = true
	if unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, u.MemoryBytes) != nil {
		// It may need less than that. What was had so far would be missed elsewhere.
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
	return s.makeCopy(ctx, u.MemoryBytes)
}

// byItself tells whether gVisor stops the guest for as long as it must.
func (s *saving) byItself() bool { return s.opt.KeepRunning && !s.opt.FilesOnly }

// close closes the files, and gives back the room that the pages did not need.
func (s *saving) close() error {
	s.dropCopy()
	var err error
	if s.ahead {
		s.ahead = false
		pages := s.out[len(s.out)-1]
		var st os.FileInfo
		if st, err = pages.Stat(); err == nil {
			err = pages.Truncate(st.Size())
		}
	}
	for _, f := range s.out {
		f.Close()
	}
	s.out = nil
	return err
}

// save stops the guest, writes it, and lets it go on where it must.
func (s *saving) save(ctx context.Context) error {
	m := s.m
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := dialControl(m.st.Dir)
	if err != nil {
		return callError{err, false}
	}
	defer c.Close()
	if err := m.Hold.Begin(); err != nil {
		return err
	}
	s.begin = time.Now()
	if !s.byItself() {
		if err := call(c, boot.ContMgrPause, nil, nil); err != nil {
			return err // the sandbox is gone
		}
		m.Hold.Stopped()
	}
	if s.opt.FilesOnly {
		err = s.checkpointFiles(c)
	} else {
		err = s.checkpoint(ctx, c)
	}
	s.info.Stopped = time.Since(s.begin)
	if s.byItself() {
		s.info.Stopped = s.stood
		err = errors.Join(err, m.Hold.Ended())
	}
	if err == nil {
		err = ctx.Err()
	}
	if m.Hold.Held() && s.opt.KeepRunning && err == nil {
		err = m.letGo(c)
		s.info.Stopped = time.Since(s.begin)
	}
	if err == nil {
		err = s.finish(ctx)
	}
	if err != nil && m.Hold.Held() {
		err = errors.Join(err, m.letGo(c))
	}
	return err
}

// checkpoint has gVisor write the guest. It is asked for a copy of a guest that
// goes on, never for the last one: that would end the guest even when it fails. A
// guest that is to stand still is held beside that, so that it does not go on before
// it is known whether it may.
func (s *saving) checkpoint(ctx context.Context, c *urpc.Client) error {
	err := s.writeKernel(c)
	for tries := 1; tries < checkpointTries && (raced(err) || s.outgrew(err)) && ctx.Err() == nil; tries++ {
		s.m.r.cfg.Log.Warn("gVisor could not write the guest; it is asked again", "machine", s.m.ID(), "error", err)
		if err = s.reopenFiles(ctx); err == nil {
			err = s.writeKernel(c)
		}
	}
	return err
}

func (s *saving) writeKernel(c *urpc.Client) error {
	opt := control.SaveOpts{
		Metadata:                       statefile.CompressionLevelNone.ToMetadata(),
		AppMFExcludeCommittedZeroPages: true,
		HavePagesFile:                  true,
		Resume:                         true,
	}
	begin := time.Now()
	defer func() { s.stood += time.Since(begin) }()
	opt.Files = slices.Clone(s.out)
	if s.copy != nil {
		opt.Files[len(s.out)-1] = s.copy.file
	}
	return call(c, boot.ContMgrCheckpoint, &opt, nil)
}

// checkpointTries is how often gVisor is asked for a checkpoint at most.
const checkpointTries = 5

// raced tells whether gVisor's kernel changed while gVisor walked through it: the
// goroutine that receives the guest's packets goes on meanwhile (they are taken in
// after the checkpoint), and moves its buffers. That ends the walk now and then, and
// does no harm to the guest.
func raced(err error) bool {
	var failed callError
	return errors.As(err, &failed) && failed.answered && strings.Contains(err.Error(), "encoding error: ")
}

// reopenFiles makes the files anew, for gVisor may hold those that it did not finish.
func (s *saving) reopenFiles(ctx context.Context) error {
	s.dropCopy()
	for _, f := range s.out {
		err := errors.Join(f.Truncate(0), os.Remove(f.Name()), f.Close())
		if err != nil {
			return err
		}
	}
	s.out, s.ahead = nil, false
	return s.openFiles(ctx)
}

// checkpointFiles has gVisor write the writable layer.
func (s *saving) checkpointFiles(c *urpc.Client) error {
	return call(c, boot.ContMgrFSSave, &boot.FSSaveArgs{FilePayload: urpc.FilePayload{Files: s.out}}, nil)
}

// finish describes what was written.
func (s *saving) finish(ctx context.Context) error {
	if s.copy != nil {
		if err := s.copy.writeTo(ctx, s.out[len(s.out)-1]); err != nil {
			return err
		}
	}
	if err := s.close(); err != nil {
		return err
	}
	s.files = append(s.files, snapfile.Manifest)
	stopped := s.info.Stopped
	format := s.m.r.format()
	format.Sum = func(path string) (string, error) {
		if filepath.Base(path) == agentImgFile {
			return s.m.r.agentSum(s.birth.Agent)
		}
		return snapfile.Sum(path)
	}
	info, err := format.Write(s.dir, s.birth, s.opt)
	s.info, s.info.Stopped = info, stopped
	return err
}

// agentSum returns the sum of an agent's file system, of which each snapshot holds the
// file itself. It is named after its content, so once is enough: processors without
// instructions for it take 30 ms.
func (r *Runtime) agentSum(path string) (string, error) {
	if sum, ok := r.sums.Load(path); ok {
		return sum.(string), nil
	}
	sum, err := snapfile.Sum(path)
	if err == nil {
		r.sums.Store(path, sum)
	}
	return sum, err
}
