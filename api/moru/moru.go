// Package moru is the dialect that the Moru and E2B clients speak: their REST
// calls translated onto nacre.Service. Their calls to the guest do not pass
// here; they go through the edge.
//
// wire.go holds the shapes, translate.go the pure functions between them and the
// domain, errors.go the statuses, routes.go the operations, and one file a noun
// the handlers.
package moru

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// Config is what the dialect needs. All of the first five are required.
type Config struct {
	Service   nacre.Service
	Snapshots nacre.SnapshotService
	Auth      *api.Auth
	Teams     nacre.TeamStore
	TokenKey  nacre.TokenKey

	// Domain is what clients build "<port>-<id>.<domain>" from, with a port when
	// the edge listens on another than 443. "" leaves the choice to the client.
	Domain string
	// EnvdVersion is the guest agent's protocol version; the clients switch their
	// features by it. "" means 0.4.0.
	EnvdVersion string

	// Progress tells how much is written of a snapshot that is being taken of a
	// sandbox, and how much it may come to be. nil: nobody knows.
	Progress func(nacre.SandboxID) (done, total int64)

	Once   *api.Once // nil: an Idempotency-Key means nothing
	Logger *slog.Logger
	Clock  nacre.Clock
}

// New returns the handler of the dialect. Every answer of it is JSON with a
// body, but for 204.
func New(c Config) http.Handler {
	if c.EnvdVersion == "" {
		c.EnvdVersion = "0.4.0"
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	d := &dialect{Config: c}
	return api.CORS(api.Dialect{
		Routes:     d.routes(),
		Auth:       c.Auth,
		WriteError: writeError,
		Logger:     c.Logger,
		Clock:      c.Clock,
	}.Handler(), "X-Next-Token, X-Request-Id, Retry-After")
}

type dialect struct{ Config }
