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

// update changes one record in one transaction: read reads and locks it, change has
// the caller's function change a copy, which shares nothing with old that the function
// may write to, and keep holds that to the rules and writes it.
func update[T any](ctx context.Context, db *DB, read func(context.Context, conn) (T, error), change func(s *T) error,
	keep func(ctx context.Context, c conn, old, s *T) error) (T, error) {
	var out T
	err := db.write(ctx, func(ctx context.Context, c conn) error {
		old, err := read(ctx, c)
		if err != nil {
			return err
		}
		s := old
		if err := change(&s); err != nil {
			return changeError{err}
		}
		out = s
		return keep(ctx, c, &old, &out)
	})
	if err != nil {
		return *new(T), err
	}
	return out, nil
}
