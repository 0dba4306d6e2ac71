// Package server is the wiring: it turns a Config into stores, drivers, rooms
// and listeners, runs them, and ends them in the opposite order.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
	"github.com/nacrehq/nacre/api"
	"github.com/nacrehq/nacre/api/moru"
	"github.com/nacrehq/nacre/blob"
	"github.com/nacrehq/nacre/control"
	"github.com/nacrehq/nacre/edge"
	"github.com/nacrehq/nacre/image"
	"github.com/nacrehq/nacre/internal/agentbin"
	"github.com/nacrehq/nacre/network"
	"github.com/nacrehq/nacre/node"
	"github.com/nacrehq/nacre/runtime/mixed"
	"github.com/nacrehq/nacre/sqlstore"
)

// Options are what a Config file cannot say.
type Options struct {
	Version  string
	Progress func(step string, done, total int64) // may be nil
	Log      io.Writer
}

// Server is one daemon on one data directory.
type Server struct {
	cfg  Config
	opts Options
	log  *slog.Logger
}

// New checks nothing but the log level; Run does the work.
func New(c Config, o Options) (*Server, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", c.LogLevel)
	}
	ho := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(o.Log, ho)
	if c.LogJSON {
		h = slog.NewJSONHandler(o.Log, ho)
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	return &Server{cfg: c, opts: o, log: slog.New(h)}, nil
}

// Run starts everything, calls ready when the first request would be answered,
// and returns when ctx ends or a part fails. Sandboxes go on without it.
func (s *Server) Run(ctx context.Context, ready func(Status)) error {
	if err := ensureDir(s.cfg.DataDir); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	lock, err := lockDataDir(s.cfg.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := s.cfg.addressesFree(); err != nil {
		return err
	}
	sec, err := loadSecrets(s.cfg.DataDir)
	if err != nil {
		return err
	}
	adm := &admin{log: s.log, clock: time.Now, status: Status{Version: s.opts.Version, PID: os.Getpid(), Step: "starting"}}
	stopAdmin, err := adm.serve(ctx, s.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	defer stopAdmin()

	p, err := s.build(ctx, sec, adm)
	if err != nil {
		return errors.Join(err, p.close())
	}
	err = s.serve(ctx, p, adm, ready)
	return errors.Join(err, p.close())
}

// parts are the rooms of a running server, in the order in which they start.
type parts struct {
	db        *sqlstore.DB
	agent     string // the path of what guests boot with
	net       *network.Network
	chosen    choice
	runtime   *mixed.Runtime
	unfit     []Finding
	node      *node.Node
	images    nacre.ImageStore
	artifacts *image.Artifacts
	control   *control.Service
	handler   *entrance
	nouns     nouns
	tls       *tlsFiles
	auth      *api.Auth

	key     string // of the default team
	closers []func() error
}

// findings are what the parts learnt about the host while they run.
func (p *parts) findings() []Finding {
	return append(networkReport(p.net.Findings()), p.unfit...)
}

func (p *parts) onClose(f func() error) { p.closers = append(p.closers, f) }

func (p *parts) close() error {
	var errs []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		errs = append(errs, p.closers[i]())
	}
	return errors.Join(errs...)
}

// build makes every part and takes back the machines that run. It returns the
// parts that it made also when it fails, to be closed.
func (s *Server) build(ctx context.Context, sec secrets, adm *admin) (*parts, error) {
	p := &parts{}
	step := func(text string) {
		adm.step(text)
		s.log.Debug("start", "step", text)
	}
	step("choosing what machines are made of")
	var err error
	if p.chosen, err = chooseRuntimes(ctx, s.cfg.Runtime, hostVirtualization(s.cfg.DataDir)); err != nil {
		return p, err
	}
	if p.chosen.against != nil {
		s.log.Warn("Firecracker is set up and cannot be used", "reason", nacre.ErrorMessage(p.chosen.against))
	}
	step("opening the store")
	db, err := sqlstore.Open(ctx, s.cfg.Store, sqlstore.Options{Logger: s.log, EnvKey: sec.env, Clock: time.Now, Alone: s.cfg.Store == s.cfg.ownStore()})
	if err != nil {
		return p, fmt.Errorf("store: %w", err)
	}
	p.db = db
	p.onClose(db.Close)
	adm.open(db)
	if p.key, err = s.defaultKey(ctx, db); err != nil {
		return p, err
	}
	if err := settleDown(ctx, s.cfg.DataDir, db); err != nil {
		return p, fmt.Errorf("records of the sandboxes that nacre down ended: %w", err)
	}
	step("preparing this host")
	if err := provide(ctx, needs(s.baseMissing()), s.cfg.Install, func(t string) { step(t); s.opts.Progress(t, 0, 0) }); err != nil {
		return p, err
	}
	if err := mayRun(); err != nil {
		return p, err
	}
	step("taking back the machines that run")
	if err := s.buildHost(ctx, p, sec); err != nil {
		return p, err
	}
	step("preparing the base template")
	if err := s.baseTemplate(ctx, p, adm); err != nil {
		return p, fmt.Errorf("base template: %w", err)
	}
	p.control, err = control.New(control.Config{
		Store: db, Snapshots: db, Templates: db, Node: p.node, Traffic: p.node, Telemetry: p.node, Clock: time.Now, Logger: s.log,
		Limits: control.Limits{MaxTimeout: s.cfg.MaxTimeout, MaxPerTeam: s.cfg.PerTeam,
			MaxPaused: s.cfg.PausedPerTeam, MaxSnapshotBytes: s.cfg.SnapshotMiBPerTeam << 20},
		Agent: filepath.Base(p.agent), Retention: s.cfg.Retention,
	})
	if err != nil {
		return p, err
	}
	// Requests wake paused sandboxes from the first one on.
	if err := p.control.Load(ctx); err != nil {
		return p, err
	}
	p.nouns = s.buildNouns(p)
	// Before control begins to write events, and to purge records.
	if err := p.nouns.meter.CatchUp(ctx); err != nil {
		return p, fmt.Errorf("usage: %w", err)
	}
	return p, s.buildEntrance(p, sec)
}

// mayRun tells what only root may do, after what the host lacks was told.
func mayRun() error {
	if os.Geteuid() != 0 {
		return errors.New("the server makes network namespaces and control groups, for which it must be root; start it with sudo")
	}
	return nil
}

// buildHost makes the parts of this host and recovers what runs on it.
func (s *Server) buildHost(ctx context.Context, p *parts, sec secrets) error {
	agentPath, err := agentbin.Extract(filepath.Join(s.cfg.DataDir, "agent"))
	if err != nil {
		return err
	}
	p.agent = agentPath
	nc := network.Config{Instance: sec.instance, Pool: s.cfg.pool(), Ready: s.cfg.SlotsReady, Log: s.log}
	for _, text := range s.cfg.AllowPrivate {
		nc.AllowPrivate = append(nc.AllowPrivate, netip.MustParsePrefix(text)) // validated by Load
	}
	if p.net, err = network.New(nc); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	p.onClose(func() error { return p.net.Close(context.WithoutCancel(ctx)) })
	running, err := node.RunningOn(handleDir(sec.instance))
	if err != nil {
		return fmt.Errorf("machines of an earlier start: %w", err)
	}
	if p.runtime, err = openRuntime(p.chosen, running, s.drivers(sec.cgroup(), agentPath), s.log); err != nil {
		return err
	}
	p.onClose(p.runtime.Close)
	blobs, err := blob.Open(s.cfg.Blobs)
	if err != nil {
		return fmt.Errorf("blobs: %w", err)
	}
	images, err := image.Open(image.Options{Dir: imagesDir(s.cfg.DataDir), Blobs: blobs, Logger: s.log})
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	p.images = images
	p.onClose(images.Close)
	artifacts, err := image.OpenArtifacts(image.ArtifactOptions{Dir: snapshotsDir(s.cfg.DataDir), Blobs: blobs,
		PlainMiB: s.cfg.PlainMiB, LowWaterMiB: s.cfg.LowWaterMiB, Logger: s.log})
	if err != nil {
		return fmt.Errorf("snapshots: %w", err)
	}
	p.artifacts = artifacts
	p.onClose(artifacts.Close)
	p.node, err = node.New(node.Config{
		ID: localNode, Dir: nodeDir(s.cfg.DataDir), HandleDir: handleDir(sec.instance),
		Runtime: p.runtime, Network: p.net, Images: images, Artifacts: artifacts,
		NewAgent:  newAgent,
		AgentPath: agentPath, TokenKey: sec.tokens,
		Standby: node.Standby{Count: s.cfg.Standby},
		Admission: node.Admission{MaxSandboxes: s.cfg.MaxSandboxes, Overcommit: s.cfg.Overcommit,
			MemoryReserve: int64(s.cfg.ReserveMiB) << 20},
		BootTimeout: s.cfg.BootTimeout, Retention: s.cfg.Retention, Clock: time.Now, Logger: s.log,
	})
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	p.onClose(p.node.Close)
	if err := p.node.Recover(ctx); err != nil {
		return err
	}
	kept, err := p.node.Snapshots(ctx)
	if err != nil {
		return fmt.Errorf("snapshots: %w", err)
	}
	p.unfit = unfitFindings(kept, p.runtime.Capabilities())
	for _, f := range p.unfit {
		s.log.Warn(f.What, "advice", f.Advice)
	}
	return nil
}

// localNode names the node inside this process.
const localNode nacre.NodeID = "local"

func imagesDir(dataDir string) string    { return filepath.Join(dataDir, "images") }
func snapshotsDir(dataDir string) string { return filepath.Join(dataDir, "snapshots") }
func nodeDir(dataDir string) string      { return filepath.Join(dataDir, "node") }

// handleDir is where the node keeps what finds its machines again: in memory, for
// no machine outlives the kernel, and a disk would make each create wait for the
// store's syncs.
func handleDir(instance string) string { return filepath.Join("/run/nacre", instance) }

func newAgent(dial func(ctx context.Context, port int) (net.Conn, error), hostToken, accessToken string) nacre.Agent {
	return envd.New(envd.Options{Dial: dial, HostToken: hostToken, AccessToken: accessToken})
}

// serve runs the loops and the listeners until ctx ends or one of them fails.
func (s *Server) serve(ctx context.Context, p *parts, adm *admin, ready func(Status)) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.loop("node", p.node.Run(ctx)) })
	g.Go(func() error { return s.loop("snapshots", p.artifacts.Run(ctx)) })
	g.Go(func() error { return s.loop("control", p.control.Run(ctx)) })
	g.Go(func() error { return s.loop("keys", p.auth.Run(ctx)) })
	for name, run := range p.nouns.loops() {
		g.Go(func() error { return s.loop(name, run(ctx)) })
	}
	at, err := p.handler.listen(ctx, g, s.cfg, p.tls)
	if err != nil {
		g.Go(func() error { return err })
		return g.Wait()
	}
	if err := s.announce(p, at); err != nil {
		g.Go(func() error { return err })
		return g.Wait()
	}
	adm.ready(p.node, p.findings, at.http, at.https)
	s.log.Info("ready", "http", at.http, "https", at.https, "version", s.opts.Version)
	if s.cfg.Warm {
		g.Go(func() error { s.warmTemplates(ctx, p); return nil })
	}
	ready(Status{Ready: true, Step: "ready", Version: s.opts.Version, PID: os.Getpid(), HTTP: at.http, HTTPS: at.https})
	return g.Wait()
}

// loop gives a part's failure its name. A part that ends because the server ends
// did not fail.
func (s *Server) loop(name string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}

// buildEntrance makes what the listeners hand requests to.
func (s *Server) buildEntrance(p *parts, sec secrets) error {
	tls, err := s.loadTLS()
	if err != nil {
		return err
	}
	p.tls = tls
	auth := api.NewAuth(p.db, time.Now)
	p.auth = auth
	dialect := moru.New(moru.Config{
		Service: p.control, Snapshots: p.control, Auth: auth, Teams: p.db, TokenKey: sec.tokens,
		Domain: s.publicDomain(), EnvdVersion: envd.Version, Once: p.nouns.once, Logger: s.log, Clock: time.Now,
		Progress: p.node.Progress,
	})
	described, err := openAPI(s.opts.Version, dialect)
	if err != nil {
		return err
	}
	public := edge.New(edge.Config{
		Traffic: p.node, Waker: p.control, Activity: p.control, TokenKey: sec.tokens, Domain: s.cfg.Domain, Logger: s.log,
		Previews: p.db,
	})
	p.onClose(public.Close)
	p.handler = &entrance{api: described, miosa: s.miosaAPI(p, sec, auth), log: s.log, edge: public}
	return nil
}

// publicDomain is what clients build sandboxes' host names from: with the port
// of the HTTPS listener where it is not 443.
func (s *Server) publicDomain() string {
	_, port, err := net.SplitHostPort(s.cfg.HTTPS)
	if err != nil || port == "443" || port == "0" {
		return s.cfg.Domain
	}
	return s.cfg.Domain + ":" + port
}

func urlOf(scheme, addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + "://" + strings.TrimSuffix(net.JoinHostPort(host, port), ":")
}
