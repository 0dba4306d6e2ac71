package miosa

import (
	"context"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

type sample struct {
	Timestamp  string  `json:"timestamp"`
	CPUPercent float64 `json:"cpu_percent"` // 100 = one processor
	MemoryUsed int64   `json:"memory_used_bytes"`
	MemoryAll  int64   `json:"memory_total_bytes"`
	DiskUsed   int64   `json:"disk_used_bytes"`
	DiskAll    int64   `json:"disk_total_bytes"`
}

type metrics struct {
	SandboxID string   `json:"sandbox_id"`
	Window    string   `json:"window"`
	CPUCount  int      `json:"cpu_count"`
	MemoryMB  int      `json:"memory_mb"`
	DiskMB    int      `json:"disk_size_mb"`
	Current   *sample  `json:"current"`
	Series    []sample `json:"series"`
}

var windowForm = regexp.MustCompile(`^([1-9][0-9]{0,5})([smhd])$`)

// metrics answers with the samples of a window that ends now.
func (a *API) metrics(c *api.Call) error {
	window := c.R.URL.Query().Get("window")
	if window == "" {
		window = "1h"
	}
	m := windowForm.FindStringSubmatch(window)
	if m == nil {
		return nacre.Invalidf("window", "window must be a length such as 15m, 1h or 7d")
	}
	n, _ := strconv.Atoi(m[1]) // digits only
	d := time.Duration(n) * map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[m[2]]
	s, err := a.record(c)
	if err != nil {
		return err
	}
	now := a.Clock()
	all, err := a.Service.Metrics(c.R.Context(), c.Team, s.ID, now.Add(-d), time.Time{})
	if err != nil {
		return err
	}
	out := metrics{SandboxID: string(s.ID), Window: window, CPUCount: s.Resources.CPUs, MemoryMB: s.Resources.MemoryMiB,
		DiskMB: s.Resources.DiskMiB, Series: make([]sample, 0, len(all))}
	for _, m := range all {
		out.Series = append(out.Series, sample{*timestamp(m.Time), m.CPUUsedPct, m.MemUsed, m.MemTotal, m.DiskUsed, m.DiskTotal})
	}
	if n := len(out.Series); n > 0 {
		out.Current = &out.Series[n-1]
	}
	return one(c, http.StatusOK, out)
}

// logLine is one line of a sandbox's log.
type logLine struct {
	Type      string `json:"type"`
	Timestamp string `json:"timestamp"`
	Stream    string `json:"stream"`
	Line      string `json:"line"`
	Message   string `json:"message"`
	PID       string `json:"pid,omitempty"`
}

func logLineOf(e nacre.LogEntry) logLine {
	return logLine{"log", *timestamp(e.Time), string(e.Type), e.Message, e.Message, e.Fields["pid"]}
}

// logs answers with the newest lines of a sandbox's log, oldest first.
func (a *API) logs(c *api.Call) error {
	n, err := intParam(c, "lines", 200, 1, 1000)
	if err != nil {
		return err
	}
	s, err := a.record(c)
	if err != nil {
		return err
	}
	entries, err := a.Service.Logs(c.R.Context(), c.Team, s.ID, nacre.LogQuery{Limit: n, Backward: true})
	if err != nil {
		return err
	}
	out := struct {
		SandboxID string    `json:"sandbox_id"`
		Lines     []logLine `json:"lines"`
		Logs      string    `json:"logs"`
	}{string(s.ID), []logLine{}, ""}
	var text strings.Builder
	for i := len(entries) - 1; i >= 0; i-- {
		out.Lines = append(out.Lines, logLineOf(entries[i]))
		text.WriteString(entries[i].Message + "\n")
	}
	out.Logs = text.String()
	return one(c, http.StatusOK, out)
}

const logEvery = 250 * time.Millisecond

// streamLogs sends a sandbox's log from now on, after its newest lines, until the
// sandbox ends.
func (a *API) streamLogs(c *api.Call) error {
	s, err := a.record(c)
	if err != nil {
		return err
	}
	out, err := startSSE(c)
	if err != nil {
		return nil
	}
	produce := func(ctx context.Context, give func(nacre.LogEntry) error) error {
		return a.tailLog(ctx, s, give)
	}
	return quiet(c, follow(c.R.Context(), out, produce, func(e nacre.LogEntry) error {
		return out.send("log", 0, logLineOf(e))
	}))
}

func (a *API) tailLog(ctx context.Context, s nacre.Sandbox, give func(nacre.LogEntry) error) error {
	newest, err := a.Service.Logs(ctx, s.TeamID, s.ID, nacre.LogQuery{Limit: 100, Backward: true})
	if err != nil {
		return err
	}
	after := time.Time{}
	for i := len(newest) - 1; i >= 0; i-- {
		after = newest[i].Time
		if err := give(newest[i]); err != nil {
			return err
		}
	}
	for {
		entries, err := a.Service.Logs(ctx, s.TeamID, s.ID, nacre.LogQuery{Limit: 1000, After: after})
		if err != nil {
			return err
		}
		for _, e := range entries {
			after = e.Time
			if err := give(e); err != nil {
				return err
			}
		}
		if len(entries) > 0 {
			continue
		}
		if !s.Alive() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(logEvery):
		}
		if s, err = a.Service.Get(ctx, s.TeamID, s.ID); err != nil {
			return err
		}
	}
}
