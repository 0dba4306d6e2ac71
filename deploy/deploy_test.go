package deploy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/sqlstore"
)

// world is a deployer over a real store. Its sandboxes are records; a command that
// begins with "serve" listens on the deployment's port, all others end.
type world struct {
	nacre.Service
	nacre.SnapshotService
	nacre.Traffic
	t    *testing.T
	db   *sqlstore.DB
	team nacre.TeamID
	d    *Deployer

	mu        sync.Mutex
	snapshots map[nacre.SnapshotID]nacre.SnapshotRequest
	serving   map[nacre.SandboxID]string
	starts    int // of commands that serve
	dials     int
	last      nacre.CreateRequest
	hold      chan struct{} // a create waits for it
}

func newWorld(t *testing.T) *world {
	db, err := sqlstore.Open(t.Context(), filepath.Join(t.TempDir(), "nacre.db"), sqlstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	team, err := db.EnsureTeam(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, db: db, team: team.ID, snapshots: map[nacre.SnapshotID]nacre.SnapshotRequest{}, serving: map[nacre.SandboxID]string{}}
	w.start()
	return w
}

func (w *world) start() {
	w.d = New(Config{Service: w, Snapshots: w, Traffic: w, Previews: w.db, Store: w.db, Teams: w.db, HealthTime: 2 * time.Second,
		Every: 5 * time.Millisecond, Pause: time.Millisecond})
	w.t.Cleanup(func() { _ = w.d.Close() })
}

func (w *world) box() nacre.Sandbox {
	w.t.Helper()
	s := nacretest.SampleSandbox(w.team, nacre.StateRunning)
	s.Metadata[nacre.LabelSlug] = "source"
	if err := w.db.Insert(w.t.Context(), s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) Get(ctx context.Context, team nacre.TeamID, id nacre.SandboxID) (nacre.Sandbox, error) {
	return w.db.Get(ctx, team, id)
}

func (w *world) List(ctx context.Context, team nacre.TeamID, f nacre.SandboxFilter) (nacre.SandboxPage, error) {
	f.TeamID = team
	return w.db.List(ctx, f)
}

func (w *world) Create(ctx context.Context, team nacre.TeamID, r nacre.CreateRequest) (nacre.Sandbox, error) {
	w.mu.Lock()
	w.last = r
	hold := w.hold
	_, known := w.snapshots[nacre.SnapshotID(r.Template)]
	w.mu.Unlock()
	if !known {
		return nacre.Sandbox{}, nacre.Errorf(nacre.CodeNotFound, "no such snapshot")
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nacre.Sandbox{}, ctx.Err()
		}
	}
	s := nacretest.SampleSandbox(team, nacre.StateRunning)
	s.Metadata, s.AlwaysOn = r.Metadata, r.AlwaysOn
	return s, w.db.Insert(ctx, s)
}

func (w *world) Kill(ctx context.Context, team nacre.TeamID, id nacre.SandboxID) error {
	_, err := w.db.Update(ctx, team, id, func(s *nacre.Sandbox) ([]nacre.Event, error) {
		if !s.Alive() {
			return nil, nacre.Errorf(nacre.CodeNotFound, "it has ended")
		}
		return nil, s.Move(nacre.StateEnded)
	})
	return err
}

func (w *world) Snapshot(_ context.Context, _ nacre.TeamID, _ nacre.SandboxID, r nacre.SnapshotRequest) (nacre.Snapshot, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := nacre.NewSnapshotID()
	w.snapshots[id] = r
	if !r.FilesOnly || (r.Keep == 0) == (r.Name == "") {
		w.t.Errorf("the snapshot of a deploy: %+v", r)
	}
	return nacre.Snapshot{ID: id}, nil
}

func (w *world) DeleteSnapshot(_ context.Context, _ nacre.TeamID, id nacre.SnapshotID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.snapshots, id)
	return nil
}

func (w *world) ListSnapshots(_ context.Context, _ nacre.TeamID, f nacre.SnapshotFilter) (page nacre.SnapshotPage, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, r := range w.snapshots {
		if r.Name == f.Name {
			page.Snapshots = append(page.Snapshots, nacre.Snapshot{ID: id, Name: r.Name})
		}
	}
	return page, nil
}

// kept counts the snapshots that are left.
func (w *world) kept() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.snapshots)
}

func (w *world) Dial(_ context.Context, id nacre.SandboxID, _ int) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dials++
	if w.serving[id] == "" {
		return nil, nacre.Errorf(nacre.CodeUnavailable, "nobody listens")
	}
	ours, theirs := net.Pipe()
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		command := w.serving[id] // it may be another by now
		w.mu.Unlock()
		if strings.Contains(command, "sick") {
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	go func() { _ = srv.Serve(&oneConn{c: theirs}) }()
	return ours, nil
}

// oneConn is a listener with one connection.
type oneConn struct {
	c    net.Conn
	once sync.Once
}

func (l *oneConn) Accept() (c net.Conn, err error) {
	err = io.EOF
	l.once.Do(func() { c, err = l.c, nil })
	return c, err
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.c.LocalAddr() }

func (w *world) Agent(_ context.Context, id nacre.SandboxID) (nacre.Agent, error) {
	return &guest{world: w, id: id}, nil
}

// guest is an agent of which only processes can be started.
type guest struct {
	nacre.Agent
	world *world
	id    nacre.SandboxID
}

func (g *guest) Processes() nacre.Processes { return processes{guest: g} }

type processes struct {
	nacre.Processes
	guest *guest
}

func (p processes) Start(ctx context.Context, spec nacre.ProcessSpec) (nacre.ProcessStream, error) {
	command := spec.Args[1]
	s := &stream{t: p.guest.world.t, ctx: ctx}
	if strings.HasPrefix(command, "serve") {
		p.guest.world.mu.Lock()
		p.guest.world.serving[p.guest.id] = command
		p.guest.world.starts++
		p.guest.world.mu.Unlock()
		return s, nil
	}
	exit := &nacre.ProcessExit{Exited: true}
	_, _ = fmt.Sscanf(command, "exit %d", &exit.Code)
	s.events, s.ends = []nacre.ProcessEvent{{Stdout: []byte("it said " + command)}, {Exit: exit}}, true
	return s, nil
}

func (p processes) List(context.Context) ([]nacre.ProcessInfo, error) {
	p.guest.world.mu.Lock()
	defer p.guest.world.mu.Unlock()
	if p.guest.world.serving[p.guest.id] == "" {
		return nil, nil
	}
	return []nacre.ProcessInfo{{PID: 2, Tag: "stranger"}, {PID: 1, Tag: processTag}}, nil
}

func (p processes) Signal(_ context.Context, pid, _ int) error {
	if pid != 1 {
		p.guest.world.t.Errorf("process %d is none of the deployment's", pid)
	}
	p.guest.world.end(p.guest.id)
	return nil
}

// end ends a sandbox's command.
func (w *world) end(id nacre.SandboxID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.serving, id)
}

type stream struct {
	t      testing.TB
	ctx    context.Context
	events []nacre.ProcessEvent
	ends   bool
	read   atomic.Bool // somebody is in Next
}

func (s *stream) PID() int { return 1 }

func (s *stream) Close() error {
	if s.read.Load() {
		s.t.Error("a stream is closed while it is read")
	}
	return nil
}

func (s *stream) Next() (nacre.ProcessEvent, error) {
	switch {
	case len(s.events) > 0:
		e := s.events[0]
		s.events = s.events[1:]
		return e, nil
	case s.ends:
		return nacre.ProcessEvent{}, io.EOF
	}
	s.read.Store(true)
	defer s.read.Store(false)
	<-s.ctx.Done()
	return nacre.ProcessEvent{}, s.ctx.Err()
}

func (w *world) deploy(want nacre.Deployment) nacre.Deployment {
	w.t.Helper()
	want.TeamID = w.team
	if want.Port == 0 {
		want.Port = 3000
	}
	got, err := w.d.Deploy(w.t.Context(), want)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func (w *world) alive(id nacre.SandboxID) bool {
	s, err := w.db.Get(w.t.Context(), w.team, id)
	return err == nil && s.Alive()
}

// copies counts the sandboxes of a deployment that live.
func (w *world) copies(id nacre.DeploymentID) (n int) {
	page, err := w.db.List(w.t.Context(), nacre.SandboxFilter{TeamID: w.team, Metadata: map[string]string{nacre.LabelDeployment: string(id)}})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range page.Sandboxes {
		if s.Alive() {
			n++
		}
	}
	return n
}

// TestDeployAndAgain: a deployment keeps its name, address and id over deploys; its
// copy has no deadline and no snapshot is left; what served before is ended when the
// new one serves.
func TestDeployAndAgain(t *testing.T) {
	w := newWorld(t)
	source := w.box()
	first := w.deploy(nacre.Deployment{Name: "shop", Source: source.ID, Build: "true", Start: "serve 1", Health: "/up"})
	if first.State != nacre.DeploymentLive || first.Revision != 1 || !w.alive(first.Sandbox) || !w.last.AlwaysOn || w.kept() != 1 {
		t.Fatalf("%+v, %d snapshots", first, w.kept())
	}
	p, err := w.db.GetPreview(t.Context(), w.team, first.Preview)
	if err != nil || p.Slug != "shop" || p.Sandbox != first.Sandbox || p.Port != 3000 {
		t.Errorf("%+v %v", p, err)
	}
	second := w.deploy(nacre.Deployment{ID: first.ID, Source: source.ID, Start: "serve 2", Port: 4000})
	p, err = w.db.GetPreview(t.Context(), w.team, first.Preview)
	if second.Name != "shop" || second.Revision != 2 || second.Preview != first.Preview || err != nil || p.Sandbox != second.Sandbox || p.Port != 4000 {
		t.Errorf("%+v %+v %v", second, p, err)
	}
	if w.alive(first.Sandbox) || w.copies(first.ID) != 1 || !w.alive(source.ID) {
		t.Error("the copy before was not ended, or the source was")
	}
	if w.last.Metadata[nacre.LabelSlug] != "" || w.last.Metadata[nacre.LabelDeployment] != string(first.ID) || w.last.Metadata["user"] != "ann" {
		t.Errorf("the copy has the metadata %v", w.last.Metadata)
	}
	other := w.deploy(nacre.Deployment{Name: "api", Source: source.ID, Start: "serve"})
	if p, _ := w.db.GetPreview(t.Context(), w.team, other.Preview); p.Slug != "api-app" {
		t.Errorf("a name of the server's own has the slug %q", p.Slug)
	}
	if err := w.d.Delete(t.Context(), w.team, "shop"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.db.GetPreview(t.Context(), w.team, first.Preview); !nacre.IsCode(err, nacre.CodeNotFound) || w.copies(first.ID) != 0 || w.kept() != 1 {
		t.Errorf("after the delete: %v, %d copies, %d snapshots", err, w.copies(first.ID), w.kept())
	}
}

// TestDeployFails: whatever goes wrong is told, leaves no copy, and what served still does.
func TestDeployFails(t *testing.T) {
	w := newWorld(t)
	source := w.box()
	good := w.deploy(nacre.Deployment{Name: "shop", Source: source.ID, Start: "serve"})
	for what, c := range map[string]struct {
		want nacre.Deployment
		why  string
	}{
		"build":   {nacre.Deployment{Build: "exit 2", Start: "serve"}, "build command failed with status 2: it said exit 2"},
		"start":   {nacre.Deployment{Start: "exit 7"}, "status 7: it said exit 7"},
		"silence": {nacre.Deployment{Start: "exit 0"}, "nothing listens on port 3000"},
		"health":  {nacre.Deployment{Start: "serve sick", Health: "/up"}, "/up answers 503"},
	} {
		c.want.ID, c.want.Source = good.ID, source.ID
		got := w.deploy(c.want)
		if got.State != nacre.DeploymentFailed || !strings.Contains(got.Detail, c.why) || got.Sandbox != good.Sandbox {
			t.Errorf("%s: %+v", what, got)
		}
		if !w.alive(good.Sandbox) || w.copies(good.ID) != 1 || w.kept() != 1 || got.Start != "serve" {
			t.Errorf("%s: %d copies, %d snapshots, serves %q", what, w.copies(good.ID), w.kept(), got.Start)
		}
	}
	for _, bad := range []nacre.Deployment{
		{Name: "Shop", Start: "serve", Port: 1}, {Name: "8080-x", Start: "serve", Port: 1}, {Name: "a", Port: 1},
		{Name: "a", Start: "serve"}, {Name: "a", Start: "serve", Port: nacre.AgentPort}, {Name: "a", Start: "serve", Port: 1, Health: "x"},
	} {
		bad.TeamID, bad.Source = w.team, source.ID
		if _, err := w.d.Deploy(t.Context(), bad); !nacre.IsCode(err, nacre.CodeInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	stranger := nacre.Deployment{TeamID: nacre.NewTeamID(), Name: "a", Source: source.ID, Start: "serve", Port: 1}
	if _, err := w.d.Deploy(t.Context(), stranger); !nacre.IsCode(err, nacre.CodeNotFound) {
		t.Errorf("another team's sandbox: %v", err)
	}
}

// TestDeployInterrupted: two deploys of one name do not meet; a server that stops takes
// back what it was at; what a crash left is ended by the next one.
func TestDeployInterrupted(t *testing.T) {
	w := newWorld(t)
	source := w.box()
	w.hold = make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	want := nacre.Deployment{TeamID: w.team, Name: "shop", Source: source.ID, Start: "serve", Port: 3000}
	got, err := w.d.Deploy(ctx, want)
	if err != nil || got.State != nacre.DeploymentBuilding {
		t.Fatalf("%+v %v", got, err)
	}
	if _, err := w.d.Deploy(t.Context(), want); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("a second deploy meanwhile: %v", err)
	}
	if err := w.d.Delete(t.Context(), w.team, "shop"); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Errorf("a delete meanwhile: %v", err)
	}
	if err := w.d.Close(); err != nil {
		t.Fatal(err)
	}
	got, _ = w.db.GetDeployment(t.Context(), w.team, "shop")
	if got.State != nacre.DeploymentFailed || !strings.Contains(got.Detail, "deploy it again") || w.copies(got.ID) != 0 || w.kept() != 0 {
		t.Errorf("after a stop: %+v", got)
	}

	w.hold = nil
	w.start()
	live := w.deploy(want)
	left := nacretest.SampleSandbox(w.team, nacre.StateRunning) // as a kill leaves it
	left.Metadata = map[string]string{nacre.LabelDeployment: string(live.ID)}
	if err := w.db.Insert(t.Context(), left); err != nil {
		t.Fatal(err)
	}
	_, err = w.db.UpdateDeployment(t.Context(), w.team, live.ID, func(d *nacre.Deployment) error { d.State = nacre.DeploymentBuilding; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := w.d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Snapshot(t.Context(), w.team, live.Sandbox, nacre.SnapshotRequest{FilesOnly: true, Name: filesName(live.ID)}); err != nil {
		t.Fatal(err)
	}
	w.start()
	if err := w.d.recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.kept() != 1 {
		t.Errorf("%d snapshots are left", w.kept())
	}
	got, _ = w.db.GetDeployment(t.Context(), w.team, "shop")
	if got.State != nacre.DeploymentFailed || w.alive(left.ID) || !w.alive(live.Sandbox) {
		t.Errorf("after a crash: %+v, the half-made copy lives: %v, the one that serves: %v", got, w.alive(left.ID), w.alive(live.Sandbox))
	}
}
