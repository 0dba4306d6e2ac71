// Package firecracker runs machines as Firecracker microVMs: each has a kernel of
// its own (guest/kernel) behind the processor's virtualization, and its VMM runs in
// a jail of Firecracker's making, as a user of its own in a file system that holds
// nothing but the machine's drives.
//
// The driver speaks Firecracker's REST API; releases from 1.12 on are told apart by
// asking. Inside, a small program (guestinit) is the machine's first; it starts the
// agent in a namespace of its own, is spoken to by vsock, and carries connections
// between the host and the guest's TCP ports. The guest's network is the same in every
// slot, so that a snapshot fits any.
//
// A machine outlives this process: the VMM has a session and a PID namespace of its
// own and no pipe to the daemon. What is found again after a crash is its cgroup,
// named after the machine, and a process id with its start time.
package firecracker

import (
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/agentfs"
	"github.com/nacrehq/nacre/internal/cgroup"
	"github.com/nacrehq/nacre/internal/machines"
	"github.com/nacrehq/nacre/internal/workingset"
)

// assets holds guestinit, which `make` builds before cmd/nacre.
//
//go:embed all:assets
var assets embed.FS

// Config of a driver. Firecracker, Jailer and Kernel have no default.
type Config struct {
	Firecracker string // path of the VMM, static
	Jailer      string // path of its jailer, of the same release
	Kernel      string // path of the guest's kernel, an ELF file
	// Init is the path of guestinit; default: the one in this program.
	Init string
	// Agent is the agent's binary that machines are started with. The driver keeps files
	// of its own beside it, of which Sweep removes the old ones; "" leaves them.
	Agent string
	// NoBalloon boots machines without a balloon: what they have freed is a part of their
	// snapshots.
	NoBalloon bool
	// AllowHoles takes releases with known holes too. For tests only.
	AllowHoles bool
	// CgroupParent holds one cgroup a machine. Two installations on one host need
	// two. Default "nacre-firecracker".
	CgroupParent string
	// BootArgs are added to the guest kernel's command line.
	BootArgs string
	// Boots is how many machines may boot at once; further ones wait. Default 4.
	Boots int
	// BootTimeout ends a boot or a restore that hangs, whatever the caller's patience.
	// Default a minute.
	BootTimeout time.Duration
	// CacheMiB is how much of the host's cache a machine may fill with its files beside
	// its memory. Default: as much as its memory.
	CacheMiB int
	// Debug makes each guest write its console to console.log, which grows without
	// bound, in its state directory.
	Debug bool
	Log   *slog.Logger // default slog.Default()
	Clock nacre.Clock  // default time.Now
}

// Runtime makes Firecracker machines. It implements nacre.Runtime.
type Runtime struct {
	cfg     Config
	version version
	cgroup  *cgroup.Hierarchy
	boots   *semaphore.Weighted
	stock   stock
	pool    pool
	large   bool   // the host lets VMMs have what pages of 2 MiB take
	key     string // what this process's snapshots are bound to

	askEvery, askWithin time.Duration // see guardAnswers
	slow                int           // see allow
	lazy                bool          // see pagerOrders

	bootID string // of the host's kernel: process ids mean nothing in another boot

	sets     workingset.Memory // of the snapshots that were restored
	machines machines.Set[*machine]
}

// New returns a driver. It needs root, /dev/kvm, and cgroups with cpu, memory and
// pids. Whether the host's processor really runs guests is Probe's to say.
func New(cfg Config) (*Runtime, error) {
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "nacre-firecracker"
	}
	if cfg.Boots <= 0 {
		cfg.Boots = 4
	}
	if cfg.BootTimeout <= 0 {
		cfg.BootTimeout = time.Minute
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
	r := &Runtime{cfg: cfg, askEvery: askEvery, askWithin: askWithin, stock: stock{images: agentfs.Images{Prefix: "firecracker"}}, boots: semaphore.NewWeighted(int64(cfg.Boots))}
	if err := r.checkPrograms(); err != nil {
		return nil, err
	}
	var err error
	if r.stock.init, err = initProgram(cfg.Init); err != nil {
		return nil, err
	}
	if r.cgroup, err = cgroup.Find("/proc/self/mountinfo", cfg.CgroupParent); err != nil {
		return nil, err
	}
	if err = r.cgroup.Prepare(); err != nil {
		return nil, err
	}
	if r.key, err = restoreKey(r.version); err != nil {
		return nil, err
	}
	if r.bootID, err = machines.BootID(); err != nil {
		return nil, err
	}
	_, err = os.Stat(faultDevice)
	r.large = err == nil
	return r, nil
}

func (r *Runtime) checkPrograms() error {
	for _, p := range []struct{ what, path string }{{"Firecracker", r.cfg.Firecracker}, {"its jailer", r.cfg.Jailer}, {"the guest's kernel", r.cfg.Kernel}} {
		if st, err := os.Stat(p.path); err != nil || !st.Mode().IsRegular() {
			return nacre.Wrap(nacre.CodeUnavailable, err, p.what+" is not at "+p.path+"; `nacre setup firecracker` brings it")
		}
	}
	for _, p := range []struct {
		path   string
		jailer bool
	}{{r.cfg.Firecracker, false}, {r.cfg.Jailer, true}} {
		v, err := askVersion(p.path)
		if err != nil {
			return err
		}
		if err := checkVersion(v, p.jailer, r.cfg.AllowHoles); err != nil {
			return err
		}
		if p.jailer && v != r.version {
			return nacre.Errorf(nacre.CodeUnsupported, "Firecracker is %s, its jailer %s; install both from one release", r.version, v)
		}
		r.version = v
	}
	return nil
}

func initProgram(path string) ([]byte, error) {
	if path != "" {
		return os.ReadFile(path)
	}
	b, err := assets.ReadFile("assets/guestinit")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nacre.Errorf(nacre.CodeUnavailable, "this binary was built without the guests' first program; build it with `make build`")
	}
	return b, err
}

// restoreKey names what a snapshot can only be restored on: Firecracker reads its
// own release's snapshots, and a guest goes on using what its processor could.
func restoreKey(v version) (string, error) {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for l := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(l, ":")
		switch name = strings.TrimSpace(name); name {
		case "vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features":
			fmt.Fprintf(h, "%s:%s\n", name, strings.TrimSpace(value))
		case "":
			return fmt.Sprintf("firecracker/%s/%s/%x", v, runtime.GOARCH, h.Sum(nil)[:6]), nil // one processor is enough
		}
	}
	return fmt.Sprintf("firecracker/%s/%s/%x", v, runtime.GOARCH, h.Sum(nil)[:6]), nil
}

// allow is how long a guest may take for what a good one does in that time: longer on the
// tests' host, which is slow.
func (r *Runtime) allow(d time.Duration) time.Duration { return d * time.Duration(max(r.slow, 1)) }

// Name is "firecracker".
func (r *Runtime) Name() nacre.RuntimeName { return nacre.RuntimeFirecracker }

// Capabilities of the driver.
func (r *Runtime) Capabilities() nacre.Capabilities {
	return nacre.Capabilities{Runtime: r.Name(), Isolation: "Firecracker microVM", MemoryInKiB: 48 << 10, Snapshots: true, RestoreKey: r.key, SparesOnOOM: true, HugePages: r.large}
}

// Close ends what this process does for its machines, not the machines: they
// run on, and another process may Recover them. The driver and its machines are
// of no use afterwards. Starts under way are waited for. A repeat is no error.
func (r *Runtime) Close() error {
	r.machines.Close()
	r.machines.Wait()
	return nil
}

// Sweep removes the cgroups, and the processes in them, of machines that keep does
// not know. A VMM is in its cgroup from its first instruction on; its jail is a
// part of the state directory, and its tap interface of the slot.
func (r *Runtime) Sweep(ctx context.Context, keep func(nacre.MachineID) bool) error {
	names, err := r.cgroup.List()
	if err != nil {
		return err
	}
	var first error
	strangers := false // kept, but nobody knows what they use
	for _, name := range names {
		id := nacre.MachineID(name)
		if !id.Valid() || r.machines.Known(id) {
			continue
		}
		if keep(id) {
			strangers = true
			continue
		}
		r.cfg.Log.Info("clearing a machine that nobody knows", "machine", id)
		if err := r.cgroup.Group(name).Destroy(ctx); err != nil && first == nil {
			first = fmt.Errorf("clearing machine %s: %w", id, err)
		}
	}
	if first == nil && !strangers && r.cfg.Agent != "" {
		first = r.sweepImages()
	}
	return first
}

// sweepImages removes the init drives that no machine here has and that none would be
// started with. Snapshots have copies of their own.
func (r *Runtime) sweepImages() error {
	current, err := r.stock.images.Of(r.cfg.Agent, r.stock.initImage)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	used := map[string]bool{}
	for _, m := range r.machines.All() { // for a start under way see agentfs.Grace
		if b, err := m.birth(); err == nil {
			used[filepath.Join(b.InitDir, b.Init)] = true
		}
	}
	return r.stock.images.Sweep(filepath.Dir(current), used, r.cfg.Clock())
}

// RemoveParent removes the cgroup that holds the machines' ones, after the last
// machine has ended. The driver must not be used afterwards. A repeat is no error.
func (r *Runtime) RemoveParent() error {
	var errs []error
	for _, d := range r.cgroup.Dirs("") {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
