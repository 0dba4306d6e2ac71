package node_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/image"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/node"
	"golang.org/x/sys/unix"
)

const build = nacre.BuildID("b0000000000000000001")

var resources = nacre.Resources{CPUs: 1, MemoryMiB: 256, DiskMiB: 64, MaxPIDs: 64}

// world is a fake host with a node on it.
type world struct {
	tb    testing.TB
	dir   string
	host  *nacretest.FakeHost
	tweak func(*node.Config)
	stats atomic.Pointer[node.HostStats]
	log   strings.Builder
	logMu sync.Mutex

	failAt      string // a step of the snapshots' store that fails
	unaccounted bool   // standbys come and go: leaks are not looked for

	fake *nacretest.FakeDaemon
	arts *image.Artifacts
	n    *node.Node
	stop func()
}

func newWorld(tb testing.TB) *world {
	w := &world{tb: tb, dir: tb.TempDir(), host: nacretest.NewFakeHost(build)}
	w.stats.Store(&node.HostStats{MemoryTotal: 64 << 30, MemoryAvailable: 60 << 30, DiskTotal: 1 << 40, DiskFree: 1 << 39})
	return w
}

func (w *world) Write(p []byte) (int, error) {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return w.log.Write(p)
}

func (w *world) logged() string {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return w.log.String()
}

// start brings a node up over what earlier ones left.
func (w *world) start() *node.Node {
	w.tb.Helper()
	n, err := w.tryStart()
	if err != nil {
		w.tb.Fatal(err)
	}
	return n
}

// tryStart is start for a node that may refuse.
func (w *world) tryStart() (*node.Node, error) {
	w.tb.Helper()
	w.fake = w.host.Daemon()
	fake := w.fake
	arts, err := image.OpenArtifacts(image.ArtifactOptions{Dir: filepath.Join(w.dir, "snapshots"), ReserveMiB: -1,
		Step: func(step string) error {
			if step == w.failAt {
				return unix.ENOSPC
			}
			return fake.Step()
		}})
	if err != nil {
		w.tb.Fatal(err)
	}
	w.arts = arts
	cfg := node.Config{
		Dir: filepath.Join(w.dir, "node"), Runtime: w.fake.Runtime(), Network: w.fake.Network(), Images: w.fake.Images(), Artifacts: arts,
		NewAgent: w.fake.NewAgent, AgentPath: "/agent", Logger: slog.New(slog.NewTextHandler(w, nil)),
		Host: func() (node.HostStats, error) { return *w.stats.Load(), nil },
	}
	if w.tweak != nil {
		w.tweak(&cfg)
	}
	n, err := node.New(cfg)
	if err != nil {
		w.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var once sync.Once
	w.n, w.stop = n, func() { once.Do(func() { cancel(); wg.Wait(); n.Close(); arts.Close() }) }
	w.tb.Cleanup(w.stop)
	if err := n.Recover(ctx); err != nil {
		w.stop()
		return nil, err
	}
	wg.Go(func() { _ = n.Run(ctx) })
	return n, nil
}

// kill ends the node as kill -9 does, and starts another.
func (w *world) restart() *node.Node {
	w.tb.Helper()
	w.fake.Kill()
	w.stop()
	return w.start()
}

func (w *world) spec() nacre.StartSpec {
	return nacre.StartSpec{Sandbox: nacre.NewSandboxID(), Team: "team_aaaaaaaaaaaaaaaa", Build: build, Resources: resources}
}

func (w *world) begin() (nacre.StartSpec, nacre.Started) {
	w.tb.Helper()
	spec := w.spec()
	st, err := w.n.Start(w.tb.Context(), spec)
	if err != nil {
		w.tb.Fatalf("start: %v", err)
	}
	return spec, st
}

// leaks lists what on the host belongs to no sandbox of the node.
func (w *world) leaks() []string {
	if w.unaccounted {
		return nil
	}
	var keep []nacre.MachineID
	list, err := w.n.Machines(context.Background())
	if err != nil {
		w.tb.Error(err)
	}
	for _, m := range list {
		keep = append(keep, m.Machine)
	}
	return w.host.Leaks(keep...)
}

func (w *world) standbys() int {
	c, err := w.n.Capacity(context.Background())
	if err != nil {
		w.tb.Error(err)
	}
	return c.Standbys
}

func (w *world) eventually(what string, ok func() bool) {
	w.tb.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			w.tb.Fatalf("not within a minute: %s; log:\n%s", what, w.logged())
		}
	}
}

func (w *world) underTest() nacretest.NodeUnderTest {
	return nacretest.NodeUnderTest{
		Node: w.n, Traffic: w.n, Telemetry: w.n, Spec: w.spec, Leaks: w.leaks,
		Crash: func(id nacre.MachineID) {
			w.host.Machine(id).Crash(nacre.EndOOM, "it used more than its 256 MiB of memory")
		},
		Serve: func(t *testing.T, id nacre.SandboxID, port int) {
			list, _ := w.n.Machines(t.Context())
			for _, m := range list {
				if m.Sandbox == id {
					serveHello(t, w.host.Machine(m.Machine).Guest, port)
				}
			}
		},
		Restart: func(t *testing.T) nacretest.NodeUnderTest { w.restart(); return w.underTest() },
	}
}

func serveHello(t *testing.T, g *nacretest.FakeGuest, port int) {
	l, err := g.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = c.Write([]byte("hello")) }()
		}
	}()
}

func TestNodeContract(t *testing.T) {
	nacretest.TestNode(t, func(t *testing.T) nacretest.NodeUnderTest {
		w := newWorld(t)
		w.start()
		return w.underTest()
	})
}

func TestNodeContractWithStandbys(t *testing.T) {
	nacretest.TestNode(t, func(t *testing.T) nacretest.NodeUnderTest {
		w := newWorld(t)
		w.tweak = func(c *node.Config) { c.Standby.Count = 1; c.Standby.Quiet = time.Millisecond }
		w.start()
		w.n.KeepReady(node.Shape{Build: build, Resources: resources})
		w.eventually("a standby is ready", func() bool { return w.standbys() == 1 })
		w.unaccounted = true
		return w.underTest()
	})
}
