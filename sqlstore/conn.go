package sqlstore

import (
	"context"
	"database/sql"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// dialect holds the few words in which the two databases differ. Queries are
// written with '?' for parameters and nothing else.
type dialect struct {
	postgres  bool
	forUpdate string // at the end of a SELECT whose row will be written
	forShare  string // of one that must stay as it is until the transaction ends
	skipBusy  string // as forUpdate, passing over rows that others hold
	rowKey    string // the quickest way to a record that an index entry knows
	jsonList  string // a SELECT of the elements of a JSON array, a parameter
	eventCols string // what an event's seq is made with
	eventSeq  string
	horizon   string // up to where events may be shown
	lockNames string // serialises changes of template names
}

var (
	sqliteDialect = dialect{
		rowKey:   `s.rowid`,
		jsonList: `SELECT value FROM json_each(?)`,
		horizon:  `9223372036854775807`,
	}
	postgresDialect = dialect{
		postgres:  true,
		rowKey:    `s.id`,
		forUpdate: ` FOR UPDATE`,
		forShare:  ` FOR SHARE`,
		skipBusy:  ` FOR UPDATE SKIP LOCKED`,
		jsonList:  `SELECT value FROM json_array_elements_text(?::json) AS j (value)`,
		eventCols: `seq, `,
		eventSeq:  `event_seq(?), `,
		horizon:   `(SELECT event_horizon())`,
		lockNames: `LOCK TABLE template_names IN SHARE ROW EXCLUSIVE MODE`,
	}
)

// indexed names the index that a query was written for. SQLite has no
// statistics of ours to choose by, and fails if the index cannot be used.
func (d dialect) indexed(index string) string {
	if d.postgres {
		return ""
	}
	return " INDEXED BY " + index
}

// rebind turns '?' into $1, $2, ... for PostgreSQL.
func (d dialect) rebind(query string) string {
	if !d.postgres {
		return query
	}
	var b strings.Builder
	b.Grow(len(query) + 16)
	n := 0
	for i := range len(query) {
		if query[i] != '?' {
			b.WriteByte(query[i])
			continue
		}
		n++
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n))
	}
	return b.String()
}

// conn runs statements on a pool, a connection or a transaction. Its errors are
// the driver's; DB.fail translates them at the border.
type conn struct {
	d     dialect
	on    runner
	stmts *stmtCache // nil where the driver keeps prepared statements itself
	wrote *bool      // set when events are written; nil outside of a write
	stale *bool      // set when lookups change; nil where none are remembered
}

type runner interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// exec returns how many rows it changed.
func (c conn) exec(ctx context.Context, query string, args ...any) (int64, error) {
	var res sql.Result
	st, err := c.stmts.get(ctx, query)
	switch {
	case err != nil:
		return 0, err
	case st != nil:
		res, err = st.ExecContext(ctx, args...)
	default:
		res, err = c.on.ExecContext(ctx, c.d.rebind(query), args...)
	}
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// each calls fn for every row.
func (c conn) each(ctx context.Context, fn func(*sql.Rows) error, query string, args ...any) error {
	var rows *sql.Rows
	st, err := c.stmts.get(ctx, query)
	switch {
	case err != nil:
		return err
	case st != nil:
		rows, err = st.QueryContext(ctx, args...)
	default:
		rows, err = c.on.QueryContext(ctx, c.d.rebind(query), args...)
	}
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// eachFresh is each for a query that PostgreSQL must plan for the values at hand.
// Teams differ in size by orders of magnitude: the plan for an average one, which
// it makes of a prepared statement, reads most of the records of another.
func (c conn) eachFresh(ctx context.Context, fn func(*sql.Rows) error, query string, args ...any) error {
	if c.d.postgres {
		args = append([]any{pgx.QueryExecModeCacheDescribe}, args...)
	}
	return c.each(ctx, fn, query, args...)
}

// one calls fn for the first row and tells whether there was one.
func (c conn) one(ctx context.Context, fn func(*sql.Rows) error, query string, args ...any) (bool, error) {
	found := false
	err := c.each(ctx, func(r *sql.Rows) error {
		if found {
			return nil
		}
		found = true
		return fn(r)
	}, query, args...)
	return found, err
}

// stmtCache keeps prepared statements by their text. Beyond maxStmts of them the
// rest is prepared each time.
type stmtCache struct {
	db interface {
		PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	}
	mu    sync.RWMutex
	stmts map[string]*sql.Stmt
}

const maxStmts = 256

func newStmtCache(db interface {
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}) *stmtCache {
	return &stmtCache{db: db, stmts: map[string]*sql.Stmt{}}
}

// get returns nil without an error for a statement that is not to be kept.
func (s *stmtCache) get(ctx context.Context, query string) (*sql.Stmt, error) {
	if s == nil {
		return nil, nil
	}
	s.mu.RLock()
	st, full := s.stmts[query], len(s.stmts) >= maxStmts
	s.mu.RUnlock()
	if st != nil || full {
		return st, nil
	}
	st, err := s.db.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.stmts[query]; other != nil {
		_ = st.Close()
		return other, nil
	}
	s.stmts[query] = st
	return st, nil
}

func (s *stmtCache) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stmts {
		_ = st.Close()
	}
	clear(s.stmts)
}

// sqliteDSN holds what every connection is set to.
func sqliteDSN(path string, busy time.Duration, readOnly bool) string {
	if busy <= 0 {
		busy = 5 * time.Second
	}
	q := url.Values{"_pragma": {
		"busy_timeout(" + strconv.FormatInt(busy.Milliseconds(), 10) + ")",
		"journal_mode(WAL)",
		"synchronous(FULL)", // a commit is on the disk when it returns
		"foreign_keys(1)",
		"trusted_schema(0)",
		"cache_size(-32768)", // KiB
		"journal_size_limit(67108864)",
	}}
	if readOnly {
		q.Add("_pragma", "query_only(1)")
	}
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}
	return u.String()
}
