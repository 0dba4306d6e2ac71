package control_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
	"github.com/nacrehq/nacre/image"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/node"
	"github.com/nacrehq/nacre/sqlstore"
)

const (
	team  = nacre.TeamID("team_aaaaaaaaaaaaaaaa")
	other = nacre.TeamID("team_bbbbbbbbbbbbbbbb")
	build = nacre.BuildID("b0000000000000000001")
)

// world is a host that daemons come and go on.
type world struct {
	tb     testing.TB
	dir    string
	host   *nacretest.FakeHost
	clock  nacre.Clock
	limits control.Limits
	tweak  func(*node.Config)
	rules  func(*control.Config)

	diskStep func(step string) error // may fail a step of the snapshots' store

	*daemon
}

// daemon is one run of the product: store, node and service.
type daemon struct {
	fake *nacretest.FakeDaemon
	db   *sqlstore.DB
	arts *image.Artifacts
	node *node.Node
	svc  *control.Service
	stop func()
}

func newWorld(tb testing.TB) *world {
	return &world{tb: tb, dir: tempDir(tb), host: nacretest.NewFakeHost(build), clock: time.Now}
}

// tempDir is in memory where there is such a place: these tests start hundreds of
// daemons, and what survives a power cut is not their subject.
func tempDir(tb testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "nacre-control-")
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// start brings up a daemon over what earlier ones left.
func (w *world) start() {
	w.tb.Helper()
	d, err := w.boot()
	if err != nil {
		w.tb.Fatal(err)
	}
	w.daemon = d
	w.tb.Cleanup(d.stop)
}

func (w *world) boot() (*daemon, error) {
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.NewTextHandler(testWriter{w.tb}, &slog.HandlerOptions{Level: slog.LevelError}))
	d := &daemon{fake: w.host.Daemon()}
	db, err := sqlstore.Open(ctx, filepath.Join(w.dir, "nacre.db"), sqlstore.Options{Clock: w.clock})
	if err != nil {
		cancel()
		return nil, err
	}
	d.db = db
	if err := db.PutTemplate(ctx, nacre.Template{ID: "t0000000000000000001", Names: []string{"base"}, Public: true, Build: build,
		Resources: nacre.Resources{CPUs: 1, MemoryMiB: 64}}); err != nil {
		cancel()
		return nil, errors.Join(err, db.Close())
	}
	d.arts, err = image.OpenArtifacts(image.ArtifactOptions{Dir: filepath.Join(w.dir, "snapshots"), ReserveMiB: -1,
		Step: func(step string) error {
			if w.diskStep != nil {
				if err := w.diskStep(step); err != nil {
					return err
				}
			}
			return d.fake.Step()
		}})
	if err != nil {
		cancel()
		return nil, errors.Join(err, db.Close())
	}
	cfg := node.Config{
		Dir: filepath.Join(w.dir, "node"), Runtime: d.fake.Runtime(), Network: d.fake.Network(), Images: d.fake.Images(), Artifacts: d.arts,
		NewAgent: d.fake.NewAgent, AgentPath: "/agent", Clock: w.clock, Logger: log, LogDrain: time.Millisecond,
		Host: func() (node.HostStats, error) {
			return node.HostStats{MemoryTotal: 64 << 30, MemoryAvailable: 60 << 30, DiskTotal: 1 << 40, DiskFree: 1 << 39}, nil
		},
	}
	if w.tweak != nil {
		w.tweak(&cfg)
	}
	d.node, err = node.New(cfg)
	if err == nil {
		err = d.node.Recover(ctx)
	}
	if err == nil {
		cfg := control.Config{
			Store: killableStore{db, d.fake}, Snapshots: killableSnapshots{db, d.fake}, Templates: db,
			Node: d.node, Traffic: d.node, Telemetry: d.node,
			Limits: w.limits, Clock: w.clock, Logger: log,
		}
		if w.rules != nil {
			w.rules(&cfg)
		}
		d.svc, err = control.New(cfg)
	}
	var wg sync.WaitGroup
	var once sync.Once
	d.stop = func() {
		once.Do(func() {
			cancel()
			wg.Wait()
			if d.node != nil {
				d.node.Close()
			}
			d.arts.Close()
			db.Close()
		})
	}
	if err != nil {
		d.stop()
		return nil, err
	}
	node, svc := d.node, d.svc
	if err := svc.Load(ctx); err != nil { // as the server does
		d.stop()
		return nil, err
	}
	wg.Go(func() { _ = node.Run(ctx) })
	wg.Go(func() { _ = svc.Run(ctx) })
	return d, nil
}

// restart is an orderly stop and a start.
func (w *world) restart() {
	w.tb.Helper()
	w.stop()
	w.start()
}

// onDisk are the directories that a daemon finds again.
var onDisk = []string{"node", "snapshots"}

// crashAt kills the daemon at its n-th next step; what it had on disk at that
// moment is what the next one finds.
func (w *world) crashAt(n int) {
	frozen := filepath.Join(w.dir, "frozen")
	w.fake.KillAt(n, func() {
		for _, dir := range onDisk {
			if err := copyTree(filepath.Join(w.dir, dir), filepath.Join(frozen, dir)); err != nil {
				w.tb.Errorf("freeze the directory %s: %v", dir, err)
			}
		}
	})
}

// afterCrash starts a daemon over what the killed one left.
func (w *world) afterCrash() {
	w.tb.Helper()
	if !w.fake.Killed() {
		w.fake.Kill()
	}
	w.stop()
	frozen := filepath.Join(w.dir, "frozen")
	if _, err := os.Stat(frozen); err == nil {
		for _, dir := range onDisk {
			if err := errors.Join(os.RemoveAll(filepath.Join(w.dir, dir)), os.Rename(filepath.Join(frozen, dir), filepath.Join(w.dir, dir))); err != nil {
				w.tb.Fatal(err)
			}
		}
		if err := os.RemoveAll(frozen); err != nil {
			w.tb.Fatal(err)
		}
	}
	w.start()
}

// copyTree copies what holds still while others write.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		dst := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(dst, 0o700)
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(dst, data, 0o600)
	})
}

// eventually waits for what loops bring about.
func (w *world) eventually(what string, ok func() bool) {
	w.tb.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			w.tb.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (w *world) create(r nacre.CreateRequest) nacre.Sandbox {
	w.tb.Helper()
	s, err := w.svc.Create(w.tb.Context(), team, r)
	if err != nil {
		w.tb.Fatalf("create: %v", err)
	}
	return s
}

func (w *world) get(id nacre.SandboxID) nacre.Sandbox {
	w.tb.Helper()
	s, err := w.svc.Get(w.tb.Context(), team, id)
	if err != nil {
		w.tb.Fatalf("get: %v", err)
	}
	return s
}

// killableStore stops having an effect when its daemon is killed.
type killableStore struct {
	nacre.SandboxStore
	fake *nacretest.FakeDaemon
}

func (s killableStore) step(err error) error { return step(s.fake, err) }

func step(fake *nacretest.FakeDaemon, err error) error {
	if kerr := fake.Step(); kerr != nil {
		return nacre.Wrap(nacre.CodeUnavailable, kerr, "the daemon is dead")
	}
	return err
}

func (s killableStore) Insert(ctx context.Context, rec nacre.Sandbox, ev ...nacre.Event) error {
	if err := s.step(nil); err != nil {
		return err
	}
	return s.step(s.SandboxStore.Insert(ctx, rec, ev...))
}

func (s killableStore) Update(ctx context.Context, t nacre.TeamID, id nacre.SandboxID, fn func(*nacre.Sandbox) ([]nacre.Event, error)) (nacre.Sandbox, error) {
	if err := s.step(nil); err != nil {
		return nacre.Sandbox{}, err
	}
	rec, err := s.SandboxStore.Update(ctx, t, id, fn)
	return rec, s.step(err)
}

type testWriter struct{ tb testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.tb.Logf("%s", p)
	return len(p), nil
}

// killableSnapshots is killableStore for snapshots.
type killableSnapshots struct {
	nacre.SnapshotStore
	fake *nacretest.FakeDaemon
}

func (s killableSnapshots) InsertSnapshot(ctx context.Context, n nacre.Snapshot, ev ...nacre.Event) error {
	if err := step(s.fake, nil); err != nil {
		return err
	}
	return step(s.fake, s.SnapshotStore.InsertSnapshot(ctx, n, ev...))
}

func (s killableSnapshots) UpdateSnapshot(ctx context.Context, t nacre.TeamID, id nacre.SnapshotID, fn func(*nacre.Snapshot) ([]nacre.Event, error)) (nacre.Snapshot, error) {
	if err := step(s.fake, nil); err != nil {
		return nacre.Snapshot{}, err
	}
	n, err := s.SnapshotStore.UpdateSnapshot(ctx, t, id, fn)
	return n, step(s.fake, err)
}

func (s killableSnapshots) RetireSnapshot(ctx context.Context, t nacre.TeamID, id nacre.SnapshotID, ev ...nacre.Event) (nacre.Snapshot, error) {
	if err := step(s.fake, nil); err != nil {
		return nacre.Snapshot{}, err
	}
	n, err := s.SnapshotStore.RetireSnapshot(ctx, t, id, ev...)
	return n, step(s.fake, err)
}

func (s killableSnapshots) DropSnapshot(ctx context.Context, t nacre.TeamID, id nacre.SnapshotID) error {
	if err := step(s.fake, nil); err != nil {
		return err
	}
	return step(s.fake, s.SnapshotStore.DropSnapshot(ctx, t, id))
}
