package client_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/client"
)

func conformLogs(t *testing.T, c *client.Client) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sb := sandbox(t, c)
	if _, err := sb.Run(ctx, "for i in 1 2 3; do echo line $i; done; echo oops >&2"); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for e, err := range c.Logs(ctx, sb.ID, client.Follow(), client.LogsOf(nacre.LogStdout)) {
		if err != nil {
			t.Fatal(err)
		}
		if lines = append(lines, e.Message); len(lines) == 3 {
			go sb.Kill(ctx) // the end of the sandbox ends the loop
		}
	}
	if fmt.Sprint(lines) != "[line 1 line 2 line 3]" {
		t.Errorf("%q", lines)
	}
	kinds := map[nacre.LogType]int{}
	for e, err := range c.Logs(ctx, sb.ID) {
		if err != nil {
			t.Fatal(err)
		}
		kinds[e.Type]++
	}
	if kinds[nacre.LogStdout] != 3 || kinds[nacre.LogStderr] != 1 || kinds[nacre.LogProcessStart] != 1 || kinds[nacre.LogProcessEnd] != 1 {
		t.Errorf("%v after the end", kinds)
	}
}

func conformMetrics(t *testing.T, c *client.Client) {
	sb := sandbox(t, c)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-tick.C {
		metrics, err := sb.Metrics(t.Context(), time.Time{}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		if len(metrics) > 0 {
			m := metrics[0]
			if m.CPUCount < 1 || m.MemTotal < 1<<20 || m.MemUsed <= 0 || m.DiskTotal <= 0 || time.Since(m.Time) > time.Minute {
				t.Errorf("%+v", m)
			}
			return
		}
	}
	t.Error("no metric within 20 seconds")
}

// conformNetwork looks at routes only: the tests dial nothing outside.
func conformNetwork(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c, client.Internet(false), client.AllowOut("192.0.2.1"), client.PrivateTraffic(), client.MaskRequestHost("x.test:${PORT}"))
	if sb.TrafficToken == "" {
		t.Error("PrivateTraffic gave no token")
	}
	if err := sb.SetNetwork(ctx, client.DenyOut("198.51.100.0/24")); err != nil {
		t.Error(err)
	}
	if err := sb.SetNetwork(ctx, client.DenyOut("not an address")); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if host := sb.Host(8080); host != "" && !strings.HasPrefix(host, "8080-"+sb.ID+".") {
		t.Error(host)
	}
}

func conformTimeout(t *testing.T, c *client.Client) {
	ctx := t.Context()
	sb := sandbox(t, c, client.Timeout(time.Minute))
	p, err := sb.Start(ctx, "exec sleep "+strconv.Itoa(4716))
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.SetTimeout(ctx, time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("a command that its sandbox's time-out ended: %v", err)
	}
	if err := sb.SetTimeout(ctx, 0); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("%v", err)
	}
}
