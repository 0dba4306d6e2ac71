package client

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"time"

	"github.com/nacrehq/nacre"
)

// DefaultTimeout is the life of a sandbox that Create or Connect was given no
// Timeout for.
const DefaultTimeout = 5 * time.Minute

// A CreateOption shapes a sandbox.
type CreateOption interface{ create(*newSandbox) }

// A ConnectOption shapes a Connect.
type ConnectOption interface{ connect(*connectRequest) }

// newSandbox is the body of a create. Field names are the wire's.
type newSandbox struct {
	TemplateID          string            `json:"templateID"`
	Timeout             int               `json:"timeout"`
	AutoPause           bool              `json:"autoPause,omitempty"`
	AutoPauseMemory     *bool             `json:"autoPauseMemory,omitempty"`
	AutoResume          *autoResume       `json:"autoResume,omitempty"`
	Secure              bool              `json:"secure"`
	AllowInternetAccess *bool             `json:"allow_internet_access,omitempty"`
	Network             *network          `json:"network,omitempty"`
	Metadata            map[string]string `json:"metadata,omitempty"`
	EnvVars             map[string]string `json:"envVars,omitempty"`
	VolumeID            string            `json:"volumeId,omitempty"`
	VolumeMountPath     string            `json:"volumeMountPath,omitempty"`
}

type autoResume struct {
	Enabled bool `json:"enabled"`
}

type network struct {
	AllowOut           []string `json:"allowOut,omitempty"`
	DenyOut            []string `json:"denyOut,omitempty"`
	AllowPublicTraffic *bool    `json:"allowPublicTraffic,omitempty"`
	MaskRequestHost    string   `json:"maskRequestHost,omitempty"`
}

type connectRequest struct {
	Timeout int   `json:"timeout"`
	Memory  *bool `json:"memory,omitempty"`
}

type createOption func(*newSandbox)

func (f createOption) create(s *newSandbox) { f(s) }

// Template names what the sandbox is made from: a name or an id. Default "base".
func Template(nameOrID string) CreateOption {
	return createOption(func(s *newSandbox) { s.TemplateID = nameOrID })
}

// Runtime asks for what the sandbox is made of, such as nacre.RuntimeFirecracker. A
// server that does not offer it refuses the Create. Default: the template's or the
// server's.
func Runtime(name nacre.RuntimeName) CreateOption {
	return createOption(func(s *newSandbox) {
		s.Metadata = merged(s.Metadata, map[string]string{nacre.LabelRuntime: string(name)})
	})
}

// Insecure lets whoever knows the sandbox's id call its guest without a token.
func Insecure() CreateOption { return createOption(func(s *newSandbox) { s.Secure = false }) }

// AutoPauseOption is what AutoPause returns.
type AutoPauseOption struct{}

// AutoPause pauses a sandbox at its deadline instead of ending it, for Create and
// Fork.
func AutoPause() AutoPauseOption { return AutoPauseOption{} }

func (AutoPauseOption) create(s *newSandbox) { s.AutoPause = true }
func (AutoPauseOption) fork(f *forkRequest)  { yes := true; f.AutoPause = &yes }

// AutoResume lets requests wake the sandbox when it is paused: those for its
// ports, and calls of its guest. It excludes FilesOnly.
func AutoResume() CreateOption {
	return createOption(func(s *newSandbox) { s.AutoResume = &autoResume{Enabled: true} })
}

// Volume mounts a persistent volume.
func Volume(id, mountPath string) CreateOption {
	return createOption(func(s *newSandbox) { s.VolumeID, s.VolumeMountPath = id, mountPath })
}

// PrivateTraffic makes the sandbox's ports answer only requests that carry its
// TrafficToken.
func PrivateTraffic() CreateOption {
	return createOption(func(s *newSandbox) { no := false; s.net().AllowPublicTraffic = &no })
}

// MaskRequestHost replaces the Host header of requests to the sandbox's ports;
// "${PORT}" in it stands for the port.
func MaskRequestHost(host string) CreateOption {
	return createOption(func(s *newSandbox) { s.net().MaskRequestHost = host })
}

func (s *newSandbox) net() *network {
	if s.Network == nil {
		s.Network = &network{}
	}
	return s.Network
}

// TimeoutOption is what Timeout returns.
type TimeoutOption time.Duration

// Timeout is how long from now a sandbox lives, for Create, Connect, Resume and
// Fork, or how long a command may run before the guest kills it, for Run, Start and Terminal.
// A sandbox's is rounded up to whole seconds.
func Timeout(d time.Duration) TimeoutOption { return TimeoutOption(d) }

func (o TimeoutOption) create(s *newSandbox)      { s.Timeout = seconds(time.Duration(o)) }
func (o TimeoutOption) connect(r *connectRequest) { r.Timeout = seconds(time.Duration(o)) }
func (o TimeoutOption) fork(f *forkRequest)       { f.Timeout = seconds(time.Duration(o)) }
func (o TimeoutOption) command(c *command)        { c.spec.Timeout = time.Duration(o) }

// EnvOption is what Env returns.
type EnvOption map[string]string

// Env sets environment variables: every command's, for Create and Fork, or one
// command's, for Run, Start and Terminal. Several add up.
func Env(env map[string]string) EnvOption { return EnvOption(env) }

func (o EnvOption) create(s *newSandbox) { s.EnvVars = merged(s.EnvVars, o) }
func (o EnvOption) fork(f *forkRequest)  { f.EnvVars = merged(f.EnvVars, o) }
func (o EnvOption) command(c *command)   { c.spec.Env = merged(c.spec.Env, o) }

// MetadataOption is what Metadata returns.
type MetadataOption map[string]string

// Metadata marks a sandbox, for Create and Fork, or selects those that carry all
// of the marks, for List. Several add up.
func Metadata(m map[string]string) MetadataOption { return MetadataOption(m) }

func (o MetadataOption) create(s *newSandbox) { s.Metadata = merged(s.Metadata, o) }
func (o MetadataOption) fork(f *forkRequest)  { f.Metadata = merged(f.Metadata, o) }
func (o MetadataOption) list(q *listQuery)    { q.metadata = merged(q.metadata, o) }

// A NetworkOption says what a sandbox may reach, for Create and SetNetwork.
type NetworkOption func(*egress)

type egress struct {
	internet *bool
	allow    []string
	deny     []string
}

func (o NetworkOption) create(s *newSandbox) {
	e := egress{internet: s.AllowInternetAccess}
	o(&e)
	s.AllowInternetAccess = e.internet
	if len(e.allow)+len(e.deny) > 0 {
		n := s.net()
		n.AllowOut, n.DenyOut = append(n.AllowOut, e.allow...), append(n.DenyOut, e.deny...)
	}
}

// Internet(false) closes the way out, but for what AllowOut names.
func Internet(allowed bool) NetworkOption {
	return func(e *egress) { e.internet = &allowed }
}

// AllowOut lists addresses and CIDR prefixes that the sandbox may reach whatever
// else is denied.
func AllowOut(destinations ...string) NetworkOption {
	return func(e *egress) { e.allow = append(e.allow, destinations...) }
}

// DenyOut lists addresses and CIDR prefixes that the sandbox may not reach.
func DenyOut(destinations ...string) NetworkOption {
	return func(e *egress) { e.deny = append(e.deny, destinations...) }
}

// Create makes a sandbox and returns when its guest answers. An unknown template
// is ErrNotFound, a full server ErrRateLimited.
//
// A sandbox ends at its deadline, whatever happens to the program that made it;
// Kill ends it sooner, SetTimeout moves the deadline.
func (c *Client) Create(ctx context.Context, opts ...CreateOption) (*Sandbox, error) {
	body := newSandbox{TemplateID: "base", Timeout: seconds(DefaultTimeout), Secure: true}
	for _, o := range opts {
		o.create(&body)
	}
	var out sandboxAnswer
	if _, err := c.do(ctx, request{method: http.MethodPost, path: "/sandboxes", in: body, out: &out, long: true}); err != nil {
		return nil, err
	}
	return c.handle(out)
}

// Connect returns a sandbox that exists, resumes it when it is paused, and moves
// its deadline to at least the Timeout from now, DefaultTimeout without one. One
// that has ended is ErrNotFound.
func (c *Client) Connect(ctx context.Context, id string, opts ...ConnectOption) (*Sandbox, error) {
	body := connectRequest{Timeout: seconds(DefaultTimeout)}
	for _, o := range opts {
		o.connect(&body)
	}
	var out sandboxAnswer
	r := request{method: http.MethodPost, path: sandboxPath(id, "/connect"), in: body, out: &out, long: true}
	if _, err := c.do(ctx, r); err != nil {
		return nil, err
	}
	return c.handle(out)
}

// Sandbox returns a sandbox that exists and changes nothing about it: neither
// its deadline nor its state.
func (c *Client) Sandbox(ctx context.Context, id string) (*Sandbox, error) {
	var out sandboxAnswer
	if _, err := c.do(ctx, request{method: http.MethodGet, path: sandboxPath(id, ""), query: url.Values{}, out: &out}); err != nil {
		return nil, err
	}
	return c.handle(out)
}

// seconds rounds up, as the server counts whole ones.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

func merged(a, b map[string]string) map[string]string {
	if a == nil {
		a = make(map[string]string, len(b))
	}
	maps.Copy(a, b)
	return a
}
