// Package control holds the rules of a sandbox's life: what may be created, when
// it ends and why, and what becomes of the differences between the records in the
// store and the machines on the nodes. It implements nacre.Service.
//
// Deadlines are wall-clock times in the store, so that they hold across restarts.
// While this process runs it keeps each as a moment of the monotonic clock, so that
// a step of the wall clock neither ends a sandbox early nor keeps it alive; after a
// step the stored deadlines are moved along with the clock.
//
// What keeps a sandbox (pause, snapshot, fork) goes through one order: the record of
// the snapshot, the sandbox's record that names it, the files on the node, and back.
// A snapshot lives while a sandbox's record names it or its owner keeps it; what
// neither does is deleted, by whoever made it or by the reconciler. That between a
// running sandbox and its copies is this process's alone, and nobody waits for its record.
package control

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nacrehq/nacre"
	"golang.org/x/sync/singleflight"
)

// Config is what the service is made of. Store, Templates, Node and Telemetry are
// required. Without Snapshots nothing can be paused or kept, without Traffic no
// template be made warm.
type Config struct {
	Store     nacre.SandboxStore
	Snapshots nacre.SnapshotStore
	Templates nacre.TemplateStore
	Traffic   nacre.Traffic
	Node      nacre.Node
	Telemetry nacre.Telemetry
	Limits    Limits
	Agent     string        // what guests boot with, by a name that says its content: a warm template of another is made anew
	Retention time.Duration // how long ended records are kept; default 7 days
	Reconcile time.Duration // between comparisons with the node; default 30 s

	// RecordAfter is how long a start may take whose record is written once, when it
	// is done; default 20 ms: a standby is handed over in less. Negative is 0.
	RecordAfter time.Duration

	// StoreTime is how long an operation that was begun may wait for the store once
	// its caller has gone: it is finished or taken back, never left half done.
	// Default 30 s.
	StoreTime time.Duration

	Clock  nacre.Clock
	Logger *slog.Logger
}

// Service implements nacre.Service, SnapshotService, Waker and Activity.
type Service struct {
	cfg    Config
	log    *slog.Logger
	nodes  []nacre.Node
	roster *roster
	flight *flight
	hand   *inHand
	behind behind

	resumes singleflight.Group // by sandbox
	warming singleflight.Group // by template

	warmBoxes sync.Map // sandboxes that this process makes templates warm in

	lastFull atomic.Int64 // when a node last had no room, UnixNano
	seed     maphash.Seed
	locks    [64]sync.Mutex // see lock
}

// New makes the service. It answers at once; Run holds the loops.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil || cfg.Templates == nil || cfg.Node == nil || cfg.Telemetry == nil {
		return nil, errors.New("control: Store, Templates, Node and Telemetry are required")
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&cfg.Retention, 7*24*time.Hour)
	setDefault(&cfg.Reconcile, 30*time.Second)
	setDefault(&cfg.RecordAfter, 20*time.Millisecond)
	setDefault(&cfg.StoreTime, 30*time.Second)
	cfg.Limits.setDefaults()
	return &Service{
		cfg: cfg, log: cfg.Logger, nodes: []nacre.Node{cfg.Node},
		roster: newRoster(), flight: newFlight(), hand: &inHand{ids: map[nacre.SnapshotID]bool{}}, seed: maphash.MakeSeed(),
	}, nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// place chooses the node of a new sandbox.
func (s *Service) place() nacre.Node { return s.nodes[0] }

// nodeOf returns the node that a sandbox is on, nil for one that is not ours.
func (s *Service) nodeOf(id nacre.NodeID) nacre.Node {
	for _, n := range s.nodes {
		if n.ID() == id {
			return n
		}
	}
	return nil
}

// now is the wall clock, as exact as every store keeps it.
func (s *Service) now() time.Time { return s.cfg.Clock().UTC().Truncate(time.Millisecond) }

// Get returns a record, an ended one too.
func (s *Service) Get(ctx context.Context, team nacre.TeamID, id nacre.SandboxID) (nacre.Sandbox, error) {
	if !id.Valid() || team == "" {
		return nacre.Sandbox{}, errUnknown()
	}
	return s.cfg.Store.Get(ctx, team, id)
}

// List pages through a team's records.
func (s *Service) List(ctx context.Context, team nacre.TeamID, f nacre.SandboxFilter) (nacre.SandboxPage, error) {
	if team == "" {
		return nacre.SandboxPage{}, errUnknown()
	}
	f.TeamID, f.AllTeams = team, false
	return s.cfg.Store.List(ctx, f)
}

// Metrics returns a sandbox's samples.
func (s *Service) Metrics(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, from, to time.Time) ([]nacre.Metric, error) {
	if _, err := s.Get(ctx, team, id); err != nil {
		return nil, err
	}
	return s.cfg.Telemetry.Metrics(ctx, id, from, to)
}

// Logs returns a sandbox's log entries.
func (s *Service) Logs(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, q nacre.LogQuery) ([]nacre.LogEntry, error) {
	if _, err := s.Get(ctx, team, id); err != nil {
		return nil, err
	}
	return s.cfg.Telemetry.Logs(ctx, id, q)
}

// Templates lists the team's own templates, then the public ones.
func (s *Service) Templates(ctx context.Context, team nacre.TeamID) ([]nacre.Template, error) {
	used, err := s.cfg.Templates.TemplateUse(ctx, team)
	if err != nil {
		return nil, err
	}
	var out []nacre.Template
	seen := map[nacre.TemplateID]bool{}
	for _, owner := range []nacre.TeamID{team, ""} {
		list, err := s.cfg.Templates.Templates(ctx, owner)
		if err != nil {
			return nil, err
		}
		for _, t := range list {
			if !seen[t.ID] {
				seen[t.ID] = true
				for _, name := range append([]string{string(t.ID)}, t.Names...) {
					t.Use.Add(used[name])
				}
				out = append(out, t)
			}
		}
	}
	return out, nil
}

// errUnknown is for an id that cannot be: it repeats nothing of it.
func errUnknown() error { return nacre.Errorf(nacre.CodeNotFound, "there is no such sandbox") }

func errGone(id nacre.SandboxID) error {
	return nacre.Errorf(nacre.CodeNotFound, "sandbox %s not found", id)
}
