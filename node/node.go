// Package node is one host: it starts, hands over, watches and stops the machines
// here, finds them again after a restart, and records their logs and metrics.
//
// Machines outlive this process. What a later process needs to find one is a
// small handle file; what a crash leaves without a handle is found by the machine's
// name and swept away.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// Config is what a node is made of. Runtime, Network, Images, NewAgent, Dir and
// AgentPath are required.
type Config struct {
	ID  nacre.NodeID
	Dir string // the machines' own directories and logs; made when missing

	// HandleDir holds the handles, by default Dir/handles. Best is a directory of
	// this installation on a tmpfs such as /run: handles need not outlive the host,
	// and on a disk writing one may wait for what others sync.
	HandleDir string

	Runtime nacre.Runtime
	Network nacre.Network
	Images  nacre.ImageStore
	// Artifacts keep snapshots; nil for a node without them.
	Artifacts nacre.ArtifactStore

	// NewAgent makes the client of a guest's agent, which it reaches with dial.
	// It must not block. A client with Close() is closed when it is no longer
	// needed; one with Tunnel(ctx, port) (net.Conn, error) serves the guest's loopback;
	// one with WithTokens(hostToken, accessToken) nacre.Agent keeps its connections
	// when the guest gets others; one with Greet(ctx, net.Conn) error and
	// InitOver(ctx, net.Conn, nacre.AgentInit, ready func() error) error makes a first
	// request on a new connection, and Init over one that is idle, which stays the
	// caller's: it says nothing to the guest before ready has returned nil.
	NewAgent  func(dial func(ctx context.Context, port int) (net.Conn, error), hostToken, accessToken string) nacre.Agent
	AgentPath string
	TokenKey  nacre.TokenKey

	Standby   Standby
	Admission Admission
	Host      func() (HostStats, error) // default: ReadHost(Dir)

	BootTimeout time.Duration // from boot to an answering agent; default 30 s
	LogDrain    time.Duration // the longest wait for a stopped sandbox's last log lines; default 2 s
	LogBytes    int64         // of one sandbox's log, twice of which is kept at most; default 8 MiB
	Retention   time.Duration // of logs of ended sandboxes; default 7 days

	Clock  nacre.Clock
	Logger *slog.Logger
}

// Node implements nacre.Node, nacre.Traffic and nacre.Telemetry.
type Node struct {
	cfg  Config
	log  *slog.Logger
	logs *logStore
	gate *gate

	life context.Context // ends with Close
	end  context.CancelFunc
	wg   sync.WaitGroup

	metrics metricStore
	handles handleStore

	mu        sync.RWMutex
	closed    bool
	known     map[nacre.MachineID]struct{} // what no sweep may touch
	sandboxes map[nacre.SandboxID]*entry
	dying     map[nacre.MachineID]*dying // machines that were killed and belong to nobody
	ready     map[Shape][]*unit          // standbys, oldest first
	want      map[Shape]int              // how many standbys KeepReady wants of each shape
	demand    map[Shape]demand           // of other shapes
	exits     int64                      // how many machines of sandboxes ended by themselves
	exited    chan struct{}              // closed and replaced when exits goes up
	lastStart time.Time                  // when a start last began or ended
	kick      chan struct{}              // wakes the refill of standbys
	handing   chan struct{}              // one token for each standby that is handed over
	keeping   chan struct{}              // one token for each snapshot that is taken
}

var (
	_ nacre.Node      = (*Node)(nil)
	_ nacre.Traffic   = (*Node)(nil)
	_ nacre.Telemetry = (*Node)(nil)
)

// New makes a node. Nothing runs before Recover, which must come before Start.
func New(cfg Config) (*Node, error) {
	if cfg.Runtime == nil || cfg.Network == nil || cfg.Images == nil || cfg.NewAgent == nil || cfg.Dir == "" {
		return nil, errors.New("node: Runtime, Network, Images, NewAgent and Dir are required")
	}
	cfg.setDefaults()
	for _, d := range []string{cfg.HandleDir, filepath.Join(cfg.Dir, "machines"), filepath.Join(cfg.Dir, "logs")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("node directory: %w", err)
		}
	}
	cfg.Standby.setDefaults(cfg.Host) // which reads the file system that Dir is on
	logs, err := openLogStore(filepath.Join(cfg.Dir, "logs"), cfg.LogBytes)
	if err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, log: cfg.Logger, logs: logs,
		handles:   handleStore{dir: cfg.HandleDir, bootID: hostBootID()},
		known:     map[nacre.MachineID]struct{}{},
		sandboxes: map[nacre.SandboxID]*entry{},
		dying:     map[nacre.MachineID]*dying{},
		ready:     map[Shape][]*unit{},
		want:      map[Shape]int{},
		demand:    map[Shape]demand{},
		exited:    make(chan struct{}),
		kick:      make(chan struct{}, 1),
		handing:   make(chan struct{}, handOvers*runtime.NumCPU()),
		keeping:   make(chan struct{}, snapshotsAtOnce*runtime.NumCPU()),
	}
	n.gate = newGate(cfg.Admission, cfg.Host)
	n.life, n.end = context.WithCancel(context.Background())
	return n, nil
}

func (c *Config) setDefaults() {
	if c.ID == "" {
		c.ID = "local"
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Host == nil {
		dir := c.Dir
		c.Host = func() (HostStats, error) { return ReadHost(dir) }
	}
	setDefault(&c.HandleDir, filepath.Join(c.Dir, "handles"))
	setDefault(&c.BootTimeout, 30*time.Second)
	setDefault(&c.LogDrain, 2*time.Second)
	setDefault(&c.LogBytes, 8<<20)
	setDefault(&c.Retention, 7*24*time.Hour)
	c.Admission.setDefaults()
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// ID names the node.
func (n *Node) ID() nacre.NodeID { return n.cfg.ID }

// Run keeps the standbys and deletes old logs until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { n.keepStandbys(ctx) })
	wg.Go(func() { n.purgeLogs(ctx) })
	wg.Wait()
	return nil
}

// Close ends everything of this process and leaves the machines running.
func (n *Node) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.end()
	n.wg.Wait()
	n.hangUp()
	return n.logs.Close()
}

// hangUp ends the connections to guests that wait for another call.
func (n *Node) hangUp() {
	n.mu.RLock()
	var units []*unit
	for _, e := range n.sandboxes {
		if e.unit != nil {
			units = append(units, e.unit)
		}
	}
	for _, ready := range n.ready {
		units = append(units, ready...)
	}
	n.mu.RUnlock()
	for _, u := range units {
		u.mu.Lock()
		closeAgent(u.agent)
		u.mu.Unlock()
	}
}

// spawn runs fn in a goroutine that Close waits for; false when the node is closed.
func (n *Node) spawn(fn func()) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.closed {
		return false
	}
	n.wg.Go(fn)
	return true
}

// keepsLog returns whether a sandbox's log is kept whatever its age: it runs, or it
// may run again.
func (n *Node) keepsLog(ctx context.Context) func(nacre.SandboxID) bool {
	kept, err := n.Snapshots(ctx)
	paused := map[nacre.SandboxID]bool{}
	for _, m := range kept {
		paused[m.Sandbox] = true
	}
	return func(id nacre.SandboxID) bool {
		n.mu.RLock()
		defer n.mu.RUnlock()
		return n.sandboxes[id] != nil || paused[id] || err != nil
	}
}

func (n *Node) purgeLogs(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		keep := n.keepsLog(ctx)
		if err := n.logs.purge(n.cfg.Clock().Add(-n.cfg.Retention), keep); err != nil {
			n.log.Warn("old logs could not be deleted", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
