package sqlstore

import (
	"context"
	"database/sql"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nacrehq/nacre"
)

const (
	maxBatch = 256  // writes in one commit
	maxQueue = 8192 // waiting writes; more are turned away
)

// SQLite moves its log into the database within the commit that fills a thousand pages
// of it, some sixty creates: that one takes several times as long as the others. So this
// is done when nobody writes, and by SQLite only while writes never cease.
const (
	tidyAfter  = 40                     // writes
	tidyQuiet  = 200 * time.Millisecond // since the last
	maxLogSize = 4000                   // pages
)

// A write's way through the queue.
const (
	opQueued  int32 = iota
	opRunning       // begun: its function may be running
	opApplied       // its function is done, the commit is not
	opGone          // its caller went away before it was begun
)

// op is one caller's write.
type op struct {
	run     func(conn) error
	err     error // of run
	state   atomic.Int32
	applied chan struct{} // closed when run will not be called any more
	done    chan error    // one value
}

// writer owns SQLite's one writing connection. Its goroutine takes all that is
// queued, runs each under a savepoint unless it is alone, and commits once.
type writer struct {
	db   *sql.DB
	log  *slog.Logger
	c    *sql.Conn
	conn conn

	untidy int // writes since the log was moved into the database

	stale  bool   // what is in the present batch makes lookups out of date
	forget func() // them

	mu     sync.Mutex
	queue  []*op
	closed bool
	wake   chan struct{}
	ended  chan struct{}
}

func startWriter(ctx context.Context, db *sql.DB, log *slog.Logger, forget func()) (*writer, error) {
	c, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	w := &writer{db: db, log: log, c: c, wake: make(chan struct{}, 1), ended: make(chan struct{}), forget: forget}
	w.conn = conn{d: sqliteDialect, on: c, stmts: newStmtCache(c), stale: &w.stale}
	if _, err := w.conn.exec(ctx, "PRAGMA wal_autocheckpoint="+strconv.Itoa(maxLogSize)); err != nil {
		w.conn.stmts.close()
		_ = c.Close()
		return nil, err
	}
	go w.loop()
	return w, nil
}

// do queues run and waits for its commit. A caller whose ctx ends before the
// write was begun leaves it undone; one whose ctx ends during the commit is told
// CodeDeadline and does not know the outcome. run is never called after do has
// returned.
func (w *writer) do(ctx context.Context, run func(conn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o := &op{run: run, applied: make(chan struct{}), done: make(chan error, 1)}
	if err := w.enqueue(o); err != nil {
		return err
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
	}
	if o.state.CompareAndSwap(opQueued, opGone) {
		return ctx.Err()
	}
	<-o.applied
	select {
	case err := <-o.done:
		return err
	default:
		return nacre.Wrap(nacre.CodeDeadline, ctx.Err(),
			"the time given ended while the change was being written; read the record to see whether it was")
	}
}

func (w *writer) enqueue(o *op) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return errClosed
	}
	if len(w.queue) >= maxQueue {
		return nacre.Errorf(nacre.CodeUnavailable, "too many changes wait for the database; try again shortly")
	}
	w.queue = append(w.queue, o)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return nil
}

// close waits until all that is queued has been written.
func (w *writer) close() error {
	w.mu.Lock()
	w.closed = true
	select {
	case w.wake <- struct{}{}:
	default:
	}
	w.mu.Unlock()
	<-w.ended
	w.conn.stmts.close()
	_ = w.c.Close()
	return w.db.Close()
}

// take returns the next batch, nil when there is nothing, and whether the
// writer is to go on waiting for more.
func (w *writer) take() (batch []*op, more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(w.queue), maxBatch)
	batch, w.queue = w.queue[:n:n], w.queue[n:]
	return batch, n > 0 || !w.closed
}

func (w *writer) loop() {
	finished := false
	defer func() {
		if finished {
			close(w.ended)
			return
		}
		// A caller's function ended this goroutine (runtime.Goexit, as a failing
		// test does); commit has cleaned up, the others must not suffer.
		go w.loop()
	}()
	for {
		batch, more := w.take()
		if !more {
			finished = true
			return
		}
		if len(batch) == 0 {
			w.await()
			continue
		}
		w.commit(batch)
		w.untidy += len(batch)
	}
}

// await returns when there may be something to do, and tidies up if that takes a while.
func (w *writer) await() {
	if w.untidy < tidyAfter {
		<-w.wake
		return
	}
	t := time.NewTimer(tidyQuiet)
	defer t.Stop()
	select {
	case <-w.wake:
	case <-t.C:
		w.untidy = 0
		if _, err := w.conn.exec(context.Background(), "PRAGMA wal_checkpoint(PASSIVE)"); err != nil {
			w.log.Warn("the database's log could not be moved into it; that is tried again", "err", err)
		}
	}
}

// commit runs the batch in one transaction and answers everyone. The statements
// run without a context: one caller's deadline must not interrupt the others.
func (w *writer) commit(batch []*op) {
	start := time.Now()
	ctx := context.Background()
	var err error = errAborted
	defer func() {
		if err != nil {
			// Fails if SQLite has rolled back by itself, which is as good.
			_, _ = w.conn.exec(ctx, "ROLLBACK")
		}
		if w.stale {
			w.stale = false
			w.forget()
		}
		for _, o := range batch {
			o.finish(err)
		}
		if d := time.Since(start); d > time.Second {
			w.log.Warn("a write to the database was slow", "took", d, "changes", len(batch))
		}
	}()
	if _, e := w.conn.exec(ctx, "BEGIN IMMEDIATE"); e != nil {
		err = e
		return
	}
	for _, o := range batch {
		if !o.state.CompareAndSwap(opQueued, opRunning) {
			continue
		}
		if len(batch) == 1 { // which has the transaction to itself
			o.apply(w.conn)
			if err = o.err; err != nil {
				return
			}
			continue
		}
		if e := w.apply(ctx, o); e != nil {
			err = e
			return
		}
	}
	_, err = w.conn.exec(ctx, "COMMIT")
}

// apply runs the write and keeps its error.
func (o *op) apply(c conn) {
	defer func() {
		o.state.Store(opApplied)
		close(o.applied)
	}()
	o.err = o.run(c)
}

// apply runs one write under a savepoint. The error is one that ends the whole
// batch; the write's own is kept in o until the commit.
func (w *writer) apply(ctx context.Context, o *op) error {
	if _, err := w.conn.exec(ctx, "SAVEPOINT op"); err != nil {
		return err
	}
	if o.apply(w.conn); o.err != nil {
		if endsTransaction(o.err) {
			return o.err
		}
		if _, err := w.conn.exec(ctx, "ROLLBACK TO op"); err != nil {
			return err
		}
	}
	_, err := w.conn.exec(ctx, "RELEASE op")
	return err
}

// finish tells the caller what became of the batch, or of its own write when the
// batch was written.
func (o *op) finish(batch error) {
	if o.state.CompareAndSwap(opQueued, opApplied) || o.state.CompareAndSwap(opRunning, opApplied) {
		close(o.applied)
	}
	if batch != nil {
		o.err = batch
	}
	o.done <- o.err
}
