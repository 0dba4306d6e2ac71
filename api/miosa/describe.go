package miosa

import (
	"net/http"
	"strings"

	"github.com/nacrehq/nacre/api"
)

// Describe is the dialect's part of the OpenAPI document.
func Describe() api.Part {
	p := api.Part{
		Name: "miosa", Text: "What the MIOSA clients speak. An object's fields stand at the top of an answer and once more below \"data\".",
		Routes: (&API{}).routes(), Error: errorBody{}, Invalid: http.StatusUnprocessableEntity, Docs: map[string]api.Doc{},
		Wrap: func(schema map[string]any, d api.Doc) map[string]any {
			if d.List {
				return map[string]any{"type": "object", "properties": map[string]any{"data": map[string]any{"type": "array", "items": schema}}}
			}
			return schema
		},
	}
	for _, o := range notOffered {
		p.NotOffered = append(p.NotOffered, [2]string{o[0], Prefix + o[1]})
	}
	for _, docs := range []map[string]api.Doc{sandboxDocs(), guestDocs(), snapshotDocs(), previewDocs(), tenantDocs()} {
		for name, doc := range docs {
			method, path, _ := strings.Cut(name, " ")
			p.Docs[method+" "+Prefix+path] = doc
		}
	}
	return p
}

func sandboxDocs() map[string]api.Doc {
	of := func(text string) api.Doc { return api.Doc{Text: text, Answer: sandbox{}} }
	return map[string]api.Doc{
		"POST /sandboxes": {Text: "Create a sandbox; answered when it runs.", Body: newSandbox{}, Answer: sandbox{}, Status: 201, Once: true},
		"GET /sandboxes": {Text: "List sandboxes: what has not ended, unless a state is asked for.", Answer: sandbox{}, List: true,
			Query: "state tags name external_workspace_id external_user_id external_project_id workspace_id project_id limit offset page"},
		"GET /sandboxes/by-name/{name}":                of("Find the newest sandbox of a name."),
		"GET /sandboxes/{id}":                          of("Get a sandbox."),
		"PATCH /sandboxes/{id}":                        {Text: "Change name, tags, metadata or timeouts.", Body: editSandbox{}, Answer: sandbox{}},
		"DELETE /sandboxes/{id}":                       of("Destroy a sandbox."),
		"PATCH /sandboxes/{id}/tags":                   {Text: "Replace the tags.", Body: editSandbox{}, Answer: sandbox{}},
		"POST /sandboxes/{id}/extend":                  {Text: "Count the timeout from now, or set another.", Body: extendBody{}, Answer: sandbox{}},
		"POST /sandboxes/{id}/pause":                   of("Keep memory and files, and end the machine."),
		"POST /sandboxes/{id}/resume":                  {Text: "Resume a paused sandbox.", Body: resumeBody{}, Answer: sandbox{}, Once: true},
		"POST /sandboxes/{id}/stop":                    of("Keep the files alone: a resume boots."),
		"GET /sandboxes/{id}/readiness":                {Text: "Whether commands work.", Answer: readiness{}},
		"GET /sandboxes/{id}/readiness/stream":         {Text: "One event, when it is ready.", Stream: true},
		"GET /sandboxes/{id}/resources":                {Text: "The size."},
		"PATCH /sandboxes/{id}/resources":              {Text: "Refused: a size cannot be changed.", Status: 409},
		"GET /sandboxes/{id}/env":                      {Text: "The environment that it was created with.", Answer: envVar{}, List: true},
		"PUT /sandboxes/{id}/env":                      {Text: "Refused: the environment is read-only.", Status: 409},
		"DELETE /sandboxes/{id}/env/{key}":             {Text: "Refused: the environment is read-only.", Status: 409},
		"GET /sandboxes/{id}/metrics":                  {Text: "Samples of use.", Query: "window", Answer: metrics{}},
		"GET /sandboxes/{id}/logs":                     {Text: "Log lines.", Query: "lines"},
		"GET /sandboxes/{id}/logs/stream":              {Text: "Log lines as they are written.", Stream: true},
		"GET /sandboxes/{id}/events":                   {Text: "What happens to it and in it; goes on behind Last-Event-ID.", Query: "types last_event_id", Stream: true},
		"GET /sandboxes/{id}/usage":                    {Text: "What it used.", Answer: sandboxUsage{}},
		"POST /sandboxes/{id}/deploy":                  {Text: "Publish a copy of its files behind a stable name.", Body: newDeployment{}, Answer: deployment{}, Status: 201, Once: true},
		"GET /sandboxes/{id}/deployments":              {Text: "List what was published of it.", Answer: deployment{}, List: true},
		"GET /deployments":                             {Text: "List deployments.", Answer: deployment{}, List: true},
		"GET /deployments/{deployment}":                {Text: "Get a deployment by id or name.", Answer: deployment{}},
		"DELETE /deployments/{deployment}":             {Text: "End a deployment, its sandbox and its name.", Status: 204},
		"GET /sandbox-templates":                       {Text: "List templates.", Query: "include_aliases", Answer: template{}, List: true},
		"GET /sandbox-templates/{template}":            {Text: "Get a template.", Answer: template{}},
		"GET /sandbox-templates/build-spec":            {Text: "The JSON schema of a BuildSpec."},
		"POST /sandbox-templates/validate":             {Text: "Check a BuildSpec; each problem is named.", Body: map[string]any{}},
		"GET /templates":                               {Text: "The product's catalogue."},
		"GET /actions/catalog":                         {Text: "What an MCP server may do.", Answer: capability{}, List: true},
		"POST /actions/authorize":                      {Text: "Whether an action is allowed.", Body: map[string]any{}},
		"GET /sandbox-templates/{template}/build-spec": {Text: "The JSON schema of a BuildSpec."},
		"POST /sandbox-templates/{template}/validate":  {Text: "Check a BuildSpec; each problem is named.", Body: map[string]any{}},
		"GET /sandbox-templates/{template}/versions":   {Text: "The versions of a template.", Answer: templateVersion{}, List: true},
	}
}

// pathBody is what most calls about files send.
type pathBody struct {
	Path      string `json:"path"`
	Content   string `json:"content,omitempty"`
	Base64    string `json:"content_base64,omitempty"`
	From      string `json:"from,omitempty"`
	To        string `json:"to,omitempty"`
	Mode      string `json:"mode,omitempty"`
	Recursive bool   `json:"recursive,omitempty"`
}

func guestDocs() map[string]api.Doc {
	processes := api.Doc{Text: "List processes, ended ones too.", Answer: process{}, List: true}
	processOf := api.Doc{Text: "Get a process.", Answer: process{}}
	write := api.Doc{Text: "Write a file, making parents.", Body: pathBody{}, Answer: file{}}
	many := api.Doc{Text: "Write many files.", Body: map[string][]upload{}}
	stat := api.Doc{Text: "Describe a file.", Body: pathBody{}, Answer: file{}}
	entries := api.Doc{Text: "List a directory.", Query: "path depth", Answer: map[string]any{}}
	download := api.Doc{Text: "Read a file.", Query: "path", Bytes: true}
	change := func(text string) api.Doc { return api.Doc{Text: text, Body: pathBody{}} }
	pack := api.Doc{Text: "Pack files.", Body: map[string]any{}, Answer: export{}, Status: 201}
	return map[string]api.Doc{
		"POST /sandboxes/{id}/exec":                      {Text: "Run a command and wait for its end.", Body: execBody{}, Answer: execResult{}},
		"POST /sandboxes/{id}/exec/stream":               {Text: "Run a command; its output as it comes.", Body: execBody{}, Stream: true},
		"POST /sandboxes/{id}/processes":                 {Text: "Start a process.", Body: commandBody{}, Answer: process{}, Status: 201},
		"GET /sandboxes/{id}/processes":                  processes,
		"GET /sandboxes/{id}/processes/{pid}":            processOf,
		"DELETE /sandboxes/{id}/processes/{pid}":         {Text: "Kill a process.", Status: 204},
		"GET /sandboxes/{id}/processes/{pid}/logs":       {Text: "What a process said.", Query: "tail"},
		"GET /sandboxes/{id}/processes/{pid}/stream":     {Text: "What a process says.", Stream: true},
		"POST /sandboxes/{id}/commands":                  {Text: "Run a command, or start one that is detached.", Body: commandBody{}, Answer: execResult{}},
		"GET /sandboxes/{id}/commands":                   processes,
		"GET /sandboxes/{id}/commands/{pid}":             processOf,
		"GET /sandboxes/{id}/commands/{pid}/logs":        {Text: "What a command said.", Query: "tail"},
		"POST /sandboxes/{id}/commands/{pid}/kill":       processOf,
		"POST /sandboxes/{id}/terminal":                  {Text: "Open a terminal.", Body: terminalBody{}, Answer: terminalSession{}, Status: 201},
		"DELETE /sandboxes/{id}/terminal/{session}":      {Text: "Close a terminal.", Status: 204},
		"GET /sandboxes/{id}/terminal/{session}/ws":      {Text: "The terminal's WebSocket: binary frames are input and output, text frames JSON.", Query: "token", Status: 101},
		"POST /sandboxes/{id}/terminal/{session}/resize": {Text: "Resize a terminal.", Body: terminalBody{}, Status: 204},

		"POST /sandboxes/{id}/fs/write":         write,
		"POST /sandboxes/{id}/fs/write-many":    many,
		"POST /sandboxes/{id}/fs/stat":          stat,
		"GET /sandboxes/{id}/fs/download":       download,
		"POST /sandboxes/{id}/files":            write,
		"GET /sandboxes/{id}/files":             entries,
		"DELETE /sandboxes/{id}/files":          {Text: "Delete a file or a tree.", Body: pathBody{}, Status: 204},
		"POST /sandboxes/{id}/files/upload":     {Text: "Write a file from a form with path and file.", Answer: file{}},
		"POST /sandboxes/{id}/files/write-many": many,
		"POST /sandboxes/{id}/files/stat":       stat,
		"POST /sandboxes/{id}/files/mkdir":      change("Make a directory."),
		"POST /sandboxes/{id}/files/rename":     change("Rename a file or a tree."),
		"POST /sandboxes/{id}/files/copy":       change("Copy a file or a tree."),
		"POST /sandboxes/{id}/files/chmod":      change("Change the mode of a file."),
		"POST /sandboxes/{id}/files/export":     pack,
		"GET /sandboxes/{id}/files/tree":        {Text: "A directory with what is below it.", Query: "path depth", Answer: treeNode{}},
		"GET /sandboxes/{id}/files/watch":       {Text: "Changes below a directory.", Query: "path", Stream: true},
		"GET /sandboxes/{id}/files/read":        {Text: "Read a text file.", Query: "path"},
		"GET /sandboxes/{id}/files/download":    download,
		"GET /sandboxes/{id}/files/readdir":     entries,
		"GET /sandboxes/{id}/files/list":        entries,
		"GET /sandboxes/{id}/files/{path...}":   {Text: "Read a file.", Bytes: true},
		"POST /sandboxes/{id}/exports":          pack,
		"GET /sandboxes/{id}/exports/download":  {Text: "A packed file.", Query: "path", Bytes: true},
	}
}

func snapshotDocs() map[string]api.Doc {
	one := api.Doc{Text: "Get a snapshot.", Answer: snapshot{}}
	gone := api.Doc{Text: "Delete a snapshot.", Status: 204}
	fork := func(text string) api.Doc {
		return api.Doc{Text: text, Body: forkBody{}, Answer: sandbox{}, Status: 201, Once: true}
	}
	return map[string]api.Doc{
		"POST /sandboxes/{id}/snapshots":              {Text: "Keep memory and files.", Body: newSnapshot{}, Answer: snapshot{}, Status: 201},
		"GET /sandboxes/{id}/snapshots":               {Text: "List snapshots of a sandbox.", Answer: snapshot{}, List: true},
		"GET /sandboxes/{id}/snapshots/{snapshot}":    one,
		"DELETE /sandboxes/{id}/snapshots/{snapshot}": gone,
		"POST /sandboxes/{id}/restore/{snapshot}":     {Text: "Put the same sandbox back to a snapshot.", Answer: sandbox{}},
		"POST /sandboxes/{id}/fork":                   fork("Make a sandbox that goes on where this one is."),
		"POST /sandboxes/{id}/snapshot":               {Text: "Take a snapshot, as older clients ask.", Status: 201},
		"GET /snapshots":                              {Text: "List all snapshots.", Query: "resource_id q limit offset", Answer: snapshot{}, List: true},
		"POST /snapshots/delete":                      {Text: "Delete several snapshots.", Body: map[string][]string{}},
		"GET /snapshots/{snapshot}":                   one,
		"DELETE /snapshots/{snapshot}":                gone,
		"POST /snapshots/{snapshot}/fork":             fork("Make a sandbox from a snapshot."),
	}
}

func previewDocs() map[string]api.Doc {
	tokens := api.Doc{Text: "Make a token; it is shown once.", Body: shareBody{}, Answer: share{}, Status: 201}
	domain := func(text string) api.Doc { return api.Doc{Text: text, Answer: previewDomain{}} }
	return map[string]api.Doc{
		"POST /sandboxes/{id}/previews":                   {Text: "Open a port under a URL of its own.", Body: newPreview{}, Answer: preview{}, Status: 201},
		"GET /sandboxes/{id}/previews":                    {Text: "List previews.", Answer: preview{}, List: true},
		"GET /sandboxes/{id}/previews/{preview}":          {Text: "Get a preview.", Answer: preview{}},
		"PATCH /sandboxes/{id}/previews/{preview}":        {Text: "Change who may see or embed a preview.", Body: newPreview{}, Answer: preview{}},
		"DELETE /sandboxes/{id}/previews/{preview}":       {Text: "Close a preview.", Status: 204},
		"POST /sandboxes/{id}/previews/{preview}/share":   tokens,
		"DELETE /sandboxes/{id}/previews/{preview}/share": {Text: "Revoke all shares of a preview.", Status: 204},
		"POST /sandboxes/{id}/expose":                     {Text: "The public URL of a port.", Body: shareBody{}},
		"POST /sandboxes/{id}/preview-token":              tokens,
		"POST /sandboxes/{id}/shares":                     tokens,
		"GET /sandboxes/{id}/shares":                      {Text: "List shares, without their tokens.", Answer: share{}, List: true},
		"DELETE /sandboxes/{id}/shares/{share}":           {Text: "Revoke a share.", Status: 204},
		"GET /tenant/preview-domain":                      domain("The tenant's own domain for previews."),
		"PUT /tenant/preview-domain":                      {Text: "Set the tenant's own domain.", Body: map[string]string{}, Answer: previewDomain{}},
		"DELETE /tenant/preview-domain":                   {Text: "Give the domain up.", Status: 204},
		"POST /tenant/preview-domain/verify":              domain("Ask the DNS whether the domain is the tenant's."),
		"GET /custom-domains":                             {Text: "List domains.", Answer: previewDomain{}, List: true},
		"POST /custom-domains":                            {Text: "Add a domain for a preview.", Body: map[string]string{}, Answer: previewDomain{}, Status: 201},
		"POST /custom-domains/{domain}/verify":            domain("Ask the DNS whether the domain is the tenant's."),
		"DELETE /custom-domains/{domain}":                 {Text: "Give a domain up.", Status: 204},
	}
}

func tenantDocs() map[string]api.Doc {
	const period = "period start end external_user_id external_project_id external_workspace_id workspace_id project_id"
	return map[string]api.Doc{
		"POST /egress/secrets":              {Text: "Keep a secret; its value never comes back.", Body: newSecret{}, Status: 201},
		"GET /egress/secrets":               {Text: "List secrets.", Query: "resource_id resource_type scope"},
		"GET /egress/secrets/{secret}":      {Text: "Get a secret, without its value.", Answer: secret{}},
		"PATCH /egress/secrets/{secret}":    {Text: "Change or rotate a secret.", Body: newSecret{}, Answer: secret{}},
		"DELETE /egress/secrets/{secret}":   {Text: "Delete a secret with its bindings.", Status: 204},
		"POST /egress/bindings":             {Text: "Use a secret in a sandbox.", Body: map[string]string{}, Answer: binding{}, Status: 201},
		"GET /egress/bindings":              {Text: "List bindings.", Query: "resource_id secret_id"},
		"DELETE /egress/bindings/{binding}": {Text: "End a binding.", Status: 204},
		"GET /events/stream":                {Text: "Events of all sandboxes; goes on behind Last-Event-ID.", Query: "types last_event_id", Stream: true},
		"GET /usage":                        {Text: "Usage of a period, grouped.", Query: "group_by " + period},
		"GET /usage/summary":                {Text: "The sum of a period.", Query: period},
		"GET /usage/sessions":               {Text: "Runs and pauses.", Query: "limit sandbox_id " + period},
		"GET /credits/balance":              {Text: "What was given and spent."},
		"GET /credits/usage":                {Text: "What a period cost.", Query: period},
		"GET /credits/transactions":         {Text: "Transactions.", List: true},
	}
}
