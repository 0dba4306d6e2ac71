package miosa

import (
	"context"
	"math"
	"net/http"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// Usage tells what was used and what that costs; meter.Meter implements it.
type Usage interface {
	// Report sums what the filter selects, grouped by a label, by sandbox for "".
	Report(ctx context.Context, f nacre.UsageFilter, group string) ([]nacre.UsageSum, error)
	// Spans lists runs and pauses, newest first.
	Spans(ctx context.Context, f nacre.UsageFilter, limit int) ([]nacre.UsageSpan, error)
	// Balance is in cents.
	Balance(ctx context.Context, team nacre.TeamID) (given, spent float64, err error)
}

type sandboxUsage struct {
	SandboxID          string            `json:"sandbox_id"`
	State              string            `json:"state"`
	RuntimeSec         int64             `json:"runtime_sec"`
	PausedSec          int64             `json:"paused_sec"`
	VCPUMs             int64             `json:"provisioned_vcpu_ms"`
	MemoryMs           int64             `json:"provisioned_memory_mb_ms"`
	DiskMs             int64             `json:"provisioned_disk_mb_ms"`
	CreationCount      int               `json:"creation_count"`
	ActiveCPUMs        *int64            `json:"active_cpu_ms"`
	NetworkIn          *int64            `json:"network_ingress_bytes"`
	NetworkOut         *int64            `json:"network_egress_bytes"`
	MeasurementStatus  map[string]string `json:"measurement_status"`
	EstimatedCostCents int64             `json:"estimated_cost_cents"`
	TimeoutSec         int               `json:"timeout_sec"`
	TimeoutRemainingMS *int64            `json:"timeout_remaining_ms"`
}

func (a *API) sandboxUsage(c *api.Call) error {
	s, err := a.record(c)
	if err != nil {
		return err
	}
	costs, err := a.Usage.Report(c.R.Context(), nacre.UsageFilter{TeamID: c.Team, Sandbox: s.ID}, "")
	if err != nil {
		return err
	}
	o := a.sandbox(s)
	t := total(costs)
	return one(c, http.StatusOK, sandboxUsage{SandboxID: o.ID, State: o.State, RuntimeSec: wholeSeconds(t.Running), PausedSec: wholeSeconds(t.Paused),
		VCPUMs: t.VCPUMs, MemoryMs: t.MemoryMs, DiskMs: t.DiskMs, CreationCount: 1,
		MeasurementStatus:  map[string]string{"provisioned_resources": "measured", "active_cpu": "unavailable", "network": "unavailable"},
		EstimatedCostCents: int64(math.Round(t.Cents)), TimeoutSec: o.TimeoutSec, TimeoutRemainingMS: o.TimeoutRemainingMS})
}

func wholeSeconds(d time.Duration) int64 { return int64(d / time.Second) }

func total(costs []nacre.UsageSum) (t nacre.UsageSum) {
	for _, c := range costs {
		t.Add(c)
	}
	return t
}

// usageQuery reads a period and filters.
func (a *API) usageQuery(c *api.Call) (q nacre.UsageFilter, err error) {
	q.TeamID = c.Team
	v := c.R.URL.Query()
	now := a.Clock().UTC()
	q.To = now
	q.From = time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	switch p := v.Get("period"); p {
	case "", "month-to-date", "mtd":
	case "24h", "1d":
		q.From = now.AddDate(0, 0, -1)
	case "7d":
		q.From = now.AddDate(0, 0, -7)
	case "30d":
		q.From = now.AddDate(0, 0, -30)
	case "90d":
		q.From = now.AddDate(0, 0, -90)
	default:
		return q, nacre.Invalidf("period", "period must be 24h, 7d, 30d, 90d or month-to-date")
	}
	for _, f := range []struct {
		to    *time.Time
		names []string
	}{{&q.From, []string{"start", "period_start"}}, {&q.To, []string{"end", "period_end"}}} {
		for _, name := range f.names {
			if s := v.Get(name); s != "" {
				if *f.to, err = day(name, s); err != nil {
					return q, err
				}
			}
		}
	}
	if !q.From.Before(q.To) {
		return q, nacre.Invalidf("end", "end must be after start")
	}
	q.Labels = map[string]string{}
	for name, key := range wanted {
		if s := v.Get(name); s != "" && name != "slug" && name != "size" {
			q.Labels[key] = s
		}
	}
	return q, nil
}

// day reads a time or a date.
func day(field, s string) (time.Time, error) {
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return t, nil
	}
	return moment(field, &s)
}

// groups are what usage can be grouped by.
var groups = map[string]string{
	"external_user_id": nacre.LabelExternalUser, "external_project_id": nacre.LabelExternalProject,
	"external_workspace_id": nacre.LabelExternalSpace, "workspace_id": nacre.LabelWorkspace, "project_id": nacre.LabelProject,
	"sandbox_id": "",
}

// usageRollup has no "data": clients would take that for the whole.
func (a *API) usageRollup(c *api.Call) error {
	q, err := a.usageQuery(c)
	if err != nil {
		return err
	}
	name := c.R.URL.Query().Get("group_by")
	if name == "" {
		name = "external_user_id"
	}
	group, ok := groups[name]
	if !ok {
		return nacre.Invalidf("group_by", "group_by must be external_user_id, external_project_id, external_workspace_id, workspace_id, project_id or sandbox_id")
	}
	costs, err := a.Usage.Report(c.R.Context(), q, group)
	if err != nil {
		return err
	}
	results := []map[string]any{}
	for _, u := range costs {
		r := amounts(u)
		r[name] = filled(u.Group)
		results = append(results, r)
	}
	return c.JSON(http.StatusOK, map[string]any{"period_start": timestamp(q.From), "period_end": timestamp(q.To), "group_by": name, "results": results})
}

func amounts(u nacre.UsageSum) map[string]any {
	const perGiBHour = 1024 * 3600 * 1000
	return map[string]any{
		"sandbox_seconds": wholeSeconds(u.Running), "paused_seconds": wholeSeconds(u.Paused), "computer_seconds": 0,
		"vcpu_seconds": float64(u.VCPUMs) / 1000, "memory_gb_hours": float64(u.MemoryMs) / perGiBHour,
		"storage_gb_hours": float64(u.DiskMs) / perGiBHour, "sandbox_count": u.Sandboxes, "sessions": u.Runs,
		"credit_cents": int64(math.Round(u.Cents)), "cost_cents": u.Cents,
	}
}

func (a *API) usageSummary(c *api.Call) error {
	q, err := a.usageQuery(c)
	if err != nil {
		return err
	}
	costs, err := a.Usage.Report(c.R.Context(), q, "")
	if err != nil {
		return err
	}
	out := amounts(total(costs))
	out["period_start"], out["period_end"], out["tenant_id"] = timestamp(q.From), timestamp(q.To), c.Team
	return one(c, http.StatusOK, out)
}

func (a *API) usageSessions(c *api.Call) error {
	q, err := a.usageQuery(c)
	if err != nil {
		return err
	}
	limit, err := intParam(c, "limit", 100, 1, 1000)
	if err != nil {
		return err
	}
	q.Sandbox = nacre.SandboxID(c.R.URL.Query().Get("sandbox_id"))
	spans, err := a.Usage.Spans(c.R.Context(), q, limit)
	if err != nil {
		return err
	}
	type session struct {
		SandboxID string  `json:"sandbox_id"`
		Kind      string  `json:"kind"` // running, paused
		StartedAt string  `json:"started_at"`
		EndedAt   *string `json:"ended_at"`
		CPUCount  int     `json:"cpu_count"`
		MemoryMB  int     `json:"memory_mb"`
		DiskMB    int     `json:"disk_size_mb"`
	}
	out := []session{}
	for _, s := range spans {
		out = append(out, session{string(s.Sandbox), string(s.Kind), *timestamp(s.Start), timestamp(s.End), s.Resources.CPUs, s.Resources.MemoryMiB, s.Resources.DiskMiB})
	}
	return c.JSON(http.StatusOK, map[string]any{"data": out, "meta": map[string]any{"period_start": timestamp(q.From), "period_end": timestamp(q.To)}})
}

// creditBalance has no envelope. A cent is a credit.
func (a *API) creditBalance(c *api.Call) error {
	given, spent, err := a.Usage.Balance(c.R.Context(), c.Team)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"tenant_id": c.Team, "balance_credits": given - spent, "lifetime_earned": given, "lifetime_spent": spent,
		"credit_expiry_at": nil, "updated_at": timestamp(a.Clock())})
}

func (a *API) creditTransactions(c *api.Call) error { return list(c, []struct{}{}) }
