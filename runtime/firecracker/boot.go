package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/machines"
	"github.com/nacrehq/nacre/internal/pidfd"
	"github.com/nacrehq/nacre/internal/sparse"
	"github.com/nacrehq/nacre/internal/workingset"
	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// Files in a machine's state directory.
const (
	consoleFile = "console.log" // with Config.Debug
	hungFile    = "hung"        // the VMM did not answer and was killed
	birthFile   = "boot.json"   // what it was booted from, for its snapshots
)

// upperFile is the writable layer, in RootFS.UpperDir.
const upperFile = "upper"

const (
	// vmmOverhead is what the VMM may use beside the guest's memory, in MiB.
	vmmOverhead = 32
	// kernelShare is what the guest's kernel keeps for itself, in MiB: a sandbox that
	// was promised memory has it.
	kernelShare = 8
	// vmmTasks caps the VMM's own threads; the guest's tasks are none of the host's.
	vmmTasks = 128
	// defaultPIDs caps the tasks of a guest whose spec does not say.
	defaultPIDs = 1024
	maxCPUs     = 32
)

// Start implements nacre.Runtime.
func (r *Runtime) Start(ctx context.Context, spec nacre.MachineSpec) (nacre.Machine, error) {
	if err := validate(spec); err != nil {
		return nil, err
	}
	return r.launch(ctx, &launch{r: r, spec: spec})
}

func validate(s nacre.MachineSpec) error {
	switch {
	case !s.ID.Valid():
		return nacre.Invalidf("ID", "%q is no machine id", s.ID)
	case s.Runtime != "" && s.Runtime != nacre.RuntimeFirecracker:
		return nacre.Errorf(nacre.CodeUnsupported, "the runtime %.40q is not Firecracker", s.Runtime)
	case s.Resources.CPUs < 1 || s.Resources.CPUs > maxCPUs:
		return nacre.Invalidf("Resources.CPUs", "a machine has 1 to %d CPUs", maxCPUs)
	case s.Resources.MemoryMiB < 64:
		return nacre.Invalidf("Resources.MemoryMiB", "a microVM needs at least 64 MiB of memory")
	case s.Root.UpperMiB < 16:
		return nacre.Invalidf("Root.UpperMiB", "a microVM needs at least 16 MiB of disk")
	case !s.Slot.Guest.IsValid():
		return nacre.Invalidf("Slot.Guest", "the slot has no guest address")
	case len(s.Hostname) > 64:
		return nacre.Invalidf("Hostname", "a host name has at most 64 characters")
	case !filepath.IsAbs(s.AgentPath):
		return nacre.Invalidf("AgentPath", "%q is no absolute path", s.AgentPath)
	}
	return nil
}

// launch is one start of a VMM.
type launch struct {
	r     *Runtime
	spec  nacre.MachineSpec
	snap  *snapshot // to restore; nil for a new guest
	jail  jail
	birth birth
	base  *os.File // the memory that the guest goes on with; nil for one that boots
	pages *promise // of the host's large ones; nil for a guest without
	pager *pager   // nil for a guest without

	begun      time.Time         // when the VMM's start was begun
	resumed    time.Duration     // from then on, until the guest went on
	faults     workingset.Faults // of the VMM, until the guest answered
	prefetched int64             // how much of the base was read ahead, in bytes
}

// launch boots a machine that is new or restored.
func (r *Runtime) launch(ctx context.Context, l *launch) (nacre.Machine, error) {
	spec := &l.spec
	if spec.Resources.MaxPIDs == 0 {
		spec.Resources.MaxPIDs = defaultPIDs
	}
	var err error
	if l.pages, err = r.promisePages(*spec); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.pool.release(l.pages)
		}
	}()
	// One that waits for its turn does not hang.
	if err = r.boots.Acquire(ctx, 1); err != nil {
		return nil, nacre.Wrap(nacre.CodeDeadline, err, "the machine's start was called off")
	}
	defer r.boots.Release(1)
	m, err := r.machines.Start(ctx, spec.ID, r.cfg.BootTimeout, func(ctx context.Context) (*machine, error) { return r.boot(ctx, l) })
	if err != nil {
		return nil, err
	}
	return m, nil
}

// boot makes the machine, or leaves nothing.
func (r *Runtime) boot(ctx context.Context, l *launch) (m *machine, err error) {
	spec := l.spec
	g := r.cgroup.Group(string(spec.ID))
	if err = g.Create(); errors.Is(err, fs.ErrExist) {
		return nil, nacre.Wrap(nacre.CodeConflict, err, "machine "+string(spec.ID)+" exists already")
	}
	l.jail = r.jailOf(spec.ID, spec.StateDir)
	var proc *pidfd.Process
	defer func() {
		if err == nil {
			return
		}
		err = l.explain(err)
		if l.base != nil {
			l.base.Close()
		}
		if proc != nil {
			proc.Kill()
			_, _, _ = proc.Wait()
			proc.Close()
		}
		l.pager.end()
		err = errors.Join(err, g.Destroy(context.WithoutCancel(ctx)), disconnectTap(spec.Slot), l.jail.remove())
		for _, f := range []string{birthFile, consoleFile, pagesFile} {
			_ = os.Remove(filepath.Join(spec.StateDir, f))
		}
		_ = os.Remove(filepath.Join(spec.Root.UpperDir, upperFile))
	}()
	if err == nil {
		err = g.Limit(cgroup.Limits{
			CPUs:   int64(spec.Resources.CPUs),
			Memory: int64(spec.Resources.MemoryMiB+kernelShare+vmmOverhead+l.cacheMiB()) << 20,
			PIDs:   vmmTasks,
		})
	}
	if err != nil {
		return nil, fmt.Errorf("cgroup of machine %s: %w", spec.ID, err)
	}
	if err := l.prepare(); err != nil {
		return nil, fmt.Errorf("prepare machine %s: %w", spec.ID, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.begun = time.Now()
	defer l.prefetch()()
	if l.birth.HugePages && !l.fresh() {
		if l.pager, err = l.startPager(g); err != nil {
			return nil, fmt.Errorf("start machine %s: %w", spec.ID, err)
		}
	}
	if proc, err = r.startVMM(ctx, l.jail, spec, g); err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.ID, err)
	}
	r.pool.began(l.pages, proc.PID)
	goOn := proc.KillOnEnd(ctx)
	if err := l.begin(ctx, proc); err != nil {
		goOn()
		return nil, fmt.Errorf("boot machine %s: %w", spec.ID, err)
	}
	if !goOn() {
		return nil, context.Cause(ctx)
	}
	l.learn(proc)
	return l.machine(proc), nil
}

// machine is what the start has come to.
func (l *launch) machine(proc *pidfd.Process) *machine {
	r, spec := l.r, l.spec
	st := state{
		Trace: machines.Trace{BootID: r.bootID, PID: proc.PID, Start: proc.Start, Dir: spec.StateDir},
		Upper: spec.Root.UpperDir, Program: filepath.Base(r.cfg.Firecracker),
		Slot: slotName{spec.Slot.Name, spec.Slot.Path},
	}
	if l.pages != nil {
		st.HugePages = l.pages.pages
	}
	if l.pager != nil {
		st.Pager = &pagerTrace{l.pager.proc.PID, l.pager.proc.Start}
	}
	m := newMachine(r, spec.ID, proc, st)
	m.pages, m.pager = l.pages, l.pager
	if l.birth.Tracks {
		m.base.set(l.base)
	} else if l.base != nil {
		l.base.Close()
	}
	return m
}

// cacheMiB is the room in the machine's limit for what the host keeps in its cache of
// the machine's files: a snapshot being written, above all. The guest's own memory is
// bounded by the VMM.
func (l *launch) cacheMiB() int {
	if n := l.r.cfg.CacheMiB; n > 0 {
		return n
	}
	return l.spec.Resources.MemoryMiB
}

// explain adds what the guest left as its last word, or on its console.
func (l *launch) explain(err error) error {
	if w, ok := readLastWord(l.spec.Root.UpperDir); ok && w.Failed != "" {
		err = fmt.Errorf("%w; the guest says: %q", err, w.Failed)
	}
	if l.r.cfg.Debug {
		b, _ := os.ReadFile(filepath.Join(l.spec.StateDir, consoleFile))
		l.r.cfg.Log.Warn("console of a machine that did not start", "machine", l.spec.ID, "console", string(b[max(0, len(b)-4000):]))
	}
	return err
}

// prepare brings the machine's files into its jail and makes its network.
func (l *launch) prepare() error {
	s, r := l.spec, l.r
	if err := checkImage(s.Root.Image); err != nil {
		return err
	}
	initImage, err := l.initImage()
	if err != nil {
		return err
	}
	if l.birth, err = l.born(initImage); err != nil {
		return err
	}
	if err := l.jail.make(); err != nil {
		return err
	}
	upper := filepath.Join(s.Root.UpperDir, upperFile)
	from := ""
	if l.snap != nil {
		from = l.snap.Path(diskFile)
	} else if from, err = r.stock.emptyUpper(filepath.Dir(s.AgentPath), s.Root.UpperMiB); err != nil {
		return err
	}
	if err := sparse.Clone(from, upper, 0o600); err != nil {
		return err
	}
	if err := l.jail.own(upper, upperName); err != nil {
		return err
	}
	shared := map[string]string{initName: initImage, rootName: s.Root.Image}
	if l.fresh() {
		shared[kernelName] = r.cfg.Kernel
	} else {
		shared[stateName] = l.snap.Path(stateFile)
		shared[memName] = l.snap.Path(memFile)
		if l.base, err = os.Open(l.snap.Path(memFile)); err != nil {
			return err
		}
	}
	for name, src := range shared {
		if err := l.jail.bring(src, name); err != nil {
			return err
		}
	}
	return connectTap(s.Slot, l.jail.uid)
}

// fresh tells whether the guest boots, and does not go on.
func (l *launch) fresh() bool { return l.snap == nil || l.snap.FilesOnly }

// initImage returns the drive with the spec's agent, or the one that the
// snapshot's guest goes on with.
func (l *launch) initImage() (string, error) {
	dir := filepath.Dir(l.spec.AgentPath)
	if l.fresh() {
		return l.r.stock.images.Of(l.spec.AgentPath, l.r.stock.initImage)
	}
	return l.r.stock.images.Keep(l.snap.Path(initFile), l.snap.birth.Init, dir, func() error { return l.snap.Check(initFile) })
}

// begin configures the VMM and returns when the guest's first program answers.
func (l *launch) begin(ctx context.Context, proc *pidfd.Process) error {
	ctx, cancel := context.WithCancelCause(ctx)
	// A VMM that ends ends the waiting; its socket may stay as a file.
	ended := make(chan struct{})
	defer func() { cancel(nil); <-ended }()
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if err := l.pager.failure(); err != nil {
				cancel(err)
				return
			}
			if !proc.Alive() {
				cancel(errors.New("the VMM has ended"))
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	a := newAPI(l.jail.root, apiName)
	if _, err := a.awaitUp(ctx); err != nil {
		return err
	}
	if !l.fresh() {
		return l.restore(ctx, a)
	}
	if l.birth.Balloon {
		if err := a.put(ctx, "/balloon", newBalloon()); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		path string
		body any
	}{
		{"/machine-config", l.machineConfig()},
		{"/boot-source", bootSource{"/" + kernelName, l.bootArgs()}},
		{"/drives/init", drive{ID: "init", Path: "/" + initName, IsRoot: true, ReadOnly: true}},
		{"/drives/root", drive{ID: "root", Path: "/" + rootName, ReadOnly: true}},
		{"/drives/upper", drive{ID: "upper", Path: "/" + upperName}},
		{"/network-interfaces/eth0", networkInterface{"eth0", tapLink, wire.GuestMAC}},
		{"/vsock", vsock{3, "/" + vsockName}},
		{"/actions", map[string]string{"action_type": "InstanceStart"}},
	} {
		if err := a.put(ctx, c.path, c.body); err != nil {
			return err
		}
	}
	return awaitGuest(ctx, l.jail.root, func() string { return "ping" })
}

func (l *launch) machineConfig() machineConfig {
	c := machineConfig{CPUs: l.spec.Resources.CPUs, MemoryMiB: l.spec.Resources.MemoryMiB + kernelShare, Track: l.birth.Tracks}
	if l.birth.HugePages {
		c.Pages = "2M"
	}
	return c
}

func (l *launch) bootArgs() string {
	b := wire.Boot{Hostname: l.spec.Hostname, MaxPIDs: l.spec.Resources.MaxPIDs, MTU: l.spec.Slot.MTU, UpperMiB: l.spec.Root.UpperMiB}
	// Without a console the first program would have no standard streams, of which Go
	// wants all three; what it says goes to /dev/null outside.
	args := []string{"console=ttyS0", "reboot=k", "panic=1", "nomodule", "rootfstype=erofs", "init=/init", "random.trust_cpu=on"}
	if !l.r.cfg.Debug {
		args = append(args, "quiet", "loglevel=0")
	}
	if l.r.cfg.BootArgs != "" {
		args = append(args, l.r.cfg.BootArgs)
	}
	return strings.Join(append(args, b.CommandLine()), " ")
}
