package moru

import (
	"net/http"
	"slices"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// routes is the table of operations: what is offered, then what is known and not.
func (d *dialect) routes() []api.Route {
	return slices.Concat(d.offered(), d.unsupported(), []api.Route{
		// After "/templates/tags", which it would hide.
		{Method: "DELETE", Path: "/templates/{template}", Handle: d.deleteTemplate},
	})
}

func (d *dialect) offered() []api.Route {
	return []api.Route{
		{Method: "GET", Path: "/health", Public: true, Handle: health},

		{Method: "GET", Path: "/sandboxes/metrics", Handle: d.latestMetrics},
		{Method: "POST", Path: "/sandboxes", Handle: d.Once.Handler(d.createSandbox)},
		{Method: "GET", Path: "/sandboxes", Handle: d.listRunning},
		{Method: "GET", Path: "/sandboxes/{id}", Handle: d.getSandbox},
		{Method: "DELETE", Path: "/sandboxes/{id}", Handle: d.killSandbox},
		{Method: "POST", Path: "/sandboxes/{id}/timeout", Handle: d.setTimeout},
		{Method: "POST", Path: "/sandboxes/{id}/refreshes", Handle: d.refresh},
		{Method: "POST", Path: "/sandboxes/{id}/connect", Handle: d.connect},
		{Method: "GET", Path: "/sandboxes/{id}/metrics", Handle: d.sandboxMetrics},
		{Method: "GET", Path: "/sandboxes/{id}/logs", Handle: d.logsV1},
		{Method: "PUT", Path: "/sandboxes/{id}/network", Handle: d.setNetwork},

		{Method: "POST", Path: "/sandboxes/{id}/pause", Handle: d.pause},
		{Method: "POST", Path: "/sandboxes/{id}/resume", Handle: d.Once.Handler(d.resume)},
		{Method: "POST", Path: "/sandboxes/{id}/snapshots", Handle: d.createSnapshot},
		{Method: "POST", Path: "/sandboxes/{id}/fork", Handle: d.Once.Handler(d.forkSandbox)},
		{Method: "POST", Path: "/sandboxes/{id}/restore", Handle: d.restore}, // ours
		{Method: "GET", Path: "/snapshots", Handle: d.listSnapshots},
		{Method: "POST", Path: "/snapshots/{snapshot}/fork", Handle: d.Once.Handler(d.forkSnapshot)}, // ours

		{Method: "POST", Path: "/v2/sandboxes", Handle: d.Once.Handler(d.createSandbox)},
		{Method: "GET", Path: "/v2/sandboxes", Handle: d.listSandboxes},
		{Method: "POST", Path: "/v2/sandboxes/{id}/connect", Handle: d.connect},
		{Method: "GET", Path: "/v2/sandboxes/{id}/logs", Handle: d.logsV2},
		{Method: "GET", Path: "/v2/sandbox-runs", Handle: d.listRuns},

		{Method: "GET", Path: "/templates/aliases/{alias}", Handle: d.getTemplateAlias},
		{Method: "GET", Path: "/templates", Handle: d.listTemplates},
		{Method: "GET", Path: "/v2/templates", Handle: d.listTemplates},
		{Method: "GET", Path: "/default-templates", Handle: d.listTemplates},
		{Method: "GET", Path: "/templates/{template}", Handle: d.getTemplate},

		{Method: "GET", Path: "/teams", Handle: d.listTeams},
		{Method: "GET", Path: "/api-keys", Handle: d.listKeys},
		{Method: "POST", Path: "/api-keys", Handle: d.createKey},
		{Method: "DELETE", Path: "/api-keys/{key}", Handle: d.revokeKey},
	}
}

// notOffered are operations of the two services that this server knows and does
// not serve. They answer 501 and say so.
var notOffered = [][2]string{
	{"POST", "/templates"},
	{"POST", "/v2/templates"},
	{"POST", "/v3/templates"},
	{"POST", "/templates/tags"},
	{"DELETE", "/templates/tags"},
	{"POST", "/templates/{template}"},
	{"PATCH", "/templates/{template}"},
	{"PATCH", "/v2/templates/{template}"},
	{"GET", "/templates/{template}/files/{hash}"},
	{"POST", "/templates/{template}/builds/{build}"},
	{"POST", "/v2/templates/{template}/builds/{build}"},
	{"GET", "/templates/{template}/builds/{build}/status"},
	{"GET", "/templates/{template}/builds/{build}/logs"},
	{"GET", "/templates/{template}/tags"},
	{"GET", "/templates/{template}/tags/count"},
	{"GET", "/templates/{template}/tags/exists"},
	{"GET", "/templates/{template}/tags/groups"},
	{"GET", "/templates/{template}/tags/{tag}/assignments"},

	{"POST", "/volumes"},
	{"GET", "/volumes"},
	{"GET", "/volumes/{volume}"},
	{"DELETE", "/volumes/{volume}"},
	{"GET", "/volumes/{volume}/files"},
	{"DELETE", "/volumes/{volume}/files"},
	{"PUT", "/volumes/{volume}/files/upload"},
	{"GET", "/volumes/{volume}/files/download"},
	{"GET", "/volumecontent/{volume}/path"},
	{"PATCH", "/volumecontent/{volume}/path"},
	{"DELETE", "/volumecontent/{volume}/path"},
	{"GET", "/volumecontent/{volume}/dir"},
	{"POST", "/volumecontent/{volume}/dir"},
	{"GET", "/volumecontent/{volume}/file"},
	{"PUT", "/volumecontent/{volume}/file"},

	{"GET", "/secrets"},
	{"POST", "/secrets"},
	{"GET", "/secrets/{secret}"},
	{"POST", "/secrets/{secret}"},
	{"DELETE", "/secrets/{secret}"},

	{"PATCH", "/api-keys/{key}"},
	{"POST", "/access-tokens"},
	{"DELETE", "/access-tokens/{token}"},
	{"GET", "/teams/{team}/metrics"},
	{"GET", "/teams/{team}/metrics/max"},
	{"GET", "/nodes"},
	{"GET", "/nodes/{node}"},
	{"POST", "/nodes/{node}"},
}

func (d *dialect) unsupported() []api.Route {
	out := make([]api.Route, 0, len(notOffered))
	for _, op := range notOffered {
		name := op[0] + " " + op[1]
		out = append(out, api.Route{Method: op[0], Path: op[1], Handle: func(*api.Call) error {
			return nacre.Errorf(nacre.CodeUnsupported, "%s is not offered by this server yet", name)
		}})
	}
	return out
}

func health(c *api.Call) error {
	return c.JSON(http.StatusOK, map[string]string{"status": "ok"})
}
