package sqlstore

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/nacrehq/nacre"
)

// maxTries of a transaction that the server ended in favour of another.
const maxTries = 8

func (db *DB) openPostgres(ctx context.Context, url string, opts Options) error {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		// The parser's error may quote the url.
		return nacre.Wrap(nacre.CodeInvalid, errors.New("pgx refuses the url"), "the address of the PostgreSQL database cannot be read; it is postgres://user:password@host:5432/name")
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "nacre"
	}
	db.d = postgresDialect
	db.pool = stdlib.OpenDB(*cfg, stdlib.OptionAfterConnect(func(ctx context.Context, c *pgx.Conn) error {
		// What has been answered survives a power cut, whatever the role's default;
		// and nobody waits for ever for a row that a stuck client holds.
		_, err := c.Exec(ctx, `SET synchronous_commit = on; SET lock_timeout = '10s'`)
		return err
	}))
	conns := opts.MaxConns
	if conns <= 0 {
		conns = 16
	}
	db.pool.SetMaxOpenConns(conns)
	db.pool.SetMaxIdleConns(conns)
	db.reads = conn{d: db.d, on: db.pool}
	if err := db.preparePostgres(ctx); err != nil {
		db.pool.Close()
		return err
	}
	return nil
}

func (db *DB) preparePostgres(ctx context.Context) error {
	if err := db.pool.PingContext(ctx); err != nil {
		return db.fail(ctx, err)
	}
	if err := db.migratePostgres(ctx); err != nil {
		return err
	}
	// After a restore into another cluster the transactions' numbers may be lower.
	return db.write(ctx, func(ctx context.Context, c conn) error {
		_, err := c.exec(ctx, `UPDATE event_base SET base = base + (SELECT max(seq) FROM events) + 1 - event_seq(0)
			WHERE event_seq(0) <= (SELECT max(seq) FROM events)`)
		return err
	})
}

// writePostgres runs run in a transaction, again when the server chose it to
// yield to another.
func (db *DB) writePostgres(ctx context.Context, run func(conn) error) error {
	var err error
	for range maxTries {
		if err = db.tryPostgres(ctx, run); !mayRetry(err) {
			return err
		}
	}
	return err
}

func (db *DB) tryPostgres(ctx context.Context, run func(conn) error) error {
	tx, err := db.pool.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // no-op after Commit
	if err := run(conn{d: db.d, on: tx}); err != nil {
		return err
	}
	return tx.Commit()
}
