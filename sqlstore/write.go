package sqlstore

import "context"

// write runs fn in one transaction; fn may run more than once. The context that
// fn gets does not end on SQLite, where a statement that is interrupted would take
// the other callers' changes with it.
func (db *DB) write(ctx context.Context, fn func(context.Context, conn) error) error {
	wrote := false
	run := func(ctx context.Context, c conn) error {
		wrote, c.wrote = false, &wrote
		return db.safely(func() error { return fn(ctx, c) })
	}
	var err error
	if db.d.postgres {
		err = db.writePostgres(ctx, func(c conn) error { return run(ctx, c) })
	} else {
		err = db.writer.do(ctx, func(c conn) error { return run(context.WithoutCancel(ctx), c) })
	}
	if err == nil && wrote {
		db.signal.wake()
	}
	return db.fail(ctx, err)
}
