package sqlstore

import (
	"context"
	"database/sql"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// signal is a channel that is closed at the next wake, and replaced.
type signal struct {
	mu   sync.Mutex
	next chan struct{} // nil while nobody waits
}

func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = make(chan struct{})
	}
	return s.next
}

func (s *signal) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil {
		close(s.next)
		s.next = nil
	}
}

// EventsWritten implements nacre.EventSignal.
func (db *DB) EventsWritten() <-chan struct{} { return db.signal.wait() }

// LastEvent implements nacre.EventSignal.
func (db *DB) LastEvent(ctx context.Context) (int64, error) {
	var seq int64
	_, err := db.reads.one(ctx, func(r *sql.Rows) error { return r.Scan(&seq) },
		`SELECT coalesce(max(seq), 0) FROM events WHERE seq < `+db.d.horizon)
	return seq, db.fail(ctx, err)
}

// AppendEvents implements nacre.EventWriter.
func (db *DB) AppendEvents(ctx context.Context, events []nacre.Event) error {
	for _, e := range events {
		if e.TeamID == "" || !plain(string(e.TeamID)) || !e.SandboxID.Valid() {
			return nacre.Errorf(nacre.CodeInvalid, "an event needs a team and a sandbox")
		}
	}
	if len(events) > maxEvents {
		return nacre.Errorf(nacre.CodeInvalid, "at most %d events can be written at once", maxEvents)
	}
	if len(events) == 0 {
		return nil
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		for i, e := range events {
			s := nacre.Sandbox{ID: e.SandboxID, TeamID: e.TeamID}
			if err := db.insertEventsFrom(ctx, c, &s, i, e); err != nil {
				return err
			}
		}
		return nil
	})
}

// trimmed is the condition of the index events_activity, to the letter.
func trimmed() string {
	kinds := make([]string, len(nacre.ActivityEvents))
	for i, k := range nacre.ActivityEvents {
		kinds[i] = "'" + string(k) + "'"
	}
	return "kind IN (" + strings.Join(kinds, ", ") + ")"
}

// TrimEvents implements nacre.EventWriter.
func (db *DB) TrimEvents(ctx context.Context, before time.Time, limit int) (int, error) {
	var n int64
	err := db.write(ctx, func(ctx context.Context, c conn) (err error) {
		n, err = c.exec(ctx, `DELETE FROM events WHERE seq IN (SELECT seq FROM events`+db.d.indexed("events_activity")+
			` WHERE `+trimmed()+` AND at < ? ORDER BY at LIMIT ?)`, before.UnixMicro(), limit)
		return err
	})
	return int(n), err
}
