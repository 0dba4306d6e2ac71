package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nacrehq/nacre"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

var (
	errClosed  = nacre.Errorf(nacre.CodeUnavailable, "the database is closed; the server is stopping")
	errAborted = nacre.Errorf(nacre.CodeUnavailable, "the change was not written; try again")
)

// changeError carries an error of a caller's change function past fail.
type changeError struct{ error }

func (e changeError) Unwrap() error { return e.error }

// fail turns an error into what the contracts promise.
func (db *DB) fail(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var changed changeError
	if errors.As(err, &changed) {
		return changed.error
	}
	var known *nacre.Error
	if errors.As(err, &known) {
		return err
	}
	if db.closed.Load() {
		return errClosed
	}
	if ctx.Err() != nil {
		return nacre.Wrap(nacre.CodeDeadline, errors.Join(ctx.Err(), err), "the time given ended before the database answered")
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		return sqliteError(lite)
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return postgresError(pg)
	}
	if db.d.postgres { // anything that the server did not say is about the way to it
		return nacre.Wrap(nacre.CodeUnavailable, err, "the database does not answer; try again shortly")
	}
	return nacre.Wrap(nacre.CodeInternal, err, "the database failed; the server's log has the cause")
}

func sqliteError(err *sqlite.Error) error {
	switch err.Code() & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return nacre.Wrap(nacre.CodeUnavailable, err, "the database is locked by another process; try again shortly")
	case sqlite3.SQLITE_FULL:
		return nacre.Wrap(nacre.CodeNoSpace, err, "the disk of the database is full; free some space and try again")
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		return nacre.Wrap(nacre.CodeUnavailable, err, "the database cannot be written; check the owner and mode of its file and directory")
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT:
		return nacre.Wrap(nacre.CodeUnavailable, err, "the database cannot be read or written now; try again shortly")
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return nacre.Wrap(nacre.CodeInternal, err, "the database file is damaged or is no database; restore it from a backup")
	case sqlite3.SQLITE_TOOBIG:
		return nacre.Wrap(nacre.CodeInvalid, err, "the record is too big")
	}
	return nacre.Wrap(nacre.CodeInternal, err, "the database failed; the server's log has the cause")
}

// endsTransaction tells whether SQLite may have rolled back, or cannot be
// trusted to write the rest of a transaction, after err.
func endsTransaction(err error) bool {
	var lite *sqlite.Error
	if !errors.As(err, &lite) {
		return false
	}
	switch lite.Code() & 0xff {
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE:
		return false
	}
	return true
}

func postgresError(err *pgconn.PgError) error {
	class := err.Code[:min(2, len(err.Code))]
	switch {
	case err.Code == "53100":
		return nacre.Wrap(nacre.CodeNoSpace, err, "the disk of the database is full; free some space and try again")
	case err.Code == "25006":
		return nacre.Wrap(nacre.CodeUnavailable, err, "the database is read-only now; try again shortly")
	case err.Code == "22021" || err.Code == "22P05" || err.Code == "54000":
		return nacre.Wrap(nacre.CodeInvalid, err, "the database cannot keep one of the texts given")
	case class == "28" || err.Code == "3D000":
		return nacre.Wrap(nacre.CodeUnavailable, err, "the database refuses the login; check its address, user, password and name")
	case class == "XX":
		return nacre.Wrap(nacre.CodeInternal, err, "the database is damaged; see its log")
	case class == "08" || class == "53" || class == "55" || class == "57" || class == "58" || class == "40":
		return nacre.Wrap(nacre.CodeUnavailable, err, "the database does not take the request now; try again shortly")
	}
	return nacre.Wrap(nacre.CodeInternal, err, "the database failed; the server's log has the cause")
}

// mayRetry tells whether a transaction failed only because of others.
func mayRetry(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}

// safely turns a panic of fn into an error: one caller's mistake must not take
// the writer, or the process, with it.
func (db *DB) safely(fn func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			db.log.Error("a change of a record panicked", "panic", r, "stack", string(debug.Stack()))
			err = nacre.Wrap(nacre.CodeInternal, fmt.Errorf("panic: %v", r), "an internal error occurred; nothing was changed")
		}
	}()
	return fn()
}

// plain tells whether both databases can keep the text as it is.
func plain(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }
