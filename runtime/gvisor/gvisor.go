// Package gvisor runs machines as gVisor sandboxes. gVisor is part of this
// program: a machine is one process, this program started again as a sandbox
// (see Main).
//
// The driver starts gVisor's "boot" verb itself instead of calling
// runsc/container, for three reasons. With an EROFS root and a disk-backed
// writable layer the container package starts a second process (the gofer) only
// to open the layer's file; handed over here, the file needs no gofer, which
// halves the memory of an idle machine. The standard streams are /dev/null and
// not the daemon's. And capabilities are dropped inside the process instead of
// by a second exec. The verb's flags are internal to gVisor, whose version is
// pinned in go.mod; the contract suite fails when they change.
//
// A machine outlives this process: the sandbox has a session of its own, no
// parent-death signal and no pipe to the daemon. What is found again after a
// crash is its cgroup, by a name in the handle and a label that is the machine's id,
// and a process id with its start time.
package gvisor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/flag"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/agentfs"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/machines"
)

// Config of a driver. The zero value works.
type Config struct {
	// CgroupParent holds one cgroup a machine. Two installations on one host need
	// two. Default "nacre".
	CgroupParent string
	// Boots is how many machines may boot at once; further ones wait. Default 4.
	Boots int
	// Program is what becomes the sandbox: a static binary that calls Main first.
	// Default: this program as it was started, whatever became of its file since.
	Program string
	// Agent is the agent's binary that machines are started with. The driver keeps
	// files of its own beside it, of which Sweep removes the old ones. "" for a driver
	// that only clears.
	Agent string
	// Ahead is how many sandbox processes are started before they are needed, which
	// halves a machine's start. Each takes about 10 MiB while it waits. Default 2, -1
	// none; up to ten for two minutes after restores that found none. They are made after
	// the first Sweep or start.
	Ahead int
	// Debug makes each sandbox write debug.log, which grows without bound, to its
	// state directory.
	Debug bool
	Log   *slog.Logger // default slog.Default()
	Clock nacre.Clock  // default time.Now
}

// Runtime makes gVisor machines. It implements nacre.Runtime.
type Runtime struct {
	cfg     Config
	program *os.File
	cgroup  *cgroup.Hierarchy
	conf    *config.Config
	flags   []string                 // conf as the sandbox's global flags
	filter  func() (*os.File, error) // the sandboxes' seccomp program, as JSON in memory
	boots   *semaphore.Weighted
	agents  agentfs.Images
	sums    sync.Map // of the agents' file systems, by path
	ahead   ahead
	copies  copies
	own     string          // begins the names of the groups that this driver makes
	groups  atomic.Int64    // how many it has made
	life    context.Context // ends with Close
	cancel  context.CancelFunc
	key     string // what this process's snapshots are bound to
	bootID  string // of the host's kernel: process ids mean nothing in another boot
	memory  uint64 // of the host, in bytes

	trace func(step string) // told of each step of a start that is done; for the benchmark

	machines machines.Set[*machine]
	work     sync.WaitGroup // the filter's compilation, and the pool's
}

// New returns a driver. It needs root, and cgroups with cpu, memory and pids.
func New(cfg Config) (*Runtime, error) {
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "nacre"
	}
	if cfg.Boots <= 0 {
		cfg.Boots = 4
	}
	if cfg.Ahead == 0 {
		cfg.Ahead = 2
	}
	if cfg.Program == "" {
		cfg.Program = selfExe
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if os.Geteuid() != 0 {
		return nil, nacre.Errorf(nacre.CodeForbidden, "machines need root; run nacre as root")
	}
	program, err := openProgram(cfg.Program)
	if err != nil {
		return nil, err
	}
	redirectLog(cfg.Log)
	r := &Runtime{cfg: cfg, program: program, agents: agentfs.Images{Prefix: agentPrefix}, trace: func(string) {}, boots: semaphore.NewWeighted(int64(cfg.Boots))}
	r.own = groupPrefix + strings.ToLower(rand.Text()[:10]) + "-"
	if r.cgroup, err = cgroup.Find("/proc/self/mountinfo", cfg.CgroupParent); err != nil {
		return nil, err
	}
	if err = r.cgroup.Prepare(); err != nil {
		return nil, err
	}
	if r.conf, err = sandboxConfig(cfg.Debug); err != nil {
		return nil, fmt.Errorf("gvisor: configuration: %w", err)
	}
	r.flags = r.conf.ToFlags()
	r.key = restoreKey()
	if r.bootID, err = machines.BootID(); err != nil {
		return nil, err
	}
	if r.memory, err = hostMemory(); err != nil {
		return nil, err
	}
	r.copies.rooms = r.rooms
	r.ahead.want, r.ahead.kick = r.cfg.Ahead, make(chan struct{}, 1)
	r.life, r.cancel = context.WithCancel(context.Background())
	r.filter = sync.OnceValues(r.makeFilter)
	r.work.Go(func() { _, _ = r.filter() }) // before the first start asks
	return r, nil
}

// hostMemory returns the host's memory in bytes.
func hostMemory() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, os.NewSyscallError("sysinfo", err)
	}
	return info.Totalram * uint64(info.Unit), nil
}

// makeFilter compiles the sandboxes' seccomp program. Without one each sandbox
// compiles its own.
func (r *Runtime) makeFilter() (*os.File, error) {
	program, err := compileFilter(r.conf.Platform)
	if err != nil {
		r.cfg.Log.Warn("the seccomp program could not be compiled ahead; machines start slower", "error", err)
	}
	return memFile("seccomp", program)
}

// sandboxConfig is how every sandbox is configured.
func sandboxConfig(debug bool) (*config.Config, error) {
	fs := flag.NewFlagSet("gvisor", flag.ContinueOnError)
	config.RegisterFlags(fs)
	args := []string{
		"--platform=systrap", // never kvm because /dev/kvm exists: it may hang
		"--network=sandbox",
		"--directfs=false", // the sandbox is nobody, in a user namespace of its own
		"--overlay2=none",  // the root's overlay is given with the machine
		"--host-settings=ignore",
		"--in-sandbox-cgroup=v2", // limits the guest's tasks (see limitTasks)
		"--allow-suid=true",      // sudo
		"--traceback=single",
		"--control-rpc-stop-timeout=0s",
	}
	if debug {
		args = append(args, "--debug=true", "--debug-log=on") // the file is given with the machine
	}
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	return config.NewFromFlags(fs)
}

// Name is "gvisor".
func (r *Runtime) Name() nacre.RuntimeName { return nacre.RuntimeGVisor }

// Capabilities of the driver; the memory was measured (see the benchmark).
func (r *Runtime) Capabilities() nacre.Capabilities {
	return nacre.Capabilities{Runtime: r.Name(), Isolation: "gVisor (systrap)", MemoryInKiB: 15 << 10, Snapshots: true, RestoreKey: r.key}
}

// Close ends what this process does for its machines, not the machines: they
// run on, and another process may Recover them. The driver and its machines are
// of no use afterwards. Starts under way are waited for. A repeat is no error.
func (r *Runtime) Close() error {
	first := r.machines.Close()
	r.cancel()
	r.closeAhead()
	r.machines.Wait()
	r.work.Wait()
	if !first {
		return nil
	}
	r.endAhead(r.ahead.ready)
	if f, err := r.filter(); err == nil {
		_ = f.Close()
	}
	return r.program.Close()
}

// Sweep removes the cgroups, and the processes in them, of machines that keep
// does not know. A sandbox is in its cgroup from its first instruction on and
// mounts nothing outside of its own mount namespace, so there is nothing else but
// the old agents' file systems.
func (r *Runtime) Sweep(ctx context.Context, keep func(nacre.MachineID) bool) error {
	names, err := r.cgroup.List()
	if err != nil {
		return err
	}
	var errs []error
	strangers := false // kept, but nobody knows what they use
	for _, name := range names {
		g := r.cgroup.Group(name)
		id, ours, err := r.whose(g)
		switch {
		case err != nil:
			errs = append(errs, err)
			continue
		case !ours || id != "" && r.machines.Known(id):
			continue
		case id != "" && keep(id):
			strangers = true
			continue
		case id != "":
			r.cfg.Log.Info("clearing a machine that nobody knows", "machine", id)
		}
		if err := g.Destroy(ctx); err != nil {
			errs = append(errs, fmt.Errorf("clearing machine %q: %w", id, err))
		}
	}
	err = errors.Join(errs...)
	if r.cfg.Agent == "" {
		return err // who starts no machines
	}
	if err == nil && !strangers {
		err = r.sweepAgents()
	}
	r.fillAhead()
	return err
}

// whose tells of which machine a group is, "" for a sandbox that never became one; ours
// is false of what is not to be swept: this driver's sandboxes that wait, and what no
// driver of this kind made.
func (r *Runtime) whose(g *cgroup.Group) (id nacre.MachineID, ours bool, err error) {
	name := g.Name()
	if id := nacre.MachineID(name); id.Valid() { // an older server's, or another driver's
		return id, true, nil
	}
	if !strings.HasPrefix(name, groupPrefix) {
		return "", strings.HasPrefix(name, oldAheadPrefix), nil
	}
	label, err := g.Label()
	if id := nacre.MachineID(label); id.Valid() {
		return id, true, err
	}
	return "", !strings.HasPrefix(name, r.own), err
}
