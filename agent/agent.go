// Package agent is the daemon inside a guest: it runs processes and terminals,
// serves files and watches them, and tells the host how the guest is doing. It
// speaks the envd protocol on one TCP port.
//
// It is the guest's PID 1, so nothing that a request does may end it: what it
// keeps is bounded (output is passed on with back-pressure, logs are a ring,
// event queues have ends), and every orphan is reaped by it. It trusts whoever
// holds the access token with the whole guest, root included, and the holder of
// the host token with its own identity.
package agent

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/bulk"
)

// Config is what an Agent depends on. The zero value is a working agent that
// leaves the machine it runs on alone, as a test wants it.
type Config struct {
	Logger *slog.Logger // nil discards

	// PasswdPath and GroupPath name the account files; "" means those of /etc.
	PasswdPath, GroupPath string

	// System applies an Init to the machine. nil applies nothing.
	System *System

	// Init makes the agent reap every orphan, as PID 1 has to.
	Init bool

	// DiskPath is where Stats measures the disk; "" means "/".
	DiskPath string

	// TrimAfter is how long the agent is idle before it gives memory back to the
	// system. 0 means never.
	TrimAfter time.Duration

	// SpareThreads is how many threads the agent makes ahead, beside those it happens
	// to have, so that it outlives a guest that is at its limit of tasks. 0 means none.
	SpareThreads int
}

// Agent is one guest's daemon.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	id       identity
	users    *accounts
	procs    *processTable
	watchers *watcherTable
	logs     *logRing
	cpu      cpuMeter
	conns    conns
	threads  *spareThreads
	handler  http.Handler

	active   atomic.Int64 // requests under way
	initMu   sync.Mutex
	lastInit initState

	trimMu  sync.Mutex
	trim    *time.Timer
	trimmed uint64 // what had been allocated when memory was given back last
	closing context.Context
	close   context.CancelFunc
}

// New returns an agent that waits for its first Init. Close ends its goroutines.
func New(cfg Config) *Agent {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.PasswdPath == "" {
		cfg.PasswdPath = "/etc/passwd"
	}
	if cfg.GroupPath == "" {
		cfg.GroupPath = "/etc/group"
	}
	if cfg.DiskPath == "" {
		cfg.DiskPath = "/"
	}
	a := &Agent{
		cfg:   cfg,
		log:   cfg.Logger,
		users: &accounts{passwdPath: cfg.PasswdPath, groupPath: cfg.GroupPath},
		logs:  newLogRing(maxLogBytes),
	}
	a.closing, a.close = context.WithCancel(context.Background())
	a.procs = newProcessTable(cfg.Init, a.logs, a.log)
	a.watchers = newWatcherTable()
	a.threads = newSpareThreads(cfg.SpareThreads)
	a.handler = a.routes()
	return a
}

// Serve answers on ln until Close, or until ln fails.
func (a *Agent) Serve(ln net.Listener) error {
	srv := &http.Server{
		Handler:           a,
		ReadHeaderTimeout: 15 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return a.closing },
	}
	stop := context.AfterFunc(a.closing, func() { _ = srv.Close() })
	defer stop()
	err := srv.Serve(bulk.Listener{Listener: connListener{ln, &a.conns}})
	if a.closing.Err() != nil {
		return nil
	}
	return err
}

// Close ends all streams and stops the agent's goroutines. Processes go on.
func (a *Agent) Close() {
	a.close()
	a.trimMu.Lock()
	if a.trim != nil {
		a.trim.Stop()
	}
	a.trimMu.Unlock()
	a.threads.close()
	a.watchers.closeAll()
	a.procs.close()
}

// ServeHTTP answers one request.
func (a *Agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.active.Add(1)
	defer func() {
		if a.active.Add(-1) == 0 {
			a.trimLater()
		}
	}()
	a.handler.ServeHTTP(w, r)
}

// trimWorth is how much must have been allocated since the agent gave memory back, or
// since it began, for it to do so: that takes the host some milliseconds, and an agent
// that has done little, as those of standbys have, has nothing to give.
const trimWorth = 4 << 20

// trimLater returns memory to the system once the agent has been idle for a
// while: between two bursts a guest should cost as little as a fresh one.
func (a *Agent) trimLater() {
	if a.cfg.TrimAfter <= 0 {
		return
	}
	a.trimMu.Lock()
	defer a.trimMu.Unlock()
	switch {
	case allocated()-a.trimmed < trimWorth:
	case a.trim != nil:
		a.trim.Reset(a.cfg.TrimAfter)
	default:
		a.trim = time.AfterFunc(a.cfg.TrimAfter, a.trimNow)
	}
}

func (a *Agent) trimNow() {
	if a.active.Load() > 0 {
		return
	}
	debug.FreeOSMemory()
	a.trimMu.Lock()
	defer a.trimMu.Unlock()
	a.trimmed = allocated()
}

// allocated is how many bytes this process has ever allocated.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

var _ http.Handler = (*Agent)(nil)

// codeStatus is the one table from error codes to the statuses of the HTTP routes.
func codeStatus(code nacre.Code) int {
	switch code {
	case nacre.CodeInvalid:
		return http.StatusBadRequest
	case nacre.CodeUnauthenticated:
		return http.StatusUnauthorized
	case nacre.CodeForbidden:
		return http.StatusForbidden
	case nacre.CodeNotFound:
		return http.StatusNotFound
	case nacre.CodeConflict:
		return http.StatusConflict
	case nacre.CodeExhausted:
		return http.StatusTooManyRequests
	case nacre.CodeUnavailable:
		return http.StatusBadGateway
	case nacre.CodeNoSpace:
		return http.StatusInsufficientStorage
	case nacre.CodeDeadline:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}
