package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

// Info is a sandbox's record.
type Info struct {
	ID         string            `json:"id"`
	TemplateID string            `json:"template_id"`
	Template   string            `json:"template,omitempty"` // the name that it was made by
	State      nacre.State       `json:"state"`              // nacre.StateRunning or nacre.StatePaused
	Metadata   map[string]string `json:"metadata,omitempty"`
	StartedAt  time.Time         `json:"started_at"`
	EndAt      time.Time         `json:"end_at"` // its deadline
	CPUCount   int               `json:"cpu_count"`
	MemoryMB   int               `json:"memory_mb"`
	DiskMB     int               `json:"disk_mb"`

	// Runtime is what it runs on, "" from servers other than Nacre.
	Runtime nacre.RuntimeName `json:"runtime,omitempty"`

	// Keeping is how far the snapshot is that is being taken of it, for a pause, a fork
	// or its own sake; nil while there is none, and in lists.
	Keeping *Keeping `json:"keeping,omitempty"`
}

// Keeping is a snapshot being taken: Bytes are written of the OfBytes that it may come
// to be.
type Keeping struct {
	Bytes   int64 `json:"bytes"`
	OfBytes int64 `json:"ofBytes"`
}

type infoAnswer struct {
	SandboxID  string            `json:"sandboxID"`
	TemplateID string            `json:"templateID"`
	Alias      string            `json:"alias"`
	State      nacre.State       `json:"state"`
	Metadata   map[string]string `json:"metadata"`
	StartedAt  time.Time         `json:"startedAt"`
	EndAt      time.Time         `json:"endAt"`
	CPUCount   int               `json:"cpuCount"`
	MemoryMB   int               `json:"memoryMB"`
	DiskSizeMB int               `json:"diskSizeMB"`
	Runtime    nacre.RuntimeName `json:"runtime"`
	Keeping    *Keeping          `json:"keeping"`
}

func (a infoAnswer) info() Info {
	return Info{ID: a.SandboxID, TemplateID: a.TemplateID, Template: a.Alias, State: a.State, Metadata: a.Metadata,
		StartedAt: a.StartedAt, EndAt: a.EndAt, CPUCount: a.CPUCount, MemoryMB: a.MemoryMB, DiskMB: a.DiskSizeMB, Runtime: a.Runtime, Keeping: a.Keeping}
}

// A ListOption narrows a List.
type ListOption interface{ list(*listQuery) }

type listQuery struct {
	metadata map[string]string
	states   []nacre.State
	page     int
}

type listOption func(*listQuery)

func (f listOption) list(q *listQuery) { f(q) }

// States selects nacre.StateRunning, nacre.StatePaused or, as without it, both.
func States(states ...nacre.State) ListOption {
	return listOption(func(q *listQuery) { q.states = append(q.states, states...) })
}

func (q listQuery) values() url.Values {
	v := url.Values{"limit": {strconv.Itoa(q.page)}}
	if len(q.states) > 0 {
		names := make([]string, len(q.states))
		for i, s := range q.states {
			names[i] = string(s)
		}
		v.Set("state", strings.Join(names, ","))
	}
	if len(q.metadata) > 0 {
		// Keys and values are escaped once by themselves and once as a query
		// before the whole becomes a value of a query: what every SDK does.
		inner := url.Values{}
		for k, val := range q.metadata {
			inner.Set(escape(k), escape(val))
		}
		v.Set("metadata", inner.Encode())
	}
	return v
}

func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// List goes through the sandboxes that have not ended, newest first, reading
// pages as they are needed. An error ends it.
//
//	for info, err := range c.List(ctx, client.Metadata(map[string]string{"user": "7"})) {
func (c *Client) List(ctx context.Context, opts ...ListOption) iter.Seq2[Info, error] {
	q := listQuery{page: 100}
	for _, o := range opts {
		o.list(&q)
	}
	return pages(ctx, c, "/v2/sandboxes", q.values(), infoAnswer.info)
}

// Run of a sandbox, ended ones too.
type Run struct {
	ID         string    `json:"id"`
	TemplateID string    `json:"template_id"`
	Template   string    `json:"template,omitempty"`
	Status     string    `json:"status"`               // "running", "paused" or "stopped"
	EndReason  string    `json:"end_reason,omitempty"` // "killed", "timeout", "error" or "shutdown"
	CreatedAt  time.Time `json:"created_at"`
	EndedAt    time.Time `json:"ended_at,omitzero"`

	// Reason says more precisely why it ended, and Detail in a sentence; Runtime is
	// what it runs on. They are "" from servers other than Nacre.
	Reason  nacre.EndReason   `json:"reason,omitempty"`
	Detail  string            `json:"detail,omitempty"`
	Runtime nacre.RuntimeName `json:"runtime,omitempty"`
}

type runAnswer struct {
	SandboxID  string    `json:"sandboxID"`
	TemplateID string    `json:"templateID"`
	Alias      string    `json:"alias"`
	Status     string    `json:"status"`
	EndReason  string    `json:"endReason"`
	CreatedAt  time.Time `json:"createdAt"`
	EndedAt    time.Time `json:"endedAt"`

	Reason  nacre.EndReason   `json:"reason"`
	Detail  string            `json:"detail"`
	Runtime nacre.RuntimeName `json:"runtime"`
}

func (a runAnswer) run() Run {
	return Run{ID: a.SandboxID, TemplateID: a.TemplateID, Template: a.Alias, Status: a.Status,
		EndReason: a.EndReason, CreatedAt: a.CreatedAt, EndedAt: a.EndedAt, Reason: a.Reason, Detail: a.Detail, Runtime: a.Runtime}
}

// Runs goes through sandboxes, newest first, with the ended ones for as long as
// the server keeps their records. With statuses it selects those of "running",
// "paused" and "stopped".
func (c *Client) Runs(ctx context.Context, statuses ...string) iter.Seq2[Run, error] {
	query := url.Values{"limit": {"100"}}
	if len(statuses) > 0 {
		query.Set("status", strings.Join(statuses, ","))
	}
	return pages(ctx, c, "/v2/sandbox-runs", query, runAnswer.run)
}

// TemplateInfo describes what sandboxes can be made from.
type TemplateInfo struct {
	ID        string    `json:"id"`
	Names     []string  `json:"names"`
	BuildID   string    `json:"build_id"`
	Public    bool      `json:"public"`
	CPUCount  int       `json:"cpu_count"`
	MemoryMB  int       `json:"memory_mb"`
	DiskMB    int       `json:"disk_mb"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// Templates lists one's own templates and those that everybody may use.
func (c *Client) Templates(ctx context.Context) ([]TemplateInfo, error) {
	var answer []struct {
		TemplateID string    `json:"templateID"`
		BuildID    string    `json:"buildID"`
		Aliases    []string  `json:"aliases"`
		Public     bool      `json:"public"`
		CPUCount   int       `json:"cpuCount"`
		MemoryMB   int       `json:"memoryMB"`
		DiskSizeMB int       `json:"diskSizeMB"`
		CreatedAt  time.Time `json:"createdAt"`
		UpdatedAt  time.Time `json:"updatedAt"`
	}
	if _, err := c.do(ctx, request{method: http.MethodGet, path: "/templates", out: &answer}); err != nil {
		return nil, err
	}
	out := make([]TemplateInfo, len(answer))
	for i, a := range answer {
		out[i] = TemplateInfo{ID: a.TemplateID, Names: a.Aliases, BuildID: a.BuildID, Public: a.Public, CPUCount: a.CPUCount,
			MemoryMB: a.MemoryMB, DiskMB: a.DiskSizeMB, CreatedAt: a.CreatedAt, UpdatedAt: a.UpdatedAt}
	}
	return out, nil
}

// pages reads a list page by page and yields each element as convert makes it.
func pages[A, T any](ctx context.Context, c *Client, path string, query url.Values, convert func(A) T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		query := clone(query) // the sequence may be gone through again
		for {
			var answer []A
			header, err := c.do(ctx, request{method: http.MethodGet, path: path, query: query, out: &answer})
			if err != nil {
				yield(zero, err)
				return
			}
			for _, a := range answer {
				if !yield(convert(a), nil) {
					return
				}
			}
			next := header.Get("X-Next-Token")
			if next == "" || next == query.Get("nextToken") {
				return
			}
			query.Set("nextToken", next)
		}
	}
}

func clone(v url.Values) url.Values {
	out := make(url.Values, len(v)+1)
	for k, vals := range v {
		out[k] = append([]string(nil), vals...)
	}
	return out
}
