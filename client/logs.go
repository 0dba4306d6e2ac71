package client

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/nacrehq/nacre"
)

// LogEntry is one line of what a sandbox's commands wrote, or the start or end
// of one. Seq is not sent by servers and is 0.
type LogEntry = nacre.LogEntry

// A LogOption narrows or prolongs Logs.
type LogOption func(*logQuery)

type logQuery struct {
	after  time.Time
	kind   nacre.LogType
	follow time.Duration
}

// LogsFrom leaves out what is older, in whole milliseconds.
func LogsFrom(t time.Time) LogOption { return func(q *logQuery) { q.after = t } }

// LogsOf selects one type of entries.
func LogsOf(kind nacre.LogType) LogOption { return func(q *logQuery) { q.kind = kind } }

// Follow goes on with new entries, looking for them twice a second, until the
// sandbox has ended or the context does.
func Follow() LogOption { return func(q *logQuery) { q.follow = 500 * time.Millisecond } }

// logPage is the most that a server gives at once.
const logPage = 1000

// Logs goes through a sandbox's log, oldest first; it works after the sandbox
// has ended too. What is written to terminals is not logged. The wire counts in
// milliseconds: of more than a thousand entries within one the rest is left out.
func (c *Client) Logs(ctx context.Context, id string, opts ...LogOption) iter.Seq2[LogEntry, error] {
	var q logQuery
	for _, o := range opts {
		o(&q)
	}
	return func(yield func(LogEntry, error) bool) {
		pos := logPosition{}
		if !q.after.IsZero() {
			pos.ms = q.after.UnixMilli()
		}
		last := false // the sandbox had ended before the page was read
		for {
			page, err := c.logPage(ctx, id, q, pos.ms)
			if err != nil {
				yield(LogEntry{}, err)
				return
			}
			fresh := pos.advance(page)
			for _, e := range fresh {
				if !yield(e, nil) {
					return
				}
			}
			if len(page) >= logPage {
				continue
			}
			if q.follow == 0 || last {
				return
			}
			if last, err = c.ended(ctx, id); err == nil && !last {
				err = sleep(ctx, q.follow)
			}
			if err != nil {
				yield(LogEntry{}, err)
				return
			}
		}
	}
}

// logPosition is how far a log was read: everything before ms, and seen entries
// of that millisecond itself, for a cursor cannot point between them.
type logPosition struct {
	ms   int64
	seen int
}

// advance returns the entries of a page that starts at ms which were not seen
// yet, and moves on behind them.
func (p *logPosition) advance(page []LogEntry) []LogEntry {
	skip := 0
	for skip < len(page) && skip < p.seen && page[skip].Time.UnixMilli() == p.ms {
		skip++
	}
	fresh := page[skip:]
	for _, e := range fresh {
		if ms := e.Time.UnixMilli(); ms != p.ms {
			p.ms, p.seen = ms, 0
		}
		p.seen++
	}
	if len(fresh) == 0 && len(page) >= logPage {
		p.ms, p.seen = p.ms+1, 0
	}
	return fresh
}

func (c *Client) logPage(ctx context.Context, id string, q logQuery, ms int64) ([]LogEntry, error) {
	query := url.Values{"limit": {strconv.Itoa(logPage)}, "direction": {"forward"}}
	if ms > 0 {
		query.Set("cursor", strconv.FormatInt(ms, 10))
	}
	if q.kind != "" {
		query.Set("eventType", string(q.kind))
	}
	var answer struct {
		LogEntries []struct {
			Timestamp time.Time         `json:"timestamp"`
			EventType nacre.LogType     `json:"eventType"`
			Message   string            `json:"message"`
			Fields    map[string]string `json:"fields"`
		} `json:"logEntries"`
	}
	if _, err := c.do(ctx, request{method: http.MethodGet, path: sandboxPath(id, "/logs"), query: query, out: &answer}); err != nil {
		return nil, err
	}
	out := make([]LogEntry, len(answer.LogEntries))
	for i, e := range answer.LogEntries {
		out[i] = LogEntry{Time: e.Timestamp, Type: e.EventType, Message: e.Message, Fields: e.Fields}
	}
	return out, nil
}

// ended tells whether the sandbox is over for good.
func (c *Client) ended(ctx context.Context, id string) (bool, error) {
	_, err := c.Info(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return true, nil
	}
	return false, err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return contextError(ctx.Err())
	case <-t.C:
		return nil
	}
}
