package node

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
	"golang.org/x/sys/unix"
)

// Admission says when a host is full. What runs is never hurt to make room.
type Admission struct {
	MaxSandboxes  int           // default 1000
	Overcommit    float64       // promised memory over the host's; default 10
	MemoryReserve int64         // bytes that a start leaves available; default the larger of 512 MiB and 5 %
	DiskReserve   int64         // bytes that a start leaves free; default the smaller of 2 GiB and 5 %
	StartMemory   int64         // bytes that a new machine takes before the host's figures show them; default 32 MiB
	MaxBoots      int           // at once; default 2 for each processor
	MaxQueue      int           // starts that wait for their turn to boot; default 1000
	QueueWait     time.Duration // the longest wait for it; default 30 s
}

func (a *Admission) setDefaults() {
	setDefault(&a.MaxSandboxes, 1000)
	setDefault(&a.Overcommit, 10)
	setDefault(&a.StartMemory, 32<<20)
	setDefault(&a.MaxBoots, max(2, 2*runtime.NumCPU()))
	setDefault(&a.MaxQueue, 1000)
	setDefault(&a.QueueWait, 30*time.Second)
}

// HostStats are the host's own figures, in bytes.
type HostStats struct {
	MemoryTotal, MemoryAvailable int64
	DiskTotal, DiskFree          int64
}

// ReadHost reads the host's memory and the file system that dir is on.
func ReadHost(dir string) (HostStats, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return HostStats{}, err
	}
	var h HostStats
	for sc := bufio.NewScanner(bytes.NewReader(data)); sc.Scan(); {
		name, rest, _ := strings.Cut(sc.Text(), ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch name {
		case "MemTotal":
			h.MemoryTotal = kib << 10
		case "MemAvailable":
			h.MemoryAvailable = kib << 10
		}
	}
	if h.MemoryTotal == 0 {
		return HostStats{}, fmt.Errorf("/proc/meminfo has no MemTotal")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return HostStats{}, fmt.Errorf("statfs %s: %w", dir, err)
	}
	h.DiskTotal, h.DiskFree = int64(fs.Blocks)*int64(fs.Bsize), int64(fs.Bavail)*int64(fs.Bsize)
	return h, nil
}

// gate decides who may start.
type gate struct {
	cfg   Admission
	host  func() (HostStats, error)
	turns chan struct{} // one token for each boot that may run

	mu       sync.Mutex
	count    int
	promised int64
	waiting  int
	booting  int // boots under way, or ended since the last reading: the host's figures miss them
	stats    HostStats
	readAt   time.Time
	running  int // boots under way
}

// The host's figures are read at most this often.
const hostReadEvery = 100 * time.Millisecond

func newGate(cfg Admission, host func() (HostStats, error)) *gate {
	return &gate{cfg: cfg, host: host, turns: make(chan struct{}, cfg.MaxBoots)}
}

// reserve takes a place and promises memory, or says what is full. free is called
// once, to give up what can be spared, when memory is short.
func (g *gate) reserve(memory int64, free func() bool) error {
	err := g.tryReserve(memory)
	if err != nil && g.memoryShort(0) && free() {
		g.mu.Lock()
		g.readAt = time.Time{}
		g.mu.Unlock()
		err = g.tryReserve(memory)
	}
	return err
}

func (g *gate) tryReserve(memory int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.count >= g.cfg.MaxSandboxes {
		return nacre.Errorf(nacre.CodeExhausted, "this host is full: it runs %d sandboxes and may run %d; end one or try again later", g.count, g.cfg.MaxSandboxes)
	}
	if err := g.read(); err != nil {
		return nacre.Wrap(nacre.CodeUnavailable, err, "the host's memory and disk could not be read; try again")
	}
	if limit := int64(float64(g.stats.MemoryTotal) * g.cfg.Overcommit); g.promised+memory > limit {
		return nacre.Errorf(nacre.CodeExhausted, "this host is full: %d MiB of memory are promised to sandboxes, %d more were asked for, and it may promise %d; end a sandbox, ask for less memory or try again later",
			g.promised>>20, memory>>20, limit>>20)
	}
	if g.available() < g.memoryReserve() {
		return nacre.Errorf(nacre.CodeExhausted, "this host is short of memory: %d MiB are available and %d are kept in reserve; end a sandbox or try again later",
			max(0, g.available())>>20, g.memoryReserve()>>20)
	}
	if r := g.diskReserve(); g.stats.DiskFree < r {
		return nacre.Errorf(nacre.CodeExhausted, "this host is short of disk space: %d MiB are free and %d are kept in reserve; end a sandbox or try again later",
			g.stats.DiskFree>>20, r>>20)
	}
	g.count++
	g.promised += memory
	return nil
}

// giveBack undoes a reserve.
func (g *gate) giveBack(memory int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count--
	g.promised -= memory
}

// freed is giveBack of what a machine really held: the host's figures change with it.
func (g *gate) freed(memory int64) {
	g.giveBack(memory)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.readAt = time.Time{}
}

// adopt is a reserve that cannot be refused: the machine runs already.
func (g *gate) adopt(memory int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count++
	g.promised += memory
}

// read renews the host's figures when they are old; g.mu is held.
func (g *gate) read() error {
	if !g.readAt.IsZero() && time.Since(g.readAt) < hostReadEvery {
		return nil
	}
	stats, err := g.host()
	if err != nil {
		return err
	}
	g.stats, g.readAt, g.booting = stats, time.Now(), g.running
	return nil
}

func (g *gate) available() int64 {
	return g.stats.MemoryAvailable - int64(g.booting+1)*g.cfg.StartMemory
}

func (g *gate) memoryReserve() int64 {
	if g.cfg.MemoryReserve > 0 {
		return g.cfg.MemoryReserve
	}
	return max(512<<20, g.stats.MemoryTotal/20)
}

func (g *gate) diskReserve() int64 {
	if g.cfg.DiskReserve > 0 {
		return g.cfg.DiskReserve
	}
	return min(2<<30, g.stats.DiskTotal/20)
}

// memoryShort tells whether available memory is within extra of the reserve.
func (g *gate) memoryShort(extra int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.read() != nil || g.available() < g.memoryReserve()+extra
}

// bootTurn waits for one of the boots that may run at once. The caller calls done.
func (g *gate) bootTurn(ctx context.Context) (done func(), err error) {
	select {
	case g.turns <- struct{}{}:
	default:
		if err := g.queue(ctx); err != nil {
			return nil, err
		}
	}
	return g.boots(), nil
}

// tryTurn is bootTurn for one who does not wait.
func (g *gate) tryTurn() (done func(), ok bool) {
	select {
	case g.turns <- struct{}{}:
		return g.boots(), true
	default:
		return nil, false
	}
}

// boots counts a boot whose turn has come.
func (g *gate) boots() (done func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.booting++
	g.running++
	return func() {
		g.mu.Lock()
		g.running--
		g.mu.Unlock()
		<-g.turns
	}
}

// queued tells whether a start waits for its turn.
func (g *gate) queued() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting > 0
}

func (g *gate) queue(ctx context.Context) error {
	g.mu.Lock()
	if g.waiting >= g.cfg.MaxQueue {
		g.mu.Unlock()
		return nacre.Errorf(nacre.CodeExhausted, "this host is busy: %d sandboxes wait to be started; try again later", g.cfg.MaxQueue)
	}
	g.waiting++
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.waiting--
		g.mu.Unlock()
	}()
	late := time.NewTimer(g.cfg.QueueWait)
	defer late.Stop()
	select {
	case g.turns <- struct{}{}:
		return nil
	case <-late.C:
		return nacre.Errorf(nacre.CodeExhausted, "this host is busy: no turn to start within %s; try again later", g.cfg.QueueWait)
	case <-ctx.Done():
		return nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the start was called off while it waited for its turn")
	}
}

// admit makes the sandbox's entry, or says why it does not fit.
func (n *Node) admit(ctx context.Context, spec nacre.StartSpec, cancel context.CancelCauseFunc) (*entry, error) {
	memory := int64(spec.Resources.MemoryMiB) << 20
	if err := n.reserve(ctx, memory); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var err error
	switch {
	case n.closed:
		err = errClosed()
	case n.sandboxes[spec.Sandbox] != nil:
		err = nacre.Errorf(nacre.CodeConflict, "sandbox %s has a machine already", spec.Sandbox)
	}
	if err != nil {
		n.gate.giveBack(memory)
		return nil, err
	}
	e := &entry{id: spec.Sandbox, memory: memory, cancel: cancel, started: make(chan struct{})}
	n.sandboxes[spec.Sandbox] = e
	n.lastStart = time.Now()
	return e, nil
}

// Capacity tells how full the host is.
func (n *Node) Capacity(context.Context) (nacre.Capacity, error) {
	n.mu.RLock()
	standbys := 0
	for _, us := range n.ready {
		standbys += len(us)
	}
	n.mu.RUnlock()
	g := n.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.read(); err != nil {
		return nacre.Capacity{}, nacre.Wrap(nacre.CodeUnavailable, err, "the host's memory and disk could not be read")
	}
	return nacre.Capacity{
		Sandboxes: g.count, MaxSandboxes: g.cfg.MaxSandboxes, Standbys: standbys, CPUs: runtime.NumCPU(),
		MemoryTotal: g.stats.MemoryTotal, MemoryFree: g.stats.MemoryAvailable, MemoryPromised: g.promised,
		DiskTotal: g.stats.DiskTotal, DiskFree: g.stats.DiskFree,
		MemoryPromises: int64(float64(g.stats.MemoryTotal) * g.cfg.Overcommit),
		Runtime:        n.cfg.Runtime.Capabilities(),
	}, nil
}
