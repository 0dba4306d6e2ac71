package moru

import "github.com/nacrehq/nacre/api"

// Describe is the dialect's part of the OpenAPI document.
func Describe() api.Part {
	return api.Part{
		Name: "moru", Text: "What the Moru and E2B clients speak. Commands and files go to the sandbox's own host instead.",
		Routes: (&dialect{}).routes(), NotOffered: notOffered, Error: errorBody{}, Invalid: 400, Docs: docs(),
	}
}

func docs() map[string]api.Doc {
	connect := api.Doc{Text: "Resume a paused sandbox, or extend the deadline of a running one.", Body: connectBody{}, Answer: sandbox{}}
	templates := api.Doc{Text: "List templates.", Answer: template{}, List: true}
	create := api.Doc{Text: "Create a sandbox; answered when it runs. The key nacre:runtime of metadata asks for a runtime.", Body: newSandbox{}, Answer: sandbox{}, Status: 201, Once: true}
	return map[string]api.Doc{
		"GET /health": {Text: "Whether the server answers."},

		"POST /sandboxes":                 create,
		"POST /v2/sandboxes":              create,
		"GET /sandboxes":                  {Text: "List running sandboxes.", Query: "metadata", Answer: listedSandbox{}, List: true},
		"GET /v2/sandboxes":               {Text: "List running and paused sandboxes, in pages (header X-Next-Token).", Query: "metadata state limit nextToken", Answer: listedSandbox{}, List: true},
		"GET /v2/sandbox-runs":            {Text: "List sandboxes, ended ones too.", Query: "status limit nextToken", Answer: sandboxRun{}, List: true},
		"GET /sandboxes/{id}":             {Text: "Get a sandbox.", Answer: sandboxDetail{}},
		"DELETE /sandboxes/{id}":          {Text: "Kill a sandbox.", Status: 204},
		"POST /sandboxes/{id}/timeout":    {Text: "Set how long it runs from now.", Body: timeoutBody{}, Status: 204},
		"POST /sandboxes/{id}/refreshes":  {Text: "Extend how long it runs.", Body: refreshBody{}, Status: 204},
		"POST /sandboxes/{id}/connect":    connect,
		"POST /v2/sandboxes/{id}/connect": connect,
		"POST /sandboxes/{id}/pause":      {Text: "Keep memory and files, and end the machine.", Body: pauseBody{}, Status: 204},
		"POST /sandboxes/{id}/resume":     {Text: "Resume a paused sandbox.", Body: connectBody{}, Answer: sandbox{}, Status: 201, Once: true},
		"POST /sandboxes/{id}/snapshots":  {Text: "Take a snapshot.", Body: snapshotBody{}, Answer: snapshot{}, Status: 201},
		"POST /sandboxes/{id}/fork":       {Text: "Make sandboxes that go on where this one is.", Body: forkBody{}, Answer: forkResult{}, List: true, Status: 201, Once: true},
		"POST /sandboxes/{id}/restore":    {Text: "Put the sandbox back to a snapshot.", Body: restoreBody{}, Answer: sandbox{}},
		"PUT /sandboxes/{id}/network":     {Text: "Replace the outbound rules.", Body: networkConfig{}, Status: 204},
		"GET /sandboxes/{id}/metrics":     {Text: "Samples of use.", Query: "start end", Answer: metric{}, List: true},
		"GET /sandboxes/metrics":          {Text: "The newest sample of several sandboxes.", Query: "sandbox_ids", Answer: sandboxesMetrics{}},
		"GET /sandboxes/{id}/logs":        {Text: "Log lines.", Query: "start limit", Answer: logsV1{}},
		"GET /v2/sandboxes/{id}/logs":     {Text: "Log entries in pages.", Query: "cursor limit direction", Answer: logsV2{}},
		"GET /snapshots":                  {Text: "List snapshots.", Query: "sandboxID limit nextToken", Answer: snapshot{}, List: true},
		"POST /snapshots/{snapshot}/fork": {Text: "Make sandboxes from a snapshot.", Body: forkBody{}, Answer: forkResult{}, List: true, Status: 201, Once: true},
		"GET /templates":                  templates,
		"GET /v2/templates":               templates,
		"GET /default-templates":          templates,
		"GET /templates/{template}":       {Text: "Get a template with its builds.", Answer: templateWithBuilds{}},
		"GET /templates/aliases/{alias}":  {Text: "Find a template by a name.", Answer: templateAlias{}},
		"DELETE /templates/{template}":    {Text: "Delete a snapshot, as the clients spell it.", Status: 204},
		"GET /teams":                      {Text: "The team of the key.", Answer: team{}, List: true},
		"GET /api-keys":                   {Text: "List API keys, without what they are.", Answer: apiKey{}, List: true},
		"POST /api-keys":                  {Text: "Make an API key; it is shown once.", Body: newAPIKey{}, Answer: apiKey{}, Status: 201},
		"DELETE /api-keys/{key}":          {Text: "Revoke an API key.", Status: 204},
	}
}
