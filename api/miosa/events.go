package miosa

import (
	"context"
	"errors"
	"maps"
	"path"
	"strconv"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// Streams gives events to readers who stay.
type Streams interface {
	// Stream gives a team's events behind after, of one sandbox if it is given, until
	// ctx ends or give fails, whose error it returns.
	Stream(ctx context.Context, team nacre.TeamID, id nacre.SandboxID, after int64, give func(nacre.Event) error) error
	// Last is the position behind all events.
	Last(ctx context.Context) (int64, error)
}

// kinds are the wire's words for events.
var kinds = map[nacre.EventKind]string{
	nacre.EventCreated: "sandbox.created", nacre.EventRunning: "sandbox.running", nacre.EventPaused: "sandbox.paused",
	nacre.EventResumed: "sandbox.resumed", nacre.EventRestored: "sandbox.restored", nacre.EventEnded: "sandbox.destroyed",
	nacre.EventDeadline: "sandbox.extended", nacre.EventNetwork: "sandbox.network.changed",
	nacre.EventSnapshotCreated: "sandbox.snapshot.ready", nacre.EventSnapshotDeleted: "sandbox.snapshot.deleted",
	nacre.EventExecStarted: "sandbox.exec.started", nacre.EventExecCompleted: "sandbox.exec.completed",
	nacre.EventFileChanged: "sandbox.file.changed", nacre.EventPreviewReady: "sandbox.preview.ready",
}

// eventOf is the body of an event; last tells that nothing of its sandbox follows.
func eventOf(e nacre.Event) (out map[string]any, last bool) {
	word := kinds[e.Kind]
	if word == "" {
		word = string(e.Kind)
	}
	data := maps.Clone(e.Data)
	if data == nil {
		data = map[string]string{}
	}
	if e.Kind == nacre.EventEnded {
		last = true
		reason := nacre.EndReason(e.Data["reason"])
		if w := reasons[reason]; w != "" {
			data["reason"] = w
		}
		if failed(reason) {
			word = "sandbox.error"
			data["last_error"] = lastError(nacre.Sandbox{EndReason: reason, Detail: e.Data["detail"]})
		}
	}
	out = map[string]any{"type": word, "event": word, "id": strconv.FormatInt(e.Seq, 10), "sandbox_id": e.SandboxID,
		"timestamp": timestamp(e.Time), "created_at": timestamp(e.Time), "data": data}
	for k, v := range data {
		if _, taken := out[k]; !taken {
			out[k] = v
		}
	}
	return out, last
}

// sandboxEvents streams what became of a sandbox and what is done in it, from its
// beginning or from behind Last-Event-ID, until it has ended.
func (a *API) sandboxEvents(c *api.Call) error {
	s, err := a.record(c)
	if err != nil {
		return err
	}
	after, err := lastEvent(c)
	if err != nil {
		return err
	}
	f := nacre.EventFilter{TeamID: c.Team, SandboxID: s.ID, After: after}
	if s.State == nacre.StateEnded {
		if left, err := a.Events.Events(c.R.Context(), f); err != nil || len(left) == 0 {
			if err == nil {
				_, err = startSSE(c) // and its end: nothing follows
			}
			return err
		}
	}
	return a.streamEvents(c, f, true)
}

// tenantEvents streams the events of all the team's sandboxes, from now on or from
// behind Last-Event-ID.
func (a *API) tenantEvents(c *api.Call) error {
	after, err := lastEvent(c)
	if err != nil {
		return err
	}
	if after == 0 {
		if after, err = a.Streams.Last(c.R.Context()); err != nil {
			return err
		}
	}
	return a.streamEvents(c, nacre.EventFilter{TeamID: c.Team, After: after}, false)
}

func lastEvent(c *api.Call) (int64, error) {
	s := c.R.Header.Get("Last-Event-Id")
	if s == "" {
		s = c.R.URL.Query().Get("last_event_id")
	}
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, nacre.Invalidf("Last-Event-ID", "Last-Event-ID must be the id of an event")
	}
	return n, nil
}

// errEnd ends the stream of a sandbox that has ended.
var errEnd = errors.New("the sandbox has ended")

// streamEvents sends events as they are written. With end it ends with the sandbox.
func (a *API) streamEvents(c *api.Call, f nacre.EventFilter, end bool) error {
	types := split(c.R.URL.Query()["types"])
	s, err := startSSE(c)
	if err != nil {
		return nil
	}
	produce := func(ctx context.Context, give func(nacre.Event) error) error {
		err := a.Streams.Stream(ctx, f.TeamID, f.SandboxID, f.After, func(e nacre.Event) error {
			if err := give(e); err != nil || !end || e.Kind != nacre.EventEnded {
				return err
			}
			return errEnd
		})
		if errors.Is(err, errEnd) {
			return nil
		}
		return err
	}
	return quiet(c, follow(c.R.Context(), s, produce, func(e nacre.Event) error {
		if kind := e.Data["kind"]; kind != "" && kind != string(nacre.SnapshotUser) {
			return nil // of a snapshot that nobody asked for
		}
		body, last := eventOf(e)
		word, _ := body["type"].(string)
		if last && e.Data["reason"] == string(nacre.EndIdle) && selected(types, "sandbox.idle") {
			if err := s.send("sandbox.idle", 0, map[string]any{"type": "sandbox.idle", "event": "sandbox.idle", "sandbox_id": e.SandboxID, "timestamp": timestamp(e.Time)}); err != nil {
				return err
			}
		}
		if !selected(types, word) {
			return nil
		}
		return s.send(word, e.Seq, body)
	}))
}

// selected tells whether a word is one of the patterns, of which '*' stands for
// anything; none means all.
func selected(patterns []string, word string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, word); ok && err == nil {
			return true
		}
	}
	return len(patterns) == 0
}
