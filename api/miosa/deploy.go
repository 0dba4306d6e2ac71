package miosa

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// Publisher makes deployments; deploy.Deployer implements it.
type Publisher interface {
	// Deploy publishes want.Source under want.Name, or again what want.ID names, and
	// returns how far it is when it is done or ctx ends.
	Deploy(ctx context.Context, want nacre.Deployment) (nacre.Deployment, error)
	Delete(ctx context.Context, team nacre.TeamID, nameOrID string) error
}

// deployWait is how long an answer waits for a deployment to be live. The clients give
// up after a minute.
const deployWait = 45 * time.Second

type newDeployment struct {
	Name         string            `json:"name"`
	DeploymentID string            `json:"deployment_id"`
	OutputPath   string            `json:"output_path"`
	Entrypoint   string            `json:"entrypoint"`
	BuildCommand string            `json:"build_command"`
	RunCommand   string            `json:"run_command"`
	StartCommand string            `json:"start_command"`
	Port         *int              `json:"port"`
	Health       string            `json:"health_check_path"`
	Env          map[string]string `json:"env"`

	// Not offered.
	Type           string          `json:"type"`
	DeploymentType string          `json:"deployment_type"`
	Mode           string          `json:"mode"`
	Database       json.RawMessage `json:"database"`
	Domain         string          `json:"domain"`
	CustomDomain   string          `json:"custom_domain"`
	SnapshotPath   string          `json:"source_snapshot_path"`
}

func (in *newDeployment) refuse() error {
	for name, given := range map[string]bool{
		"database": len(in.Database) > 0 && string(in.Database) != "false" && string(in.Database) != "null",
		"domain":   in.Domain != "", "custom_domain": in.CustomDomain != "", "source_snapshot_path": in.SnapshotPath != "",
		"type":            strings.Contains(in.Type, "docker"),
		"deployment_type": strings.Contains(in.DeploymentType, "docker"),
	} {
		if given {
			return &nacre.Error{Code: nacre.CodeUnsupported, Field: name, Message: name + " is not offered by this server; leave it out"}
		}
	}
	return nil
}

// deployment checks a request. Without a command the files of output_path are served.
func (in *newDeployment) deployment(s nacre.Sandbox) (nacre.Deployment, error) {
	out := nacre.Deployment{ID: nacre.DeploymentID(in.DeploymentID), TeamID: s.TeamID, Source: s.ID, Name: in.Name,
		Build: in.BuildCommand, Start: cmp.Or(in.StartCommand, in.RunCommand, in.Entrypoint), Dir: in.OutputPath, Health: in.Health, Env: in.Env}
	if err := in.refuse(); err != nil {
		return out, err
	}
	port, err := number("port", in.Port, defaultPort, 1, 65535)
	if err != nil {
		return out, err
	}
	out.Port = port
	if out.Dir != "" && !strings.HasPrefix(out.Dir, "/") {
		out.Dir = workspace + "/" + strings.TrimPrefix(out.Dir, "./")
	}
	if out.Name == "" && out.ID == "" {
		out.Name = deployName(s)
	}
	if out.Start == "" && out.Dir != "" {
		out.Start = "exec python3 -m http.server " + strconv.Itoa(port)
	}
	if in.Env == nil {
		out.Env = map[string]string{}
	}
	return out, nil
}

// deployName makes a name of the sandbox's.
func deployName(s nacre.Sandbox) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(s.Name))
	name = strings.TrimLeft(strings.Trim(name, "-"), "0123456789-")
	if name = strings.Trim(name[:min(len(name), 40)], "-"); name == "" {
		return "app-" + string(s.ID)[1:9]
	}
	return name
}

type deployment struct {
	ID           string  `json:"id"`
	DeploymentID string  `json:"deployment_id"`
	Name         string  `json:"name"`
	Status       string  `json:"status"` // building, live, unhealthy, failed, stopped
	State        string  `json:"state"`
	Error        *string `json:"error"`
	URL          *string `json:"url"`
	PublicURL    *string `json:"public_url"`
	Source       string  `json:"source_sandbox_id"`
	SandboxID    *string `json:"sandbox_id"` // that serves it
	PreviewID    *string `json:"preview_id"`
	Build        string  `json:"build_command"`
	Start        string  `json:"start_command"`
	Dir          string  `json:"output_path"`
	Port         int     `json:"port"`
	Health       string  `json:"health_check_path"`
	Revision     int     `json:"revision"`
	Restarts     int     `json:"restarts"`
	CreatedAt    string  `json:"created_at"`
	UpdatedAt    string  `json:"updated_at"`
}

// deploymentOf shows a deployment with its address. One whose sandbox its owner ended
// is stopped.
func (a *API) deploymentOf(ctx context.Context, d nacre.Deployment) (deployment, error) {
	out := deployment{ID: string(d.ID), DeploymentID: string(d.ID), Name: d.Name, Status: string(d.State), Error: filled(d.Detail),
		Source: string(d.Source), SandboxID: filled(string(d.Sandbox)), PreviewID: filled(string(d.Preview)), Build: d.Build, Start: d.Start,
		Dir: d.Dir, Port: d.Port, Health: d.Health, Revision: d.Revision, Restarts: d.Restarts, CreatedAt: *timestamp(d.CreatedAt), UpdatedAt: *timestamp(d.UpdatedAt)}
	if d.Sandbox != "" && (d.State == nacre.DeploymentLive || d.State == nacre.DeploymentUnhealthy) {
		if s, err := a.Service.Get(ctx, d.TeamID, d.Sandbox); nacre.IsCode(err, nacre.CodeNotFound) || err == nil && !s.Alive() && !failed(s.EndReason) {
			out.Status = "stopped"
		}
	}
	out.State = out.Status
	if d.Preview == "" {
		return out, nil
	}
	p, err := a.Previews.GetPreview(ctx, d.TeamID, d.Preview)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return out, nil
	}
	if err == nil {
		out.URL = filled(a.previewURL(p.Slug))
		out.PublicURL = out.URL
	}
	return out, err
}

func (a *API) answerDeployment(c *api.Call, status int, d nacre.Deployment) error {
	out, err := a.deploymentOf(c.R.Context(), d)
	if err != nil {
		return err
	}
	return one(c, status, out)
}

// deploy publishes the path's sandbox. The answer waits until the deployment is live or
// failed, but no longer than clients do: then it is building, and can be asked for.
func (a *API) deploy(c *api.Call) error {
	var in newDeployment
	if err := read(c, &in); err != nil {
		return err
	}
	s, err := a.alive(c)
	if err != nil {
		return err
	}
	want, err := in.deployment(s)
	if err != nil {
		return err
	}
	if want.ID != "" {
		if want, err = a.again(c, in, want); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(c.R.Context(), deployWait)
	defer cancel()
	d, err := a.Publisher.Deploy(ctx, want)
	if err != nil {
		return err
	}
	if d.State == nacre.DeploymentFailed {
		return as("DEPLOY_FAILED", &nacre.Error{Code: nacre.CodeInvalid, Message: d.Name + " was not deployed: " + d.Detail})
	}
	return a.answerDeployment(c, http.StatusCreated, d)
}

// again fills what a request to deploy something again leaves out.
func (a *API) again(c *api.Call, in newDeployment, want nacre.Deployment) (nacre.Deployment, error) {
	was, err := a.Deployments.GetDeployment(c.R.Context(), c.Team, string(want.ID))
	if err != nil {
		return want, err
	}
	want.ID, want.Name = was.ID, was.Name
	if in.Port == nil {
		want.Port = was.Port
	}
	if in.Env == nil {
		want.Env = was.Env
	}
	want.Build, want.Start = cmp.Or(want.Build, was.Build), cmp.Or(want.Start, was.Start)
	want.Dir, want.Health = cmp.Or(want.Dir, was.Dir), cmp.Or(want.Health, was.Health)
	return want, nil
}

func (a *API) listDeployments(c *api.Call) error {
	source := nacre.SandboxID("")
	if c.R.PathValue("id") != "" {
		s, err := a.record(c)
		if err != nil {
			return err
		}
		source = s.ID
	}
	all, err := a.Deployments.Deployments(c.R.Context(), c.Team, source)
	if err != nil {
		return err
	}
	out := []deployment{}
	for _, d := range all {
		shown, err := a.deploymentOf(c.R.Context(), d)
		if err != nil {
			return err
		}
		out = append(out, shown)
	}
	return list(c, out)
}

func (a *API) getDeployment(c *api.Call) error {
	d, err := a.Deployments.GetDeployment(c.R.Context(), c.Team, c.R.PathValue("deployment"))
	if err != nil {
		return err
	}
	return a.answerDeployment(c, http.StatusOK, d)
}

func (a *API) deleteDeployment(c *api.Call) error {
	if err := a.Publisher.Delete(c.R.Context(), c.Team, c.R.PathValue("deployment")); err != nil {
		return err
	}
	return c.NoContent()
}

func (a *API) deployRoutes() []op {
	return []op{
		{"POST /sandboxes/{id}/deploy", a.Once.Handler(a.deploy)},
		{"GET /sandboxes/{id}/deployments", a.listDeployments},
		{"GET /deployments", a.listDeployments},
		{"GET /deployments/{deployment}", a.getDeployment},
		{"DELETE /deployments/{deployment}", a.deleteDeployment},
	}
}
