package moru

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

// sandboxQuery is a list's query: what the store filters, and the rest.
type sandboxQuery struct {
	filter       nacre.SandboxFilter
	startedAfter time.Time // inclusive
	template     string    // name or id
}

func parseSandboxQuery(q url.Values, stateParam string, allowed ...string) (sandboxQuery, error) {
	var out sandboxQuery
	var err error
	if out.filter.States, err = parseStates(stateParam, q[stateParam], allowed); err != nil {
		return out, err
	}
	if out.filter.Metadata, err = decodeMetadata(q.Get("metadata")); err != nil {
		return out, err
	}
	if out.filter.Limit, err = intParam(q, "limit", 100, 1, 100); err != nil {
		return out, err
	}
	out.filter.Cursor = q.Get("nextToken")
	out.template = q.Get("template")
	if s := q.Get("startedAfter"); s != "" {
		if out.startedAfter, err = time.Parse(time.RFC3339, s); err != nil {
			return out, nacre.Invalidf("startedAfter", "startedAfter must be a time in RFC 3339 with a zone")
		}
	}
	switch q.Get("order") {
	case "", "desc":
		return out, nil
	case "asc":
		out.filter.OldestFirst = true
		return out, nil
	}
	return out, nacre.Invalidf("order", "order must be \"asc\" or \"desc\"")
}

// narrow drops what the store did not filter. A page may come out shorter than
// the limit; only the token tells whether it was the last.
func (q sandboxQuery) narrow(page nacre.SandboxPage) nacre.SandboxPage {
	out := nacre.SandboxPage{Next: page.Next}
	for _, s := range page.Sandboxes {
		if !q.startedAfter.IsZero() && s.StartedAt.Before(q.startedAfter) {
			if q.filter.OldestFirst {
				continue
			}
			out.Next = "" // all that follow are older still
			break
		}
		if q.template == "" || q.template == s.Template || q.template == string(s.TemplateID) {
			out.Sandboxes = append(out.Sandboxes, s)
		}
	}
	return out
}

// states expands the wire's words.
var states = map[string][]nacre.State{
	"running": {nacre.StateRunning, nacre.StatePausing},
	"paused":  {nacre.StatePaused, nacre.StateResuming},
	"stopped": {nacre.StateStopping, nacre.StateEnded},
}

// parseStates reads a filter that was repeated, separated by commas, or both.
// Absent means all of allowed.
func parseStates(field string, values, allowed []string) ([]nacre.State, error) {
	var words []string
	for _, v := range values {
		for _, w := range strings.Split(v, ",") {
			if w = strings.TrimSpace(w); w != "" {
				words = append(words, w)
			}
		}
	}
	if len(words) == 0 {
		words = allowed
	}
	var out []nacre.State
	for _, w := range words {
		if !slices.Contains(allowed, w) {
			return nil, nacre.Invalidf(field, "%s: %q is none of %s", field, w, strings.Join(allowed, ", "))
		}
		for _, s := range states[w] {
			if !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// decodeMetadata reads the filter's value after the query's own decoding: a query
// string whose keys and values were percent-encoded once more.
func decodeMetadata(s string) (map[string]string, error) {
	if s == "" {
		return nil, nil
	}
	bad := nacre.Invalidf("metadata", "metadata must be a query string with percent-encoded keys and values")
	q, err := url.ParseQuery(s)
	if err != nil {
		return nil, bad
	}
	out := make(map[string]string, len(q))
	for k, values := range q {
		key, err := url.QueryUnescape(k)
		if err != nil {
			return nil, bad
		}
		value, err := url.QueryUnescape(values[len(values)-1])
		if err != nil {
			return nil, bad
		}
		out[key] = value
	}
	return out, nil
}

// intParam reads a whole number within [lo, hi]; absent is def.
func intParam(q url.Values, name string, def, lo, hi int) (int, error) {
	s := q.Get(name)
	if s == "" {
		return def, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < lo || n > hi {
		return 0, nacre.Invalidf(name, "%s must be a whole number from %d to %d", name, lo, hi)
	}
	return n, nil
}

// unixParam reads a moment in seconds, or in milliseconds as Moru's Python client
// sends it: as seconds those lie beyond the year 5138.
func unixParam(q url.Values, name string) (time.Time, error) {
	s := q.Get(name)
	if s == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 1e15 {
		return time.Time{}, nacre.Invalidf(name, "%s must be a Unix time in seconds", name)
	}
	if n > 1e11 {
		return time.UnixMilli(n), nil
	}
	return time.Unix(n, 0), nil
}
