package miosa

import (
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// routes is the table of operations: what is offered, then what is known and not.
func (a *API) routes() []api.Route {
	var out []api.Route
	for _, o := range notOffered { // first: some are words where others have a name
		out = append(out, unsupported(o[0], o[1]))
	}
	for _, group := range [][]op{a.sandboxRoutes(), a.processRoutes(), a.fileRoutes(), a.snapshotRoutes(), a.previewRoutes(), a.deployRoutes(), a.tenantRoutes(), a.otherRoutes()} {
		for _, o := range group {
			out = append(out, o.route())
		}
	}
	// A browser's socket can send no header, so this one knows its token itself.
	socket := op{"GET /sandboxes/{id}/terminal/{session}/ws", a.terminalSocket}.route()
	socket.Public = true
	return append(out, socket)
}

// op is a method and a path below the prefix, separated by a space, and who answers.
type op struct {
	name   string
	handle func(*api.Call) error
}

func (o op) route() api.Route {
	method, path, _ := strings.Cut(o.name, " ")
	return api.Route{Method: method, Path: Prefix + path, Handle: o.handle}
}

func (a *API) sandboxRoutes() []op {
	return []op{
		{"POST /sandboxes", a.Once.Handler(a.createSandbox)},
		{"GET /sandboxes", a.listSandboxes},
		{"GET /sandboxes/by-name/{name}", a.getByName},
		{"GET /sandboxes/{id}", a.getSandbox},
		{"PATCH /sandboxes/{id}", a.editSandbox},
		{"DELETE /sandboxes/{id}", a.destroy},
		{"PATCH /sandboxes/{id}/tags", a.setTags},
		{"POST /sandboxes/{id}/extend", a.extend},
		{"POST /sandboxes/{id}/pause", a.pause},
		{"POST /sandboxes/{id}/resume", a.Once.Handler(a.resume)},
		{"POST /sandboxes/{id}/stop", a.stop},
		{"GET /sandboxes/{id}/readiness", a.readiness},
		{"GET /sandboxes/{id}/readiness/stream", a.readinessStream},
		{"GET /sandboxes/{id}/resources", a.resources},
		{"PATCH /sandboxes/{id}/resources", a.resize},
		{"GET /sandboxes/{id}/env", a.listEnv},
		{"PUT /sandboxes/{id}/env", a.changeEnv},
		{"DELETE /sandboxes/{id}/env/{key}", a.changeEnv},
		{"GET /sandboxes/{id}/metrics", a.metrics},
		{"GET /sandboxes/{id}/logs", a.logs},
		{"GET /sandboxes/{id}/logs/stream", a.streamLogs},
		{"GET /sandboxes/{id}/events", a.sandboxEvents},
		{"GET /sandboxes/{id}/usage", a.sandboxUsage},
	}
}

func (a *API) processRoutes() []op {
	return []op{
		{"POST /sandboxes/{id}/exec", a.exec},
		{"POST /sandboxes/{id}/exec/stream", a.execStream},
		{"POST /sandboxes/{id}/processes", a.startProcess},
		{"GET /sandboxes/{id}/processes", a.listProcesses},
		{"GET /sandboxes/{id}/processes/{pid}", a.getProcess},
		{"DELETE /sandboxes/{id}/processes/{pid}", a.stopProcess},
		{"GET /sandboxes/{id}/processes/{pid}/logs", a.processLogs},
		{"GET /sandboxes/{id}/processes/{pid}/stream", a.streamProcess},
		{"POST /sandboxes/{id}/commands", a.runCommand},
		{"GET /sandboxes/{id}/commands", a.listProcesses},
		{"GET /sandboxes/{id}/commands/{pid}", a.getProcess},
		{"GET /sandboxes/{id}/commands/{pid}/logs", a.processLogs},
		{"POST /sandboxes/{id}/commands/{pid}/kill", a.killCommand},
		{"POST /sandboxes/{id}/terminal", a.createTerminal},
		{"DELETE /sandboxes/{id}/terminal/{session}", a.deleteTerminal},
		{"POST /sandboxes/{id}/terminal/{session}/resize", a.resizeTerminal},
	}
}

func (a *API) fileRoutes() []op {
	return []op{
		{"POST /sandboxes/{id}/fs/write", a.writeFile},
		{"POST /sandboxes/{id}/fs/write-many", a.writeMany},
		{"POST /sandboxes/{id}/fs/stat", a.statFile},
		{"GET /sandboxes/{id}/fs/download", a.downloadQuery},
		{"POST /sandboxes/{id}/files", a.writeFileLegacy},
		{"GET /sandboxes/{id}/files", a.listFiles},
		{"DELETE /sandboxes/{id}/files", a.deleteFile},
		{"POST /sandboxes/{id}/files/upload", a.uploadFile},
		{"POST /sandboxes/{id}/files/write-many", a.writeMany},
		{"POST /sandboxes/{id}/files/stat", a.statFile},
		{"POST /sandboxes/{id}/files/mkdir", a.makeDir},
		{"POST /sandboxes/{id}/files/rename", a.rename},
		{"POST /sandboxes/{id}/files/copy", a.copyFile},
		{"POST /sandboxes/{id}/files/chmod", a.chmod},
		{"POST /sandboxes/{id}/files/export", a.createExport},
		// These words stand before the path of a file.
		{"GET /sandboxes/{id}/files/tree", a.tree},
		{"GET /sandboxes/{id}/files/watch", a.watch},
		{"GET /sandboxes/{id}/files/read", a.readText},
		{"GET /sandboxes/{id}/files/download", a.downloadQuery},
		{"GET /sandboxes/{id}/files/readdir", a.listFiles},
		{"GET /sandboxes/{id}/files/list", a.listFiles},
		{"GET /sandboxes/{id}/files/{path...}", a.downloadPath},
		{"POST /sandboxes/{id}/exports", a.createExport},
		{"GET /sandboxes/{id}/exports/download", a.downloadExport},
	}
}

func (a *API) snapshotRoutes() []op {
	return []op{
		{"POST /sandboxes/{id}/snapshots", a.createSnapshot},
		{"GET /sandboxes/{id}/snapshots", a.listSnapshots},
		{"GET /sandboxes/{id}/snapshots/{snapshot}", a.getSnapshot},
		{"DELETE /sandboxes/{id}/snapshots/{snapshot}", a.deleteSnapshot},
		{"POST /sandboxes/{id}/restore/{snapshot}", a.restore},
		{"POST /sandboxes/{id}/fork", a.Once.Handler(a.fork)},
		{"POST /sandboxes/{id}/snapshot", a.snapshotNow},
		{"GET /snapshots", a.listAllSnapshots},
		{"POST /snapshots/delete", a.deleteSnapshots},
		{"GET /snapshots/{snapshot}", a.getSnapshot},
		{"DELETE /snapshots/{snapshot}", a.deleteSnapshot},
		{"POST /snapshots/{snapshot}/fork", a.Once.Handler(a.fork)},
	}
}

func (a *API) previewRoutes() []op {
	return []op{
		{"POST /sandboxes/{id}/previews", a.createPreview},
		{"GET /sandboxes/{id}/previews", a.listPreviews},
		{"GET /sandboxes/{id}/previews/{preview}", a.getPreview},
		{"PATCH /sandboxes/{id}/previews/{preview}", a.changePreview},
		{"DELETE /sandboxes/{id}/previews/{preview}", a.deletePreview},
		{"POST /sandboxes/{id}/previews/{preview}/share", a.sharePreview},
		{"DELETE /sandboxes/{id}/previews/{preview}/share", a.revokeShares},
		{"POST /sandboxes/{id}/expose", a.expose},
		{"POST /sandboxes/{id}/preview-token", a.createShare},
		{"POST /sandboxes/{id}/shares", a.createShare},
		{"GET /sandboxes/{id}/shares", a.listShares},
		{"DELETE /sandboxes/{id}/shares/{share}", a.revokeShare},
		{"GET /tenant/preview-domain", a.getPreviewDomain},
		{"PUT /tenant/preview-domain", a.setPreviewDomain},
		{"DELETE /tenant/preview-domain", a.deletePreviewDomain},
		{"POST /tenant/preview-domain/verify", a.verifyPreviewDomain},
		{"GET /custom-domains", a.listDomains},
		{"POST /custom-domains", a.createDomain},
		{"POST /custom-domains/{domain}/verify", a.verifyDomain},
		{"DELETE /custom-domains/{domain}", a.deleteDomain},
	}
}

func (a *API) tenantRoutes() []op {
	return []op{
		{"POST /egress/secrets", a.createSecret},
		{"GET /egress/secrets", a.listSecrets},
		{"GET /egress/secrets/{secret}", a.getSecret},
		{"PATCH /egress/secrets/{secret}", a.changeSecret},
		{"DELETE /egress/secrets/{secret}", a.deleteSecret},
		{"POST /egress/bindings", a.createBinding},
		{"GET /egress/bindings", a.listBindings},
		{"DELETE /egress/bindings/{binding}", a.deleteBinding},
		{"GET /events/stream", a.tenantEvents},
		{"GET /usage", a.usageRollup},
		{"GET /usage/summary", a.usageSummary},
		{"GET /usage/sessions", a.usageSessions},
		{"GET /credits/balance", a.creditBalance},
		{"GET /credits/usage", a.usageSummary},
		{"GET /credits/transactions", a.creditTransactions},
	}
}

func (a *API) otherRoutes() []op {
	return []op{
		{"GET /sandbox-templates", a.listTemplates},
		{"GET /sandbox-templates/build-spec", a.specSchema},
		{"POST /sandbox-templates/validate", a.validateSpec},
		{"GET /sandbox-templates/{template}/build-spec", a.specSchema},
		{"POST /sandbox-templates/{template}/validate", a.validateSpec},
		{"GET /sandbox-templates/{template}/versions", a.templateVersions},
		{"GET /sandbox-templates/{template}", a.getTemplate},
		{"GET /templates", a.catalogue},
		{"GET /actions/catalog", a.actionCatalogue},
		{"POST /actions/authorize", a.authorizeAction},
	}
}

func unsupported(method, path string) api.Route {
	return api.Route{Method: method, Path: Prefix + path, Handle: func(*api.Call) error {
		return nacre.Errorf(nacre.CodeUnsupported, "%s %s is not offered by this server", method, path)
	}}
}

// notOffered are operations of the service that this server knows and does not
// serve. They answer 501 and say so.
var notOffered = [][2]string{
	{"POST", "/sandboxes/batch"},
	{"POST", "/sandboxes/run"},
	{"POST", "/sandboxes/{id}/template/start"},
	{"GET", "/sandboxes/{id}/artifacts"},
	{"POST", "/sandboxes/{id}/code/run"},
	{"GET", "/sandboxes/{id}/code/contexts"},
	{"DELETE", "/sandboxes/{id}/code/contexts/{context}"},
	{"DELETE", "/sandboxes/{id}/code"},
	{"POST", "/sandboxes/{id}/ssh-certificates"},
	{"GET", "/sandboxes/{id}/ssh-info"},
	{"POST", "/sandboxes/{id}/browser/cdp-url"},

	{"GET", "/snapshots/groups"},
	{"GET", "/snapshots/{snapshot}/tree"},
	{"GET", "/snapshots/{snapshot}/files"},
	{"GET", "/named-snapshots"},
	{"POST", "/named-snapshots"},

	{"GET", "/egress/oauth/providers"},
	{"POST", "/egress/oauth/start"},

	{"POST", "/auth/sse-ticket"},
	{"POST", "/sse/ticket"},
	{"GET", "/webhooks"},
	{"POST", "/webhooks"},
	{"GET", "/webhooks/{webhook}"},
	{"PATCH", "/webhooks/{webhook}"},
	{"DELETE", "/webhooks/{webhook}"},
	{"POST", "/webhooks/{webhook}/test"},
	{"GET", "/webhooks/{webhook}/deliveries"},

	{"GET", "/quotas/external/{user}"},
	{"PUT", "/quotas/external/{user}"},
	{"DELETE", "/quotas/external/{user}"},
	{"GET", "/workspaces"},
	{"POST", "/workspaces"},
	{"GET", "/workspaces/{workspace}"},
	{"PATCH", "/workspaces/{workspace}"},
	{"DELETE", "/workspaces/{workspace}"},
	{"GET", "/tenant/plan"},

	{"POST", "/sandbox-templates"},
	{"DELETE", "/sandbox-templates/{template}"},
	{"POST", "/sandbox-templates/{template}/builds"},
	{"GET", "/sandbox-templates/{template}/builds"},
	{"GET", "/sandbox-template-builds/{build}"},
	{"GET", "/sandbox-template-builds/{build}/logs"},
	{"GET", "/sandbox-template-builds/{build}/logs/stream"},
}
