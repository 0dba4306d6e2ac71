package moru

import (
	"math"
	"slices"
	"time"

	"github.com/nacrehq/nacre"
)

// clientID is a field of E2B's past that its parsers still require.
const clientID = "nacre"

// everywhere is how the clients spell "no internet" in a deny list.
const everywhere = "0.0.0.0/0"

// maxSeconds keeps a number of seconds within time.Duration; the service has the
// real limit.
const maxSeconds = 100 * 365 * 24 * 3600

// defaultTimeout is the clients' own; the service has the same.
const defaultTimeout = 300 * time.Second

func createRequest(in newSandbox) (nacre.CreateRequest, error) {
	var out nacre.CreateRequest
	if err := refuse(
		refusal{"volumeId", in.VolumeID != "", "mounting volumes"},
		refusal{"volumeMounts", len(in.VolumeMounts) > 0, "mounting volumes"},
		refusal{"iam", isSet(in.IAM), "workload identity"},
	); err != nil {
		return out, err
	}
	runtime, metadata := nacre.TakeRuntime(in.Metadata)
	if err := nacre.CheckUserMetadata(metadata); err != nil {
		return out, err
	}
	timeout, err := duration("timeout", in.Timeout, 0)
	if err != nil {
		return out, err
	}
	network, err := networkPolicy(in.Network)
	if err != nil {
		return out, err
	}
	network.DenyInternet = network.DenyInternet || in.AllowInternet != nil && !*in.AllowInternet
	out = nacre.CreateRequest{
		Template: in.TemplateID,
		Timeout:  timeout,
		Runtime:  runtime,
		Metadata: metadata,
		Env:      in.EnvVars,
		Network:  network,
		Secure:   in.Secure == nil || *in.Secure,
	}
	if in.AutoPause {
		out.OnTimeout = nacre.TimeoutPause
	}
	out.FilesOnly = withoutMemory(in.AutoPauseMemory)
	out.AutoResume = in.AutoResume != nil && in.AutoResume.Enabled
	if out.FilesOnly && out.AutoResume {
		return out, nacre.Invalidf("autoResume",
			"autoResume needs the memory to be kept: leave \"autoPauseMemory\" out or set it to true")
	}
	if network.PrivateTraffic && !out.Secure {
		return out, nacre.Invalidf("network.allowPublicTraffic",
			"network.allowPublicTraffic: false needs a secure sandbox; leave \"secure\" out or set it to true")
	}
	return out, nil
}

func networkPolicy(in *networkConfig) (nacre.NetworkPolicy, error) {
	if in == nil {
		return nacre.NetworkPolicy{}, nil
	}
	if err := refuse(
		refusal{"network.egressProxy", isSet(in.EgressProxy), "an egress proxy"},
		refusal{"network.rules", len(in.Rules) > 0, "transforming requests"},
		refusal{"network.dnsServers", len(in.DNSServers) > 0, "choosing DNS servers"},
		refusal{"network.httpsPorts", len(in.HTTPSPorts) > 0, "HTTPS towards the guest"},
	); err != nil {
		return nacre.NetworkPolicy{}, err
	}
	if !nacre.ValidHostMask(in.MaskRequestHost) {
		return nacre.NetworkPolicy{}, nacre.Invalidf("network.maskRequestHost",
			"network.maskRequestHost must be a host name with an optional port; ${PORT} stands for the port")
	}
	return nacre.NetworkPolicy{
		DenyInternet:    in.AllowInternet != nil && !*in.AllowInternet,
		AllowOut:        in.AllowOut,
		DenyOut:         in.DenyOut,
		PrivateTraffic:  in.AllowPublicTraffic != nil && !*in.AllowPublicTraffic,
		MaskRequestHost: in.MaskRequestHost,
	}, nil
}

type refusal struct {
	field string
	set   bool
	what  string
}

// refuse returns CodeUnsupported for the first that is set.
func refuse(rs ...refusal) error {
	for _, r := range rs {
		if r.set {
			err := nacre.Errorf(nacre.CodeUnsupported, "%s: %s is not offered by this server yet; leave the field out", r.field, r.what)
			err.Field = r.field
			return err
		}
	}
	return nil
}

// withoutMemory reads an optional "memory" that is true by default.
func withoutMemory(memory *bool) bool { return memory != nil && !*memory }

func isSet(raw []byte) bool { return len(raw) > 0 && string(raw) != "null" }

// duration reads seconds. Absent is def; what is there must be above zero.
func duration(field string, s *float64, def time.Duration) (time.Duration, error) {
	switch {
	case s == nil:
		return def, nil
	case !(*s > 0):
		return 0, nacre.Invalidf(field, "%s must be above 0 (it is in seconds)", field)
	case *s > maxSeconds:
		return 0, nacre.Invalidf(field, "%s is too long; it is in seconds, not milliseconds", field)
	}
	return time.Duration(math.Round(*s * float64(time.Second))), nil
}

// timestamp has six fraction digits always: older Pythons read three or six only.
func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00") }

// timestampOrNull is null for what never was.
func timestampOrNull(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	text := timestamp(t)
	return &text
}

// publicState returns the wire's state; ok is false for a sandbox that the
// clients do not know yet or any more.
func publicState(s nacre.State) (string, bool) {
	switch s {
	case nacre.StateRunning, nacre.StatePausing:
		return "running", true
	case nacre.StatePaused, nacre.StateResuming:
		return "paused", true
	}
	return "", false
}

func (d *dialect) sandbox(s nacre.Sandbox) sandbox {
	out := sandbox{
		TemplateID:      string(s.TemplateID),
		SandboxID:       string(s.ID),
		ClientID:        clientID,
		EnvdVersion:     d.EnvdVersion,
		Alias:           alias(s),
		EnvdAccessToken: d.TokenKey.AccessToken(s.ID, s.TokenEpoch), // also when not secure: the edge routes by it
		Domain:          d.domain(),
		Runtime:         string(s.Runtime),
		boot:            bootOf(s),
	}
	if s.Network.PrivateTraffic {
		token := d.TokenKey.TrafficToken(s.ID, s.TokenEpoch)
		out.TrafficAccessToken = &token
	}
	return out
}

func bootOf(s nacre.Sandbox) boot {
	return boot{BootPath: string(s.BootPath), BootMS: s.BootTime.Milliseconds()}
}

func (d *dialect) listed(s nacre.Sandbox) listedSandbox {
	state, _ := publicState(s.State)
	return listedSandbox{
		TemplateID:  string(s.TemplateID),
		SandboxID:   string(s.ID),
		ClientID:    clientID,
		Alias:       alias(s),
		StartedAt:   timestamp(s.StartedAt),
		EndAt:       timestamp(s.Deadline),
		CPUCount:    s.Resources.CPUs,
		MemoryMB:    s.Resources.MemoryMiB,
		DiskSizeMB:  s.Resources.DiskMiB,
		State:       state,
		EnvdVersion: d.EnvdVersion,
		Metadata:    nacre.UserMetadata(s.Metadata),
		Runtime:     string(s.Runtime),
	}
}

func (d *dialect) detail(s nacre.Sandbox) sandboxDetail {
	n := s.Network
	public := !n.PrivateTraffic
	out := sandboxDetail{
		listedSandbox:   d.listed(s),
		EnvdAccessToken: d.TokenKey.AccessToken(s.ID, s.TokenEpoch),
		Domain:          d.domain(),
		Network: networkConfig{
			AllowOut: n.AllowOut, DenyOut: n.DenyOut,
			AllowPublicTraffic: &public, MaskRequestHost: n.MaskRequestHost,
		},
		Lifecycle: lifecycle{AutoResume: s.AutoResume, OnTimeout: string(nacre.TimeoutKill)},
		boot:      bootOf(s),
	}
	if s.OnTimeout != "" {
		out.Lifecycle.OnTimeout = string(s.OnTimeout)
	}
	if n.DenyInternet || slices.Contains(n.DenyOut, everywhere) {
		allowed := false
		out.AllowInternetAccess = &allowed
	}
	return out
}

func (d *dialect) domain() *string {
	if d.Domain == "" {
		return nil
	}
	return &d.Domain
}

// alias is the name that the sandbox was asked for by, if it was a name.
func alias(s nacre.Sandbox) string {
	if s.Template == string(s.TemplateID) {
		return ""
	}
	return s.Template
}

// endReasons folds the domain's reasons into the four that Moru's clients know.
var endReasons = map[nacre.EndReason]string{
	nacre.EndKilled:   "killed",
	nacre.EndTimeout:  "timeout",
	nacre.EndIdle:     "timeout",
	nacre.EndOOM:      "error",
	nacre.EndCrash:    "error",
	nacre.EndFailed:   "error",
	nacre.EndNodeLost: "shutdown",
}

func run(s nacre.Sandbox) sandboxRun {
	out := sandboxRun{
		SandboxID:  string(s.ID),
		TemplateID: string(s.TemplateID),
		Alias:      alias(s),
		Status:     "stopped",
		CreatedAt:  timestamp(s.CreatedAt),
		Runtime:    string(s.Runtime),
	}
	if state, ok := publicState(s.State); ok {
		out.Status = state
		return out
	}
	out.EndReason = endReasons[s.EndReason]
	out.Reason, out.Detail = string(s.EndReason), s.Detail
	if !s.EndedAt.IsZero() {
		out.EndedAt = timestamp(s.EndedAt)
	}
	return out
}

func metricOf(m nacre.Metric) metric {
	return metric{
		Timestamp: timestamp(m.Time), TimestampUnix: m.Time.Unix(),
		CPUCount: m.CPUCount, CPUUsedPct: m.CPUUsedPct,
		MemUsed: m.MemUsed, MemTotal: m.MemTotal, MemCache: m.MemCache,
		DiskUsed: m.DiskUsed, DiskTotal: m.DiskTotal,
	}
}
