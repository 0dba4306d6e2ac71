package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/nacrehq/nacre"
)

// Sandbox is a handle on one sandbox; it may be used by many goroutines, and
// any number of handles may be used on one sandbox. It needs no closing.
type Sandbox struct {
	// ID names the sandbox; Client.Connect finds it again by it.
	ID string
	// TemplateID names what it was made from.
	TemplateID string
	// TrafficToken opens the ports of a sandbox made with PrivateTraffic, in the
	// header "e2b-traffic-access-token". It comes with Create and Connect.
	TrafficToken string
	// Files are the guest's files, seen by its default user.
	Files *Files

	client *Client
	domain string
	token  string
	guest  *guest
}

// sandboxAnswer is what a create, a connect and a get have in common.
type sandboxAnswer struct {
	SandboxID          string  `json:"sandboxID"`
	TemplateID         string  `json:"templateID"`
	EnvdAccessToken    *string `json:"envdAccessToken"`
	TrafficAccessToken *string `json:"trafficAccessToken"`
	Domain             *string `json:"domain"`
}

func (c *Client) handle(a sandboxAnswer) (*Sandbox, error) {
	if a.SandboxID == "" {
		return nil, &Error{Code: nacre.CodeUnavailable, Message: "the server's answer names no sandbox: is " + c.cfg.apiURL + " a Nacre API?"}
	}
	sb := &Sandbox{ID: a.SandboxID, TemplateID: a.TemplateID, TrafficToken: value(a.TrafficAccessToken),
		client: c, domain: value(a.Domain), token: value(a.EnvdAccessToken)}
	if sb.domain == "" {
		sb.domain = c.cfg.domain
	}
	base := c.cfg.sandboxURL
	switch {
	case base != "":
	case c.cfg.domain != "" || c.cfg.apiURL == "https://api."+sb.domain:
		base = "https://" + sb.Host(nacre.AgentPort)
	default:
		base = c.cfg.apiURL
	}
	sb.guest = newGuest(c.cfg, base, sb.ID, sb.token)
	sb.Files = &Files{sb: sb}
	return sb, nil
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// Host returns the host name, with the port where it is not 443, at which a port
// of the sandbox is reached over HTTPS: "8080-<id>.<domain>". It is "" when
// neither the server nor the client was told a domain.
func (s *Sandbox) Host(port int) string {
	if s.domain == "" {
		return ""
	}
	return strconv.Itoa(port) + "-" + s.ID + "." + s.domain
}

// Info reads the sandbox's record.
func (s *Sandbox) Info(ctx context.Context) (Info, error) { return s.client.Info(ctx, s.ID) }

// SetTimeout moves the deadline to d from now, earlier or later.
func (s *Sandbox) SetTimeout(ctx context.Context, d time.Duration) error {
	return s.client.SetTimeout(ctx, s.ID, d)
}

// Kill ends the sandbox; all that is in it is lost. One that has ended already
// is ErrNotFound.
func (s *Sandbox) Kill(ctx context.Context) error { return s.client.Kill(ctx, s.ID) }

// IsRunning asks the guest, not the control plane. False means ended or paused.
func (s *Sandbox) IsRunning(ctx context.Context) (bool, error) {
	err := s.guest.health(ctx)
	if errors.Is(err, ErrNotRunning) {
		return false, nil
	}
	return err == nil, err
}

// SetNetwork replaces what the sandbox may reach: what the options leave out is
// open again. Connections that are now forbidden are cut.
func (s *Sandbox) SetNetwork(ctx context.Context, opts ...NetworkOption) error {
	var e egress
	for _, o := range opts {
		o(&e)
	}
	if e.internet != nil && !*e.internet {
		e.deny = append(e.deny, "0.0.0.0/0")
	}
	body := network{AllowOut: e.allow, DenyOut: e.deny}
	_, err := s.client.do(ctx, request{method: http.MethodPut, path: sandboxPath(s.ID, "/network"), in: body})
	return err
}

// Metric is one sample of a sandbox's use. Sizes are bytes; 100 % is one processor.
type Metric = nacre.Metric

// Metrics returns the samples between two moments, oldest first; a zero time
// leaves that side open. Moments count in whole seconds.
func (s *Sandbox) Metrics(ctx context.Context, from, to time.Time) ([]Metric, error) {
	query := url.Values{}
	if !from.IsZero() {
		query.Set("start", strconv.FormatInt(from.Unix(), 10))
	}
	if !to.IsZero() {
		query.Set("end", strconv.FormatInt(to.Unix(), 10))
	}
	var answer []struct {
		Timestamp  time.Time `json:"timestamp"`
		CPUCount   int       `json:"cpuCount"`
		CPUUsedPct float64   `json:"cpuUsedPct"`
		MemUsed    int64     `json:"memUsed"`
		MemTotal   int64     `json:"memTotal"`
		MemCache   int64     `json:"memCache"`
		DiskUsed   int64     `json:"diskUsed"`
		DiskTotal  int64     `json:"diskTotal"`
	}
	if _, err := s.client.do(ctx, request{method: http.MethodGet, path: sandboxPath(s.ID, "/metrics"), query: query, out: &answer}); err != nil {
		return nil, err
	}
	out := make([]Metric, len(answer))
	for i, a := range answer {
		out[i] = Metric{Time: a.Timestamp, CPUCount: a.CPUCount, CPUUsedPct: a.CPUUsedPct,
			MemUsed: a.MemUsed, MemTotal: a.MemTotal, MemCache: a.MemCache, DiskUsed: a.DiskUsed, DiskTotal: a.DiskTotal}
	}
	return out, nil
}

// Info reads a sandbox's record; one that has ended is ErrNotFound.
func (c *Client) Info(ctx context.Context, id string) (Info, error) {
	var out infoAnswer
	_, err := c.do(ctx, request{method: http.MethodGet, path: sandboxPath(id, ""), out: &out})
	return out.info(), err
}

// SetTimeout is Sandbox.SetTimeout by id.
func (c *Client) SetTimeout(ctx context.Context, id string, d time.Duration) error {
	if d <= 0 {
		return &Error{Code: nacre.CodeInvalid, Message: fmt.Sprintf("a time-out must be longer than 0, not %s; Kill ends a sandbox now", d)}
	}
	_, err := c.do(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/timeout"), in: connectRequest{Timeout: seconds(d)}})
	return err
}

// Kill is Sandbox.Kill by id.
func (c *Client) Kill(ctx context.Context, id string) error {
	_, err := c.do(ctx, request{method: http.MethodDelete, path: sandboxPath(id, "")})
	return err
}
