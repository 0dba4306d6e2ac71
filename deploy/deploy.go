// Package deploy publishes sandboxes: a copy of one's files runs for good behind a
// name that stays, is started by a command and shown once it is healthy. What serves
// under the name goes on until its successor does.
//
// A deploy is made in the background and its record tells how far it is. A crash
// leaves the record building and perhaps a copy that nobody shows; Run ends both.
package deploy

import (
	"context"
	"log/slog"
	"maps"
	"regexp"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/undo"
)

// label names the deployment that a copy was made for.
const label = nacre.ReservedMetadata + "deployment"

// Config is what a deployer needs. Durations that are 0 have good defaults.
type Config struct {
	Service   nacre.Service
	Snapshots nacre.SnapshotService
	Traffic   nacre.Traffic
	Previews  nacre.PreviewStore
	Store     nacre.DeploymentStore
	Teams     Teams

	BuildTime  time.Duration // for the build command; 15 minutes
	HealthTime time.Duration // until it must be healthy; a minute

	Clock  nacre.Clock  // nil means time.Now
	Logger *slog.Logger // nil means none
}

// Teams lists whose deployments there may be.
type Teams interface {
	Teams(ctx context.Context) ([]nacre.Team, error)
}

// Deployer makes deployments. All methods may run at once.
type Deployer struct {
	Config
	ctx    context.Context // of all that is under way
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	busy map[nacre.DeploymentID]chan struct{} // closed when it is done
}

// New returns a deployer. Close ends what is under way.
func New(c Config) *Deployer {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.BuildTime == 0 {
		c.BuildTime = 15 * time.Minute
	}
	if c.HealthTime == 0 {
		c.HealthTime = time.Minute
	}
	d := &Deployer{Config: c, busy: map[nacre.DeploymentID]chan struct{}{}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Close takes back what is not finished, and waits for that.
func (d *Deployer) Close() error {
	d.cancel()
	d.wg.Wait()
	return nil
}

// Run ends what a crash left half done, then waits for ctx.
func (d *Deployer) Run(ctx context.Context) error {
	for {
		err := d.recover(ctx)
		if err == nil {
			<-ctx.Done()
			return ctx.Err()
		}
		d.Logger.Error("what a crash left of deployments could not be looked at; it is tried again", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryAfter):
		}
	}
}

const retryAfter = 5 * time.Second

func (d *Deployer) recover(ctx context.Context) error {
	teams, err := d.Teams.Teams(ctx)
	if err != nil {
		return err
	}
	for _, t := range teams {
		list, err := d.Store.Deployments(ctx, t.ID, "")
		if err != nil {
			return err
		}
		for _, dep := range list {
			if err := d.settle(ctx, dep.TeamID, dep.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// settle ends the copies of a deployment that nobody makes or shows.
func (d *Deployer) settle(ctx context.Context, team nacre.TeamID, id nacre.DeploymentID) error {
	d.mu.Lock()
	defer d.mu.Unlock() // nobody begins meanwhile
	if d.busy[id] != nil {
		return nil
	}
	dep, err := d.Store.GetDeployment(ctx, team, string(id))
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	d.sweep(ctx, dep)
	if dep.State == nacre.DeploymentBuilding {
		d.fail(ctx, dep, nacre.Errorf(nacre.CodeUnavailable, "the server stopped while it was deployed; deploy it again"))
	}
	return nil
}

// sweep ends the copies that do not serve.
func (d *Deployer) sweep(ctx context.Context, dep nacre.Deployment) {
	page, err := d.Service.List(ctx, dep.TeamID, nacre.SandboxFilter{Metadata: map[string]string{label: string(dep.ID)}, Limit: 100})
	if err != nil {
		d.Logger.Error("the copies of a deployment could not be listed", "deployment", dep.ID, "err", err)
		return
	}
	for _, s := range page.Sandboxes {
		if s.ID != dep.Sandbox && s.Alive() {
			d.kill(ctx, dep.TeamID, s.ID)
		}
	}
}

func (d *Deployer) kill(ctx context.Context, team nacre.TeamID, id nacre.SandboxID) {
	if err := d.Service.Kill(ctx, team, id); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
		d.Logger.Error("a copy of a deployment could not be ended", "sandbox", id, "err", err)
	}
}

var nameForm = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,46}[a-z0-9])?$`)

// check completes what is asked for.
func check(want *nacre.Deployment) error {
	switch {
	case want.ID == "" && !nameForm.MatchString(want.Name):
		return nacre.Invalidf("name", "name must be 1 to 48 of a-z, 0-9 and '-', begin with a letter and not end with '-'")
	case want.Start == "":
		return nacre.Invalidf("start_command", "start_command is missing; it is the command that serves")
	case want.Port < 1 || want.Port > 65535 || want.Port == nacre.AgentPort:
		return nacre.Invalidf("port", "port must be between 1 and 65535, and not %d", nacre.AgentPort)
	case want.Health != "" && want.Health[0] != '/':
		return nacre.Invalidf("health_check_path", "health_check_path must begin with '/'")
	}
	if want.Dir == "" {
		want.Dir = "/workspace"
	}
	return nil
}

// Deploy publishes the sandbox want.Source under want.Name, or again what want.ID
// names, and returns how far it is when it is done or ctx ends, whichever comes first.
// A deploy of what is being deployed is CodeConflict, an unknown source CodeNotFound.
// A deploy that fails is no error: the record says so, and what served before still does.
func (d *Deployer) Deploy(ctx context.Context, want nacre.Deployment) (nacre.Deployment, error) {
	if err := check(&want); err != nil {
		return nacre.Deployment{}, err
	}
	source, err := d.Service.Get(ctx, want.TeamID, want.Source)
	if err == nil && !source.Alive() {
		err = nacre.Errorf(nacre.CodeNotFound, "sandbox %s has ended", want.Source)
	}
	if err != nil {
		return nacre.Deployment{}, err
	}
	dep, done, err := d.begin(ctx, want)
	if err != nil {
		return nacre.Deployment{}, err
	}
	d.wg.Go(func() {
		defer d.end(dep.ID)
		d.run(d.ctx, dep, source)
	})
	select {
	case <-done:
	case <-ctx.Done():
	}
	return d.Store.GetDeployment(context.WithoutCancel(ctx), dep.TeamID, string(dep.ID))
}

// begin writes the record of a deploy that is to be made.
func (d *Deployer) begin(ctx context.Context, want nacre.Deployment) (dep nacre.Deployment, done <-chan struct{}, err error) {
	key := want.Name
	if want.ID != "" {
		key = string(want.ID)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return dep, nil, nacre.Errorf(nacre.CodeUnavailable, "the server is stopping")
	}
	now := d.Clock().UTC()
	dep, err = d.Store.GetDeployment(ctx, want.TeamID, key)
	switch {
	case nacre.IsCode(err, nacre.CodeNotFound) && want.ID == "":
		dep = want
		dep.ID, dep.State, dep.Revision, dep.CreatedAt, dep.UpdatedAt = nacre.NewDeploymentID(), nacre.DeploymentBuilding, 1, now, now
		err = d.Store.InsertDeployment(ctx, dep)
	case err == nil && d.busy[dep.ID] != nil:
		err = nacre.Errorf(nacre.CodeConflict, "%s is being deployed; wait until that is done", dep.Name)
	case err == nil:
		dep, err = d.Store.UpdateDeployment(ctx, dep.TeamID, dep.ID, func(r *nacre.Deployment) error {
			r.Source, r.Build, r.Start, r.Dir, r.Port, r.Health = want.Source, want.Build, want.Start, want.Dir, want.Port, want.Health
			r.Env, r.State, r.Detail, r.UpdatedAt = want.Env, nacre.DeploymentBuilding, "", now
			r.Revision++
			return nil
		})
	}
	if err != nil {
		return dep, nil, err
	}
	ch := make(chan struct{})
	d.busy[dep.ID] = ch
	return dep, ch, nil
}

func (d *Deployer) end(id nacre.DeploymentID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.busy[id])
	delete(d.busy, id)
}

// lastTime is how long what must be written at the end may take.
const lastTime = time.Minute

// run makes a deployment and writes what became of it.
func (d *Deployer) run(ctx context.Context, dep nacre.Deployment, source nacre.Sandbox) {
	var stack undo.Stack
	err := d.make(ctx, &stack, dep, source)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTime)
	defer cancel()
	if err == nil {
		return
	}
	if uerr := stack.Run(last); uerr != nil {
		d.Logger.Error("a deploy that failed could not be taken back", "deployment", dep.ID, "err", uerr)
	}
	if ctx.Err() != nil {
		err = nacre.Wrap(nacre.CodeUnavailable, err, "the server stopped while it was deployed; deploy it again")
	}
	d.fail(last, dep, err)
}

func (d *Deployer) fail(ctx context.Context, dep nacre.Deployment, cause error) {
	d.Logger.Info("a deploy failed", "deployment", dep.ID, "err", cause)
	_, err := d.Store.UpdateDeployment(ctx, dep.TeamID, dep.ID, func(r *nacre.Deployment) error {
		r.State, r.Detail, r.UpdatedAt = nacre.DeploymentFailed, nacre.ErrorMessage(cause), d.Clock().UTC()
		return nil
	})
	if err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
		d.Logger.Error("a failed deploy could not be recorded", "deployment", dep.ID, "err", err)
	}
}

// make copies the source, starts the copy, and shows it when it is healthy.
func (d *Deployer) make(ctx context.Context, stack *undo.Stack, dep nacre.Deployment, source nacre.Sandbox) error {
	box, err := d.copyOf(ctx, dep, source)
	if err != nil {
		return err
	}
	stack.Push("the copy", func(ctx context.Context) error {
		if err := d.Service.Kill(ctx, dep.TeamID, box.ID); !nacre.IsCode(err, nacre.CodeNotFound) {
			return err
		}
		return nil
	})
	if err := d.serve(ctx, dep, box.ID); err != nil {
		return err
	}
	preview, err := d.show(ctx, dep, box.ID)
	if err != nil {
		return err
	}
	_, err = d.Store.UpdateDeployment(ctx, dep.TeamID, dep.ID, func(r *nacre.Deployment) error {
		r.State, r.Detail, r.Sandbox, r.Preview, r.UpdatedAt = nacre.DeploymentLive, "", box.ID, preview, d.Clock().UTC()
		return nil
	})
	if err != nil {
		return err
	}
	stack.Keep()
	if dep.Sandbox != "" { // what served before, and still does for who looked the name up a moment ago
		select {
		case <-ctx.Done():
		case <-time.After(drain):
		}
		d.kill(context.WithoutCancel(ctx), dep.TeamID, dep.Sandbox)
	}
	return nil
}

// drain is how long what served before goes on.
const drain = time.Second

// leftover is when a snapshot goes that a crash kept us from deleting.
const leftover = time.Hour

// copyOf makes a sandbox with the source's files that has no deadline.
func (d *Deployer) copyOf(ctx context.Context, dep nacre.Deployment, source nacre.Sandbox) (nacre.Sandbox, error) {
	snap, err := d.Snapshots.Snapshot(ctx, dep.TeamID, source.ID, nacre.SnapshotRequest{FilesOnly: true, Comment: "deploy of " + dep.Name, Keep: leftover})
	if err != nil {
		return nacre.Sandbox{}, err
	}
	meta := maps.Clone(source.Metadata)
	if meta == nil {
		meta = map[string]string{}
	}
	delete(meta, nacre.LabelRequest)
	meta[label] = string(dep.ID)
	box, err := d.Service.Create(ctx, dep.TeamID, nacre.CreateRequest{
		Template: string(snap.ID), Name: dep.Name, AlwaysOn: true, Metadata: meta, Env: dep.Env, Network: source.Network, Secure: true,
	})
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTime)
	defer cancel()
	if derr := d.Snapshots.DeleteSnapshot(cleanup, dep.TeamID, snap.ID); derr != nil {
		d.Logger.Warn("the snapshot of a deploy stays until it expires", "snapshot", snap.ID, "err", derr)
	}
	return box, err
}

// show leads the deployment's name to the sandbox.
func (d *Deployer) show(ctx context.Context, dep nacre.Deployment, box nacre.SandboxID) (nacre.PreviewID, error) {
	now := d.Clock().UTC()
	if dep.Preview != "" {
		_, err := d.Previews.UpdatePreview(ctx, dep.TeamID, dep.Preview, func(p *nacre.Preview) error {
			p.Sandbox, p.Port, p.UpdatedAt = box, dep.Port, now
			return nil
		})
		if !nacre.IsCode(err, nacre.CodeNotFound) {
			return dep.Preview, err
		}
	}
	p := nacre.Preview{ID: nacre.NewPreviewID(), TeamID: dep.TeamID, Sandbox: box, Port: dep.Port, Slug: dep.Name, Label: "deployment",
		CreatedAt: now, UpdatedAt: now}
	if reserved[p.Slug] {
		p.Slug += "-app"
	}
	err := d.Previews.InsertPreview(ctx, p)
	if nacre.IsCode(err, nacre.CodeConflict) { // the name is somebody's already
		p.Slug = dep.Name + "-" + nacre.NewPreviewSlug()[:8]
		err = d.Previews.InsertPreview(ctx, p)
	}
	return p.ID, err
}

// reserved are host labels that mean something else.
var reserved = map[string]bool{"api": true, "sandbox": true, "sandboxes": true, "www": true, "preview": true}

// Delete ends a deployment with its sandbox and name. One that is being deployed is
// CodeConflict.
func (d *Deployer) Delete(ctx context.Context, team nacre.TeamID, nameOrID string) error {
	dep, err := d.Store.GetDeployment(ctx, team, nameOrID)
	if err != nil {
		return err
	}
	d.mu.Lock()
	busy := d.busy[dep.ID] != nil
	d.mu.Unlock()
	if busy {
		return nacre.Errorf(nacre.CodeConflict, "%s is being deployed; wait until that is done", dep.Name)
	}
	if dep.Sandbox != "" {
		if err := d.Service.Kill(ctx, team, dep.Sandbox); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
			return err
		}
	}
	if dep.Preview != "" {
		if err := d.Previews.DeletePreview(ctx, team, dep.Preview); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
			return err
		}
	}
	return d.Store.DeleteDeployment(ctx, team, dep.ID)
}
