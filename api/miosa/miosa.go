// Package miosa is the dialect that the MIOSA clients speak: their REST calls below
// /api/v1, translated onto the domain. Commands and files go through here too: the
// handler asks the node for the sandbox's agent, and the guest never learns of it.
//
// wire.go holds the shapes, translate.go the pure functions between them and the
// domain, errors.go the statuses, routes.go the operations, and one file a noun the
// handlers.
package miosa

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// Prefix begins the path of every operation.
const Prefix = "/api/v1"

// Config is what the dialect needs. Service, Snapshots, Traffic and Auth are required.
type Config struct {
	Service   nacre.Service
	Snapshots nacre.SnapshotService
	Traffic   nacre.Traffic
	Activity  nacre.Activity // nil: nothing moves an idle deadline
	Auth      *api.Auth
	TokenKey  nacre.TokenKey

	Nouns

	// Domain is what previews stand under, with a port where the edge listens on
	// another than 443.
	Domain string
	// Scheme is how a browser reaches them; "" means https.
	Scheme string

	Logger *slog.Logger
	Clock  nacre.Clock
}

// API is the handler of the dialect, and what follows the processes that were
// started through it.
type API struct {
	Config
	handler http.Handler
	jobs    *jobs
	bound   *bound
	big     chan struct{} // a turn for each large body that is held in memory
	output  budget
}

// bigBodies is how many large bodies are held in memory at once, each for bigTime at
// most until it is there.
const (
	bigBodies = 8
	bigTime   = 2 * time.Minute
)

// New returns the dialect. Close ends what it follows.
func New(c Config) *API {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Scheme == "" {
		c.Scheme = "https"
	}
	a := &API{Config: c, big: make(chan struct{}, bigBodies)}
	a.output.max = allOutput
	a.jobs, a.bound = newJobs(a), &bound{api: a, of: map[nacre.SandboxID]boundEnv{}}
	a.handler = api.CORS(api.Dialect{
		Routes: a.routes(), Auth: c.Auth, WriteError: writeError, Logger: c.Logger, Clock: c.Clock,
	}.Handler(), "X-Request-Id, Retry-After, Idempotent-Replay")
	return a
}

// Close stops following processes, which run on, and waits for that.
func (a *API) Close() error { return a.jobs.close() }

// Match tells whether a request is for this dialect.
func Match(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, Prefix+"/") }

// ServeHTTP answers in the dialect's form, whatever the path.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Some clients ask for the actions through a base that ends in the prefix already.
	if rest, ok := strings.CutPrefix(r.URL.Path, Prefix+Prefix+"/actions/"); ok && r.URL.RawPath == "" {
		r = r.Clone(r.Context())
		r.URL.Path = Prefix + "/actions/" + rest
	}
	a.handler.ServeHTTP(w, r)
}

// touch tells that a sandbox is used.
func (a *API) touch(id nacre.SandboxID) {
	if a.Activity != nil {
		a.Activity.Touch(id)
	}
}

// busyEvery is how often a sandbox is touched while something runs in it.
const busyEvery = 10 * time.Second

// busy touches a sandbox now, while what was begun lasts, and when done is called.
func (a *API) busy(ctx context.Context, id nacre.SandboxID) (done func()) {
	a.touch(id)
	if a.Activity == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(busyEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				a.touch(id)
			}
		}
	}()
	return func() {
		cancel()
		<-stopped
		a.touch(id)
	}
}
