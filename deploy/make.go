package deploy

import (
	"context"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/undo"
)

const (
	// lastTime is how long what must be written at the end may take.
	lastTime = time.Minute
	// drain is how long what served before goes on.
	drain = time.Second
	// leftover is when a snapshot goes that a crash kept us from deleting.
	leftover = time.Hour
)

// run makes a deployment and writes what became of it.
func (d *Deployer) run(ctx context.Context, dep nacre.Deployment, source nacre.Sandbox) {
	var stack undo.Stack
	err := d.make(ctx, &stack, dep, source)
	if err == nil {
		return
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTime)
	defer cancel()
	d.takeBack(last, &stack, dep)
	if ctx.Err() != nil {
		err = nacre.Wrap(nacre.CodeUnavailable, err, "the server stopped while it was deployed; deploy it again")
	}
	d.fail(last, dep, err)
}

func (d *Deployer) takeBack(ctx context.Context, stack *undo.Stack, dep nacre.Deployment) {
	if err := stack.Run(ctx); err != nil {
		d.Logger.Error("what a deploy left could not be taken back", "deployment", dep.ID, "err", err)
	}
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
	box, err := d.copyOf(ctx, stack, dep, source)
	if err != nil {
		return err
	}
	if dep.Build != "" {
		if err := d.build(ctx, dep, box); err != nil {
			return err
		}
	}
	if err := d.start(ctx, dep, box); err != nil {
		return err
	}
	files := d.keepFiles(ctx, stack, dep, box)
	next, was, err := d.swap(ctx, dep, box, files)
	if err != nil {
		return err
	}
	stack.Keep()
	d.supervise(next)
	d.retire(ctx, was)
	return nil
}

// copyOf makes a sandbox with the source's files that has no deadline.
func (d *Deployer) copyOf(ctx context.Context, stack *undo.Stack, dep nacre.Deployment, source nacre.Sandbox) (nacre.SandboxID, error) {
	files, err := d.Snapshots.Snapshot(ctx, dep.TeamID, source.ID, nacre.SnapshotRequest{FilesOnly: true, Comment: "deploy of " + dep.Name, Keep: leftover})
	if err != nil {
		return "", err
	}
	box, err := d.create(ctx, stack, dep, files.ID, source)
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTime)
	defer cancel()
	d.forget(cleanup, dep, files.ID)
	return box, err
}

// create makes a sandbox with the snapshot's files, as like another one is.
func (d *Deployer) create(ctx context.Context, stack *undo.Stack, dep nacre.Deployment, files nacre.SnapshotID, like nacre.Sandbox) (nacre.SandboxID, error) {
	meta := nacre.CopiedMetadata(like.Metadata)
	if meta == nil {
		meta = map[string]string{}
	}
	meta[nacre.LabelDeployment] = string(dep.ID)
	box, err := d.Service.Create(ctx, dep.TeamID, nacre.CreateRequest{
		Template: string(files), Name: dep.Name, AlwaysOn: true, Metadata: meta, Env: dep.Env, Network: like.Network, Secure: true,
	})
	if err != nil {
		return "", err
	}
	stack.Push("the copy", func(ctx context.Context) error {
		if err := d.Service.Kill(ctx, dep.TeamID, box.ID); !nacre.IsCode(err, nacre.CodeNotFound) {
			return err
		}
		return nil
	})
	return box.ID, nil
}

// filesName names the snapshots of a deployment's files.
func filesName(id nacre.DeploymentID) string { return "deployment-" + string(id) }

// keepFiles takes the snapshot that the deployment is made of again when its machine is
// lost. Without one it is live none the less.
func (d *Deployer) keepFiles(ctx context.Context, stack *undo.Stack, dep nacre.Deployment, box nacre.SandboxID) nacre.SnapshotID {
	files, err := d.Snapshots.Snapshot(ctx, dep.TeamID, box, nacre.SnapshotRequest{FilesOnly: true, Name: filesName(dep.ID),
		Comment: "files of the deployment " + dep.Name})
	if err != nil {
		d.Logger.Warn("a deployment's files could not be kept; it ends with its machine", "deployment", dep.ID, "err", err)
		return ""
	}
	stack.Push("the files", func(ctx context.Context) error {
		d.forget(ctx, dep, files.ID)
		return nil
	})
	return files.ID
}

func (d *Deployer) forget(ctx context.Context, dep nacre.Deployment, files nacre.SnapshotID) {
	if err := d.Snapshots.DeleteSnapshot(ctx, dep.TeamID, files); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
		d.Logger.Warn("a snapshot of a deployment stays", "deployment", dep.ID, "snapshot", files, "err", err)
	}
}

// swap leads the deployment's name to the copy, and returns the record as it is and as
// it was. Nobody supervises the deployment afterwards, unless it fails.
func (d *Deployer) swap(ctx context.Context, dep nacre.Deployment, box nacre.SandboxID, files nacre.SnapshotID) (next, was nacre.Deployment, err error) {
	d.leave(dep.ID)
	if was, err = d.Store.GetDeployment(ctx, dep.TeamID, string(dep.ID)); err != nil {
		return next, was, err
	}
	preview, err := d.show(ctx, was.Preview, dep, box)
	if err == nil {
		next, err = d.Store.UpdateDeployment(ctx, dep.TeamID, dep.ID, func(r *nacre.Deployment) error {
			asked(r, dep)
			r.State, r.Detail, r.Restarts, r.UpdatedAt = nacre.DeploymentLive, "", 0, d.Clock().UTC()
			r.Sandbox, r.Snapshot, r.Preview = box, files, preview
			return nil
		})
	}
	if err != nil && was.Sandbox != "" {
		_, back := d.show(context.WithoutCancel(ctx), was.Preview, was, was.Sandbox)
		d.Logger.Warn("a deploy could not be shown", "deployment", dep.ID, "err", err, "back", back)
		d.supervise(was)
	}
	return next, was, err
}

// retire ends what served before, which it still does for who looked the name up a
// moment ago.
func (d *Deployer) retire(ctx context.Context, was nacre.Deployment) {
	if was.Sandbox == "" {
		return
	}
	sleep(ctx, drain)
	ctx = context.WithoutCancel(ctx)
	d.kill(ctx, was.TeamID, was.Sandbox)
	if was.Snapshot != "" {
		d.forget(ctx, was, was.Snapshot)
	}
}

// show leads the deployment's name to the sandbox: its preview, or a new one.
func (d *Deployer) show(ctx context.Context, preview nacre.PreviewID, dep nacre.Deployment, box nacre.SandboxID) (nacre.PreviewID, error) {
	now := d.Clock().UTC()
	if preview != "" {
		_, err := d.Previews.UpdatePreview(ctx, dep.TeamID, preview, func(p *nacre.Preview) error {
			p.Sandbox, p.Port, p.UpdatedAt = box, dep.Port, now
			return nil
		})
		if !nacre.IsCode(err, nacre.CodeNotFound) {
			return preview, err
		}
	}
	p := nacre.Preview{ID: nacre.NewPreviewID(), TeamID: dep.TeamID, Sandbox: box, Port: dep.Port, Slug: dep.Name, Label: "deployment",
		Metadata: map[string]string{nacre.LabelDeployment: string(dep.ID)}, CreatedAt: now, UpdatedAt: now}
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
