package nacre

import (
	"context"
	"time"
)

// DeploymentID names a deployment, "dep_" + 16 characters.
type DeploymentID string

// NewDeploymentID returns a fresh id.
func NewDeploymentID() DeploymentID { return DeploymentID("dep_" + randomID(16)) }

// Deployment is a sandbox that was published: a copy of its files runs without a
// deadline behind a name that stays when it is deployed again.
type Deployment struct {
	ID     DeploymentID
	TeamID TeamID
	Name   string // unique in the team; the preview's slug is made of it
	Source SandboxID
	State  DeploymentState
	Detail string // a sentence for people: why it failed, or is not healthy

	Sandbox  SandboxID  // that serves it now; "" before the first success
	Snapshot SnapshotID // its files when it was deployed, for when its machine is lost
	Preview  PreviewID
	Restarts int // of its command or machine, since it was deployed

	// Of the last deploy that succeeded, or of the first one.
	Build, Start string // shell commands; Build ends before Start begins
	Dir          string // where they run
	Port         int
	Health       string // path that answers below 400 when it is up
	Env          map[string]string
	Revision     int // 1, raised by each deploy

	CreatedAt time.Time
	UpdatedAt time.Time
}

// DeploymentState is a deployment's place in its life.
type DeploymentState string

const (
	DeploymentBuilding  DeploymentState = "building" // the new revision is made; the old one serves
	DeploymentLive      DeploymentState = "live"
	DeploymentUnhealthy DeploymentState = "unhealthy" // what was live does not answer; it is started again
	DeploymentFailed    DeploymentState = "failed"    // the last deploy; an older revision may serve still
)

// DeploymentStore keeps deployments. Errors and concurrency as in SandboxStore.
type DeploymentStore interface {
	// InsertDeployment adds one. A name that the team uses is CodeConflict.
	InsertDeployment(ctx context.Context, d Deployment) error
	// GetDeployment finds by id or name.
	GetDeployment(ctx context.Context, team TeamID, nameOrID string) (Deployment, error)
	// Deployments lists a team's, newest first, of one source if it is given.
	Deployments(ctx context.Context, team TeamID, source SandboxID) ([]Deployment, error)
	// UpdateDeployment is to deployments what SandboxStore.Update is to sandboxes.
	UpdateDeployment(ctx context.Context, team TeamID, id DeploymentID, change func(*Deployment) error) (Deployment, error)
	DeleteDeployment(ctx context.Context, team TeamID, id DeploymentID) error
}
