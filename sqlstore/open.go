// Package sqlstore keeps all records on SQLite or PostgreSQL, with one set of
// queries. One DB is every store that the root package names: SandboxStore,
// SnapshotStore, EventLog, TeamStore and TemplateStore.
//
// On SQLite all writes go through one connection that commits whatever queued up
// while the previous commit ran (group commit): many callers share one fsync, and
// a lone caller does not wait. Reads have connections of their own. On PostgreSQL
// every write is a transaction of its own.
//
// Times are kept in microseconds, UTC: what comes back is what went in, without
// the digits below (see micro). Strings that no query looks at lie in one JSON
// document, so bytes that are not UTF-8 come back as U+FFFD; metadata and
// environments that are not UTF-8 are refused.
package sqlstore

import (
	"context"
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nacrehq/nacre"
)

// Options of Open. The zero value of a field is a good default.
type Options struct {
	Logger *slog.Logger
	Clock  nacre.Clock
	// EnvKey encrypts the environments of sandboxes at rest. All zero means that
	// they are kept as they are. A database that was opened with one key refuses
	// another; records that it was written without one stay readable.
	EnvKey [32]byte
	// MaxConns bounds the connections to PostgreSQL; 0 means 16.
	MaxConns int
	// BusyTimeout is how long a write waits for another process that holds
	// SQLite's lock; 0 means 5 seconds.
	BusyTimeout time.Duration
	// Alone says that no other process writes to the database, as is so of one on
	// SQLite whose directory the server has locked: keys and templates are then
	// remembered, until they change. It means nothing on PostgreSQL.
	Alone bool
}

// DB implements nacre.SandboxStore, SnapshotStore, EventLog, TeamStore and
// TemplateStore. All methods may run at once.
type DB struct {
	log    *slog.Logger
	clock  nacre.Clock
	sealer *sealer
	d      dialect

	pool   *sql.DB // PostgreSQL: everything; SQLite: reads
	reads  conn
	writer *writer // SQLite only
	closed atomic.Bool
	signal signal

	alone     bool
	keys      lookups[[32]byte, nacre.Key]
	templates lookups[templateLookup, nacre.Template]
}

var (
	_ nacre.SandboxStore  = (*DB)(nil)
	_ nacre.EventLog      = (*DB)(nil)
	_ nacre.TeamStore     = (*DB)(nil)
	_ nacre.TemplateStore = (*DB)(nil)
	_ nacre.SnapshotStore = (*DB)(nil)

	_ nacre.EventSignal     = (*DB)(nil)
	_ nacre.EventWriter     = (*DB)(nil)
	_ nacre.RequestStore    = (*DB)(nil)
	_ nacre.SecretStore     = (*DB)(nil)
	_ nacre.PreviewStore    = (*DB)(nil)
	_ nacre.PreviewRoutes   = (*DB)(nil)
	_ nacre.DomainStore     = (*DB)(nil)
	_ nacre.UsageStore      = (*DB)(nil)
	_ nacre.DeploymentStore = (*DB)(nil)
)

// Open opens the database, makes it when there is none, and brings its tables up
// to date. The url is "sqlite:/path/to/file.db", a plain path, or
// "postgres://...". A database that a newer version of the product has written
// is CodeConflict, one that cannot be reached CodeUnavailable, a url or a key
// that does not fit CodeInvalid. No message holds the url, which may hold a
// password.
func Open(ctx context.Context, url string, opts Options) (*DB, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	sealer, err := newSealer(opts.EnvKey)
	if err != nil {
		return nil, err
	}
	db := &DB{log: opts.Logger, clock: opts.Clock, sealer: sealer}
	scheme, _, isURL := strings.Cut(url, "://")
	switch {
	case isURL && (scheme == "postgres" || scheme == "postgresql"):
		err = db.openPostgres(ctx, url, opts)
	case isURL && scheme != "sqlite":
		return nil, nacre.Invalidf("url", "the database's address must begin with sqlite: or postgres://")
	default:
		path := strings.TrimPrefix(strings.TrimPrefix(url, "sqlite:"), "//")
		err = db.openSQLite(ctx, path, opts)
	}
	if err != nil {
		return nil, err
	}
	if err := db.checkEnvKey(ctx); err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

func (db *DB) openSQLite(ctx context.Context, path string, opts Options) error {
	if path == "" || strings.ContainsAny(path, "\x00") || strings.HasPrefix(path, ":memory:") {
		return nacre.Invalidf("url", "the database needs the path of a file, as in sqlite:/var/lib/nacre/nacre.db")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nacre.Wrap(nacre.CodeInvalid, err, "the path of the database cannot be made absolute")
	}
	// The file holds secrets: nobody else may read it. SQLite gives its
	// companions (-wal, -shm) the same mode.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nacre.Wrap(nacre.CodeUnavailable, err, "the database file cannot be opened for writing; check its directory, owner and mode")
	}
	if err := f.Close(); err != nil {
		return nacre.Wrap(nacre.CodeUnavailable, err, "the database file cannot be opened for writing")
	}
	db.d, db.alone = sqliteDialect, opts.Alone
	write, err := sql.Open("sqlite", sqliteDSN(path, opts.BusyTimeout, false))
	if err != nil {
		return nacre.Wrap(nacre.CodeInvalid, err, "the path of the database is not usable")
	}
	write.SetMaxOpenConns(1)
	if err := db.migrateSQLite(ctx, write, path); err != nil {
		write.Close()
		return err
	}
	if db.pool, err = sql.Open("sqlite", sqliteDSN(path, opts.BusyTimeout, true)); err != nil {
		write.Close()
		return nacre.Wrap(nacre.CodeInvalid, err, "the path of the database is not usable")
	}
	readers := max(4, runtime.GOMAXPROCS(0))
	db.pool.SetMaxOpenConns(readers)
	db.pool.SetMaxIdleConns(readers)
	db.reads = conn{d: db.d, on: db.pool, stmts: newStmtCache(db.pool)}
	if db.writer, err = startWriter(ctx, write, db.log, db.forgetLookups); err != nil {
		db.pool.Close()
		write.Close()
		return db.fail(ctx, err)
	}
	return nil
}

// Close finishes the writes that are queued, then closes the connections. Calls
// after it are CodeUnavailable.
func (db *DB) Close() error {
	var werr error
	if db.writer != nil {
		werr = db.writer.close()
	}
	if db.reads.stmts != nil {
		db.reads.stmts.close()
	}
	db.closed.Store(true)
	err := db.pool.Close()
	db.forgetLookups() // nothing is answered from memory any more
	if err != nil {
		return err
	}
	return werr
}

// micro cuts a time down to what the store keeps: whole microseconds, UTC. The
// zero time stays the zero time.
func micro(t time.Time) time.Time { return fromMicro(t.UnixMicro()) }

func fromMicro(us int64) time.Time { return time.UnixMicro(us).UTC() }
