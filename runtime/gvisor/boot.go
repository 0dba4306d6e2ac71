package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"gvisor.dev/gvisor/runsc/boot"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/machines"
	"github.com/nacrehq/nacre/internal/pidfd"
	"github.com/nacrehq/nacre/internal/thread"
)

// Files in a machine's state directory.
const (
	socketFile = "control.sock" // gVisor's control server
	fatalFile  = "fatal.log"    // what the sandbox says when it cannot go on
	debugFile  = "debug.log"    // with Config.Debug
	bootFile   = "boot.json"    // what it was booted from, for its snapshots
	noticeFile = "notice.pipe"  // tells the sandbox that a snapshot is about to be taken
)

// upperFile is the writable layer, in RootFS.UpperDir.
const upperFile = "upper"

// memoryOverhead is what the sandbox's own kernel may use beside the guest's
// memory before the machine counts as out of memory, in MiB.
const memoryOverhead = 64

// bootCPUs is what a machine has at least until it has booted, which takes as much
// processor time as the quota of one processor allows in a period: it would stand
// still for half of the boot.
const bootCPUs = 2

// bootTimeout ends a boot that hangs, whatever the caller's patience; a slow host
// takes a second.
const bootTimeout = time.Minute

// defaultPIDs caps the host tasks of a machine whose spec does not say.
const defaultPIDs = 1024

// Start implements nacre.Runtime.
func (r *Runtime) Start(ctx context.Context, spec nacre.MachineSpec) (nacre.Machine, error) {
	if err := validate(spec); err != nil {
		return nil, err
	}
	return r.launch(ctx, &launch{r: r, spec: spec})
}

// launch boots a machine that is new or restored.
func (r *Runtime) launch(ctx context.Context, l *launch) (nacre.Machine, error) {
	spec := &l.spec
	if spec.Resources.MaxPIDs == 0 {
		spec.Resources.MaxPIDs = defaultPIDs
	}
	m, err := r.machines.Start(ctx, spec.ID, bootTimeout, func(ctx context.Context) (*machine, error) {
		defer r.fillAhead()
		return r.boot(ctx, l)
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func validate(s nacre.MachineSpec) error {
	switch {
	case !s.ID.Valid():
		return nacre.Invalidf("ID", "%q is no machine id", s.ID)
	case s.Runtime != "" && s.Runtime != nacre.RuntimeGVisor:
		return nacre.Errorf(nacre.CodeUnsupported, "the runtime %.40q is not gVisor", s.Runtime)
	case s.Resources.CPUs < 1:
		return nacre.Invalidf("Resources.CPUs", "a machine needs at least one CPU")
	case s.Resources.CPUs > maxCPUs:
		return nacre.Invalidf("Resources.CPUs", "a machine has at most %d CPUs", maxCPUs)
	case s.Resources.MemoryMiB < 32:
		return nacre.Invalidf("Resources.MemoryMiB", "a machine needs at least 32 MiB of memory")
	case s.Root.UpperMiB < 1:
		return nacre.Invalidf("Root.UpperMiB", "a machine needs at least 1 MiB of disk")
	case !s.Slot.Guest.IsValid():
		return nacre.Invalidf("Slot.Guest", "the slot has no guest address")
	}
	return nil
}

// boot makes the machine, or leaves nothing.
func (r *Runtime) boot(ctx context.Context, l *launch) (m *machine, err error) {
	spec := l.spec
	if err := r.boots.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer r.boots.Release(1)

	p, err := r.sandboxFor(spec.ID, !l.fresh())
	if err != nil {
		return nil, fmt.Errorf("sandbox of machine %s: %w", spec.ID, err)
	}
	g, proc := p.group, p.proc
	defer func() {
		p.orders.Close()
		if err == nil {
			return
		}
		err = explain(err, spec.StateDir)
		p.end(context.WithoutCancel(ctx))
		err = errors.Join(err, g.Destroy(context.WithoutCancel(ctx)))
		for _, f := range []string{socketFile, fatalFile, debugFile, bootFile, noticeFile} {
			_ = os.Remove(filepath.Join(spec.StateDir, f))
		}
		_ = os.Remove(filepath.Join(spec.Root.UpperDir, upperFile))
	}()
	err = g.Limit(cgroup.Limits{
		CPUs:   int64(max(spec.Resources.CPUs, bootCPUs)),
		Memory: int64(spec.Resources.MemoryMiB+memoryOverhead) << 20,
		PIDs:   int64(spec.Resources.MaxPIDs),
	})
	if err != nil {
		return nil, fmt.Errorf("cgroup of machine %s: %w", spec.ID, err)
	}
	r.trace("1-process")
	l.proc = proc
	defer l.close()
	if err := l.prepare(); err != nil {
		return nil, fmt.Errorf("prepare machine %s: %w", spec.ID, err)
	}
	r.trace("2-open")
	if err := l.takeLink(); err != nil {
		return nil, err
	}
	if err := l.orders.send(p.orders); err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.ID, err)
	}
	r.trace("3-orders")
	goOn := proc.KillOnEnd(ctx)
	if err := l.handshake(); err != nil {
		goOn()
		return nil, fmt.Errorf("boot machine %s: %w", spec.ID, err)
	}
	if !goOn() {
		return nil, context.Cause(ctx)
	}
	if err := g.LimitCPUs(spec.Resources.CPUs); err != nil {
		return nil, fmt.Errorf("cgroup of machine %s: %w", spec.ID, err)
	}
	return newMachine(r, spec.ID, proc, state{
		Trace: machines.Trace{BootID: r.bootID, PID: proc.PID, Start: proc.Start, Dir: spec.StateDir},
		Guest: spec.Slot.Guest.Addr(),
		Group: g.Name(),
	}), nil
}

// explain adds what the sandbox said when it gave up.
func explain(err error, dir string) error {
	if said := lastWords(dir); said != "" {
		return fmt.Errorf("%w; the sandbox says: %s", err, said)
	}
	return err
}

// launch is one start of a sandbox process.
type launch struct {
	r    *Runtime
	spec nacre.MachineSpec
	snap *snapshot // to restore; nil for a new guest
	proc *pidfd.Process

	orders orders
	own    []*os.File // closed at the end
	// The sandbox writes one byte to syncEnd when it has booted.
	sync, syncEnd *os.File
	control       *os.File // the sandbox listens on it
	loader        *os.File // what gVisor asks for the snapshot to restore; nil for a fresh guest
	links         *boot.CreateLinksAndRoutesArgs
}

func (l *launch) close() {
	for _, f := range l.own {
		f.Close()
	}
}

// give hands the file to the sandbox as the value of a flag.
func (l *launch) give(flag string, f *os.File) { l.orders.give(flag, f) }

func (l *launch) open(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err == nil {
		l.own = append(l.own, f)
	}
	return f, err
}

// prepare opens all that the sandbox gets: it has no access to the host's files
// but through these descriptors.
func (l *launch) prepare() error {
	s := l.spec
	null, err := l.open(os.DevNull, os.O_RDWR)
	if err != nil {
		return err
	}
	fatal, err := l.open(filepath.Join(s.StateDir, fatalFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	if err != nil {
		return err
	}
	o := &l.orders
	o.add(l.r.flags...)
	l.give("log-fd", fatal)
	l.give("panic-log-fd", fatal)
	if l.r.cfg.Debug {
		debug, err := l.open(filepath.Join(s.StateDir, debugFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND)
		if err != nil {
			return err
		}
		l.give("debug-log-fd", debug)
	}
	// From here on they are the verb's flags.
	o.add("boot", "--bundle=/",
		"--gofer-mount-confs="+mountConf(s.Root),
		"--cpu-num="+strconv.Itoa(s.Resources.CPUs),
		"--cpu-quota="+strconv.Itoa(s.Resources.CPUs*cgroup.CPUPeriod),
		"--cpu-period="+strconv.Itoa(cgroup.CPUPeriod),
		"--total-memory="+strconv.Itoa(s.Resources.MemoryMiB<<20),
		"--total-host-memory="+strconv.FormatUint(l.r.memory, 10),
	)
	if err := l.prepareFiles(); err != nil {
		return err
	}
	for range 3 {
		l.give("stdio-fds", null)
	}
	o.ID, o.CPUs, o.Tasks = string(s.ID), s.Resources.CPUs, s.Resources.MaxPIDs
	return nil
}

func (l *launch) prepareFiles() error {
	s := l.spec
	agent, err := l.agentImage()
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	for _, f := range []struct {
		flag, path string
		mode       int
	}{
		{"io-fds", s.Root.Image, os.O_RDONLY},
		{"io-fds", agent, os.O_RDONLY},
		{"gofer-filestore-fds", filepath.Join(s.Root.UpperDir, upperFile), os.O_RDWR | os.O_CREATE | os.O_EXCL},
	} {
		file, err := l.open(f.path, f.mode)
		if err != nil {
			return err
		}
		l.give(f.flag, file)
	}
	if err := errors.Join(l.giveNotice(), l.giveLayer(), l.giveSnapshot()); err != nil {
		return err
	}
	b, err := l.birth(agent)
	if err != nil {
		return err
	}
	spec, err := memFile("spec", b.Spec)
	if err != nil {
		return err
	}
	l.own = append(l.own, spec)
	l.give("spec-fd", spec)

	socket, err := bindControl(s.StateDir)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	l.control = socket
	l.own = append(l.own, socket)
	l.give("controller-fd", socket)

	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	l.sync, l.syncEnd = r, w
	l.own = append(l.own, r, w)
	l.give("start-sync-fd", w)
	return nil
}

// takeLink opens the slot's interface for the guest.
func (l *launch) takeLink() error {
	err := thread.InNetwork(l.spec.Slot.Path, func() (err error) {
		l.links, err = takeLink(l.spec.Slot, l.r.conf)
		return err
	})
	if err != nil {
		return fmt.Errorf("slot %s: %w", l.spec.Slot.Name, err)
	}
	l.own = append(l.own, l.links.FilePayload.Files...)
	return nil
}
