package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"golang.org/x/sys/unix"
)

//go:embed migrations
var migrations embed.FS

// provider returns goose over one dialect's files.
func provider(d dialect, db *sql.DB, opts ...goose.ProviderOption) (*goose.Provider, error) {
	dir, kind := "migrations/sqlite", goose.DialectSQLite3
	if d.postgres {
		dir, kind = "migrations/postgres", goose.DialectPostgres
	}
	files, err := fs.Sub(migrations, dir)
	if err != nil {
		return nil, err
	}
	opts = append(opts, goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	return goose.NewProvider(kind, db, files, opts...)
}

// migrate brings the tables up to this binary's version. Each migration is one
// transaction: a kill at any moment leaves the version before or after it.
func (db *DB) migrate(ctx context.Context, p *goose.Provider) error {
	have, know, err := p.GetVersions(ctx)
	if err != nil {
		return db.fail(ctx, err)
	}
	if have > know {
		return nacre.Errorf(nacre.CodeConflict,
			"the database has version %d, this program knows versions up to %d; run the newer program that wrote it, or restore a backup", have, know)
	}
	if have == know {
		return nil
	}
	results, err := p.Up(ctx)
	if err != nil {
		return db.fail(ctx, err)
	}
	for _, r := range results {
		db.log.Info("database migrated", "version", r.Source.Version, "took", r.Duration)
	}
	return nil
}

// migrateSQLite holds a lock file meanwhile: of several processes that open one
// new database, one makes it.
func (db *DB) migrateSQLite(ctx context.Context, pool *sql.DB, path string) error {
	release, err := lockFile(ctx, path+".lock")
	if err != nil {
		return nacre.Wrap(nacre.CodeUnavailable, err, "another process is changing the database's tables; try again shortly")
	}
	defer release()
	p, err := provider(db.d, pool)
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the database's migrations cannot be read")
	}
	return db.migrate(ctx, p)
}

// migratePostgres holds a session's advisory lock, which ends with the session.
func (db *DB) migratePostgres(ctx context.Context) error {
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 120), lock.WithUnlockTimeout(1, 10))
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the migration lock cannot be made")
	}
	p, err := provider(db.d, db.pool, goose.WithSessionLocker(locker))
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the database's migrations cannot be read")
	}
	return db.migrate(ctx, p)
}

// lockFile waits for an exclusive lock that the kernel gives up when we die. The
// file stays: deleting it would let two processes hold locks on two files.
func lockFile(ctx context.Context, path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = f.Close()
			return nil, ctx.Err()
		}
	}
}
