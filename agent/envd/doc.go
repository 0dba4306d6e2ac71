// Package envd is the wire between a host and the agent in its guest: the envd
// protocol (Connect RPC for processes and the file system, plain HTTP for file
// content) with a few routes for the host alone, and the client of all of it.
//
// The generated code below this folder is committed. Its sources are proto/*.proto.
//
//go:generate protoc -Iproto --go_out=../.. --go_opt=module=github.com/nacrehq/nacre --connect-go_out=../.. --connect-go_opt=module=github.com/nacrehq/nacre proto/process.proto proto/filesystem.proto
package envd

import "time"

// Version is the envd version that the agent behaves like. Clients switch
// features by it: 0.4.0 is the first that leaves the default user to the guest.
const Version = "0.4.0"

// Routes of the agent beside its RPC services.
const (
	PathHealth  = "/health"  // GET, 204, open to all
	PathFiles   = "/files"   // GET, HEAD, POST
	PathInit    = "/init"    // POST, host only
	PathMetrics = "/metrics" // GET, host only
	PathLogs    = "/logs"    // GET, host only, a stream of JSON lines
	PathEnvs    = "/envs"    // GET, host only
	PathTunnel  = "/tunnel"  // GET with an upgrade to "tcp", host only
)

// Headers of the protocol.
const (
	HeaderAccessToken = "X-Access-Token"
	HeaderHostToken   = "X-Host-Token"
	HeaderTimeout     = "Connect-Timeout-Ms"
	HeaderKeepalive   = "Keepalive-Ping-Interval" // seconds
	HeaderUnlogged    = "X-Host-Unlogged"         // with the host token only: a process that the log leaves out
	HeaderKept        = "X-Host-Kept"             // with the host token only: a process whose newest output is kept
	HeaderSeen        = "X-Host-Seen"             // with the host token only: what was read of one's stdout, stderr and terminal, "1,0,0"
	HeaderOutput      = "X-Host-Output"           // the answer: where the stream begins, and what there was, "1,0,0,9,2,0"
)

// InitRequest is the body of POST /init, nacre.AgentInit on the wire.
type InitRequest struct {
	EnvVars        map[string]string `json:"envVars"`
	AccessToken    string            `json:"accessToken"`
	HostToken      string            `json:"hostToken"`
	Timestamp      time.Time         `json:"timestamp"`
	Entropy        []byte            `json:"entropy"` // base64
	Hostname       string            `json:"hostname"`
	DNS            string            `json:"dns"`
	DefaultUser    string            `json:"defaultUser"`
	DefaultWorkdir string            `json:"defaultWorkdir"`
	NewIdentity    bool              `json:"newIdentity,omitempty"`
}

// MetricsResponse is the answer of GET /metrics. Sizes are bytes, CPUUsedPct is
// 100 for one busy processor.
type MetricsResponse struct {
	Timestamp  int64   `json:"ts"` // unix seconds
	CPUCount   int     `json:"cpu_count"`
	CPUUsedPct float64 `json:"cpu_used_pct"`
	MemTotal   int64   `json:"mem_total"`
	MemUsed    int64   `json:"mem_used"`
	MemCache   int64   `json:"mem_cache"`
	DiskUsed   int64   `json:"disk_used"`
	DiskTotal  int64   `json:"disk_total"`
}

// FileAnswer is one element of the answer of POST /files. Clients build their
// own record from exactly these keys: a further one breaks them.
type FileAnswer struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Path string `json:"path"`
}

// ErrorBody is the body of every error outside of the RPC services.
type ErrorBody struct {
	Code    int    `json:"code"` // the HTTP status
	Message string `json:"message"`
}
