package miosa

import (
	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// Nouns are what stands behind the nouns that only this dialect has.
type Nouns struct {
	Editor   Editor
	Events   nacre.EventLog
	Streams  Streams
	Previews nacre.PreviewStore
	Domains  nacre.DomainStore
	Resolver Resolver // nil: no domain is ever verified
	Secrets  nacre.SecretStore
	Once     *api.Once // nil: an Idempotency-Key means nothing
	Usage    Usage

	Publisher   Publisher
	Deployments nacre.DeploymentStore

	// Emit takes events that come with no change of a record; nil drops them. It must
	// not block.
	Emit func(nacre.Event)
}

// emit tells that something was done in a sandbox.
func (a *API) emit(g *guest, kind nacre.EventKind, data map[string]string) {
	if a.Emit != nil {
		a.Emit(nacre.Event{Time: a.Clock().UTC(), TeamID: g.team, SandboxID: g.id, Kind: kind, Data: data})
	}
}
