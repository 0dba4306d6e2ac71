package moru

import (
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// maxLogs is E2B's page; Moru's is 100.
const maxLogs = 1000

// logsV1 serves Moru's query (cursor, direction, eventType) and E2B's first
// (start) with an answer that has both clients' parts.
func (d *dialect) logsV1(c *api.Call) error {
	entries, err := d.readLogs(c, 100)
	if err != nil {
		return err
	}
	out := logsV1{Logs: make([]logLine, 0, len(entries)), LogEntries: logEntries(entries)}
	for _, e := range entries {
		out.Logs = append(out.Logs, logLine{Timestamp: timestamp(e.Time), Line: e.Message})
	}
	return c.JSON(http.StatusOK, out)
}

// logsV2 is E2B's second.
func (d *dialect) logsV2(c *api.Call) error {
	entries, err := d.readLogs(c, maxLogs)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, logsV2{Logs: logEntries(entries)})
}

func (d *dialect) readLogs(c *api.Call, limit int) ([]nacre.LogEntry, error) {
	id, err := sandboxID(c)
	if err != nil {
		return nil, err
	}
	q, err := logQuery(c.R.URL.Query(), limit)
	if err != nil {
		return nil, err
	}
	if q.Limit == 0 { // legal on the wire; the sandbox must still be the team's
		_, err := d.Service.Get(c.R.Context(), c.Team, id)
		return nil, err
	}
	return d.Service.Logs(c.R.Context(), c.Team, id, q)
}

// logQuery translates. The wire's cursor is inclusive and in milliseconds, the
// domain's exclusive and exact.
func logQuery(v url.Values, defaultLimit int) (nacre.LogQuery, error) {
	var q nacre.LogQuery
	var err error
	if q.Limit, err = intParam(v, "limit", defaultLimit, 0, maxLogs); err != nil {
		return q, err
	}
	switch v.Get("direction") {
	case "", "forward":
	case "backward":
		q.Backward = true
	default:
		return q, nacre.Invalidf("direction", "direction must be \"forward\" or \"backward\"")
	}
	name := "cursor"
	if v.Get("start") != "" {
		name = "start"
	}
	ms, err := intParam(v, name, 0, 0, 1e15)
	if err != nil {
		return q, err
	}
	if v.Get(name) != "" {
		q.After = time.UnixMilli(int64(ms)).Add(-time.Nanosecond)
		if q.Backward {
			q.After = time.UnixMilli(int64(ms) + 1)
		}
	}
	if q.Type, err = logType(v.Get("eventType"), v.Get("level")); err != nil {
		return q, err
	}
	return q, refuse(refusal{"search", v.Get("search") != "", "searching in logs"})
}

// logType turns Moru's eventType or E2B's lowest level into a type. The only
// entries above "info" are those on standard error.
func logType(eventType, level string) (nacre.LogType, error) {
	types := []nacre.LogType{"", nacre.LogStdout, nacre.LogStderr, nacre.LogProcessStart, nacre.LogProcessEnd}
	if !slices.Contains(types, nacre.LogType(eventType)) {
		return "", nacre.Invalidf("eventType", "eventType must be stdout, stderr, process_start or process_end")
	}
	switch level {
	case "", "debug", "info":
		return nacre.LogType(eventType), nil
	case "warn", "error":
		return nacre.LogStderr, nil
	}
	return "", nacre.Invalidf("level", "level must be debug, info, warn or error")
}

func logEntries(in []nacre.LogEntry) []logEntry {
	out := make([]logEntry, 0, len(in))
	for _, e := range in {
		w := logEntry{
			Timestamp: timestamp(e.Time), EventType: string(e.Type), Level: "info",
			Message: e.Message, Fields: e.Fields,
		}
		if e.Type == nacre.LogStderr {
			w.Level = "error"
		}
		if w.Fields == nil {
			w.Fields = map[string]string{}
		}
		out = append(out, w)
	}
	return out
}
