package moru

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// latestWithin is how old the newest sample may be to count as current, and
// maxMetricIDs how many sandboxes one call may ask of.
const (
	latestWithin = time.Minute
	maxMetricIDs = 100
)

func (d *dialect) sandboxMetrics(c *api.Call) error {
	id, err := sandboxID(c)
	if err != nil {
		return err
	}
	q := c.R.URL.Query()
	from, err := unixParam(q, "start")
	if err != nil {
		return err
	}
	to, err := unixParam(q, "end")
	if err != nil {
		return err
	}
	samples, err := d.Service.Metrics(c.R.Context(), c.Team, id, from, to)
	if err != nil {
		return err
	}
	out := make([]metric, 0, len(samples))
	for _, m := range samples {
		out = append(out, metricOf(m))
	}
	return c.JSON(http.StatusOK, out)
}

// latestMetrics answers the newest sample of each sandbox asked for. Ids that
// are unknown, or another team's, are left out.
func (d *dialect) latestMetrics(c *api.Call) error {
	ids, err := metricIDs(c.R.URL.Query()["sandbox_ids"])
	if err != nil {
		return err
	}
	out := sandboxesMetrics{Sandboxes: map[string]metric{}}
	for _, id := range ids {
		samples, err := d.Service.Metrics(c.R.Context(), c.Team, id, d.Clock().Add(-latestWithin), time.Time{})
		if nacre.IsCode(err, nacre.CodeNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if len(samples) > 0 {
			out.Sandboxes[string(id)] = metricOf(samples[len(samples)-1])
		}
	}
	return c.JSON(http.StatusOK, out)
}

func metricIDs(values []string) ([]nacre.SandboxID, error) {
	var out []nacre.SandboxID
	for _, v := range values {
		for _, s := range strings.Split(v, ",") {
			if id := nacre.SandboxID(s); id.Valid() && !slices.Contains(out, id) {
				out = append(out, id)
			}
			if len(out) > maxMetricIDs {
				return nil, nacre.Invalidf("sandbox_ids", "sandbox_ids may name %d sandboxes at most", maxMetricIDs)
			}
		}
	}
	return out, nil
}
