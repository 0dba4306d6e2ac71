// Package deploy publishes sandboxes: a copy of one's files runs for good behind a
// name that stays, is started by a command and shown once it is healthy. What serves
// under the name goes on until its successor does, and is started again when it fails.
//
// A deploy is made in the background and its record tells how far it is. A crash
// leaves the record building and perhaps a copy that nobody shows; Run ends both, and
// takes up what is live.
package deploy

import (
	"cmp"
	"context"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

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
	Every      time.Duration // between two looks at what is live; 3 seconds
	Pause      time.Duration // after a first restart, then twice as long each time; 2 seconds

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
	kept map[nacre.DeploymentID]*supervisor   // what is live
}

// New returns a deployer. Close ends what is under way.
func New(c Config) *Deployer {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.BuildTime, c.HealthTime = cmp.Or(c.BuildTime, 15*time.Minute), cmp.Or(c.HealthTime, time.Minute)
	c.Every, c.Pause = cmp.Or(c.Every, 3*time.Second), cmp.Or(c.Pause, 2*time.Second)
	d := &Deployer{Config: c, busy: map[nacre.DeploymentID]chan struct{}{}, kept: map[nacre.DeploymentID]*supervisor{}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Close takes back what is not finished, and waits for that. What is live runs on.
func (d *Deployer) Close() error {
	d.mu.Lock()
	d.cancel()
	d.mu.Unlock()
	d.wg.Wait()
	return nil
}

// Run ends what a crash left half done, takes up what is live, then waits for ctx.
func (d *Deployer) Run(ctx context.Context) error {
	for {
		err := d.recover(ctx)
		if err == nil {
			<-ctx.Done()
			return ctx.Err()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.Logger.Error("what a crash left of deployments could not be looked at; it is tried again", "err", err)
		if !sleep(ctx, retryAfter) {
			return ctx.Err()
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

// settle ends what of a deployment nobody makes or shows, and keeps live what is shown.
func (d *Deployer) settle(ctx context.Context, team nacre.TeamID, id nacre.DeploymentID) error {
	dep, err := d.settled(ctx, team, id)
	if err == nil && dep.Sandbox != "" {
		d.supervise(dep)
	}
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return nil
	}
	return err
}

// settled returns the record of a deployment of which nothing is half done; the zero
// one when it is being deployed.
func (d *Deployer) settled(ctx context.Context, team nacre.TeamID, id nacre.DeploymentID) (dep nacre.Deployment, err error) {
	d.mu.Lock()
	defer d.mu.Unlock() // nobody begins meanwhile
	if d.busy[id] != nil || d.kept[id] != nil {
		return dep, nil
	}
	if dep, err = d.Store.GetDeployment(ctx, team, string(id)); err != nil {
		return dep, err
	}
	d.sweep(ctx, dep)
	if dep.State == nacre.DeploymentBuilding {
		d.fail(ctx, dep, nacre.Errorf(nacre.CodeUnavailable, "the server stopped while it was deployed; deploy it again"))
		dep.State = nacre.DeploymentFailed
	}
	return dep, nil
}

// sweep ends the copies that do not serve, with their files.
func (d *Deployer) sweep(ctx context.Context, dep nacre.Deployment) {
	page, err := d.Service.List(ctx, dep.TeamID, nacre.SandboxFilter{Metadata: map[string]string{nacre.LabelDeployment: string(dep.ID)}, Limit: 100})
	if err != nil {
		d.Logger.Error("the copies of a deployment could not be listed", "deployment", dep.ID, "err", err)
	}
	for _, s := range page.Sandboxes {
		if s.ID != dep.Sandbox && s.Alive() {
			d.kill(ctx, dep.TeamID, s.ID)
		}
	}
	files, err := d.Snapshots.ListSnapshots(ctx, dep.TeamID, nacre.SnapshotFilter{Name: filesName(dep.ID)})
	if err != nil {
		d.Logger.Error("the files of a deployment could not be listed", "deployment", dep.ID, "err", err)
	}
	for _, f := range files.Snapshots {
		if f.ID != dep.Snapshot {
			d.forget(ctx, dep, f.ID)
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
			r.State, r.Detail, r.UpdatedAt = nacre.DeploymentBuilding, "", now
			r.Revision++
			return nil
		})
		asked(&dep, want) // its record says so when it succeeded: until then it is of what serves
	}
	if err != nil {
		return dep, nil, err
	}
	ch := make(chan struct{})
	d.busy[dep.ID] = ch
	return dep, ch, nil
}

// asked makes a record one of what is asked for.
func asked(r *nacre.Deployment, want nacre.Deployment) {
	r.Source, r.Build, r.Start, r.Dir, r.Port, r.Health, r.Env = want.Source, want.Build, want.Start, want.Dir, want.Port, want.Health, want.Env
}

func (d *Deployer) end(id nacre.DeploymentID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.busy[id])
	delete(d.busy, id)
}

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
	d.leave(dep.ID)
	if dep, err = d.Store.GetDeployment(ctx, team, string(dep.ID)); err != nil {
		return err
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
	dep.Sandbox, dep.Snapshot = "", ""
	d.sweep(ctx, dep)
	return d.Store.DeleteDeployment(ctx, team, dep.ID)
}
