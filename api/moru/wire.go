package moru

import "encoding/json"

// The wire's shapes. Fields that the clients' generated parsers require carry no
// omitempty.

type errorBody struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// newSandbox is the body of a create, of both clients and both versions.
type newSandbox struct {
	TemplateID      string            `json:"templateID"` // or a snapshot's id or name
	Timeout         *float64          `json:"timeout"`
	AutoPause       bool              `json:"autoPause"`
	AutoPauseMemory *bool             `json:"autoPauseMemory"`
	AutoResume      *autoResume       `json:"autoResume"`
	Secure          *bool             `json:"secure"`
	AllowInternet   *bool             `json:"allow_internet_access"`
	Network         *networkConfig    `json:"network"`
	Metadata        map[string]string `json:"metadata"`
	EnvVars         map[string]string `json:"envVars"`

	// Known, and not offered yet: refused when set, for ignoring them would give a
	// sandbox that is not what was asked for.
	VolumeID     string          `json:"volumeId"`
	VolumeMounts []any           `json:"volumeMounts"`
	IAM          json.RawMessage `json:"iam"`
}

type autoResume struct {
	Enabled bool `json:"enabled"`
}

// networkConfig is part of a create and of the detail, and, with AllowInternet,
// the body of a network update.
type networkConfig struct {
	AllowOut           []string `json:"allowOut,omitempty"`
	DenyOut            []string `json:"denyOut,omitempty"`
	AllowPublicTraffic *bool    `json:"allowPublicTraffic,omitempty"`
	MaskRequestHost    string   `json:"maskRequestHost,omitempty"`
	AllowInternet      *bool    `json:"allow_internet_access,omitempty"`

	EgressProxy json.RawMessage            `json:"egressProxy,omitempty"`
	Rules       map[string]json.RawMessage `json:"rules,omitempty"`
	DNSServers  []string                   `json:"dnsServers,omitempty"`
	HTTPSPorts  []int                      `json:"httpsPorts,omitempty"`
}

type timeoutBody struct {
	Timeout *float64 `json:"timeout"`
}

// pauseBody and connectBody: memory false means the files alone. A guest whose agent
// does not answer is kept as it is, unless a healthy one is asked for.
type pauseBody struct {
	Memory              *bool `json:"memory"`
	RequireHealthyGuest bool  `json:"requireHealthyGuest"`
}

// connectBody is of a connect and of a resume.
type connectBody struct {
	Timeout *float64 `json:"timeout"`
	Memory  *bool    `json:"memory"`
}

// snapshotBody asks for a snapshot. Comment and expiresIn are ours.
type snapshotBody struct {
	Name      string   `json:"name"`
	Memory    *bool    `json:"memory"`
	Comment   string   `json:"comment"`
	ExpiresIn *float64 `json:"expiresIn"` // seconds; absent for never
}

// snapshot describes one. The clients read the first two fields, all others are
// ours.
type snapshot struct {
	SnapshotID string   `json:"snapshotID"` // "<team>/<name>:default", else "<id>:default"
	Names      []string `json:"names"`

	ID         string  `json:"id"` // of this one alone, whatever its name comes to mean
	Name       string  `json:"name,omitempty"`
	Comment    string  `json:"comment,omitempty"`
	SandboxID  string  `json:"sandboxID"`
	TemplateID string  `json:"templateID"`
	Memory     bool    `json:"memory"`            // false: the files alone
	Runtime    string  `json:"runtime,omitempty"` // it goes on this one
	CPUCount   int     `json:"cpuCount"`
	MemoryMB   int     `json:"memoryMB"`
	DiskSizeMB int     `json:"diskSizeMB"`
	SizeBytes  int64   `json:"sizeBytes"`
	DiskBytes  int64   `json:"diskBytes"` // what it occupies by itself
	StoppedMS  float64 `json:"stoppedMs"` // how long the sandbox stood still
	CreatedAt  string  `json:"createdAt"`
	ExpiresAt  string  `json:"expiresAt,omitempty"`
	LastUsedAt string  `json:"lastUsedAt,omitempty"`
}

// forkBody asks for copies. All but the first two is ours.
type forkBody struct {
	Timeout        *float64          `json:"timeout"` // absent: 15 seconds
	Count          *int              `json:"count"`
	InheritTimeout bool              `json:"inheritTimeout"` // absent, it is the source's
	AutoPause      *bool             `json:"autoPause"`
	Metadata       map[string]string `json:"metadata"`
	EnvVars        map[string]string `json:"envVars"`    // added to the source's
	InheritEnv     *bool             `json:"inheritEnv"` // false: EnvVars is all that it has
}

// forkResult has one of its fields.
type forkResult struct {
	Sandbox *sandbox   `json:"sandbox,omitempty"`
	Error   *errorBody `json:"error,omitempty"`
}

type restoreBody struct {
	SnapshotID string `json:"snapshotID"`
}

type refreshBody struct {
	Duration *float64 `json:"duration"`
}

// sandbox answers a create and a connect.
type sandbox struct {
	TemplateID         string  `json:"templateID"`
	SandboxID          string  `json:"sandboxID"`
	ClientID           string  `json:"clientID"`
	EnvdVersion        string  `json:"envdVersion"`
	Alias              string  `json:"alias,omitempty"`
	EnvdAccessToken    string  `json:"envdAccessToken"`
	TrafficAccessToken *string `json:"trafficAccessToken"`
	Domain             *string `json:"domain"`
	Runtime            string  `json:"runtime,omitempty"` // ours
	boot
}

// boot is ours: whether the machine was a standby, restored or booted, and how
// long the client waited for it. The clients pass over fields that they do not know.
type boot struct {
	BootPath string `json:"bootPath,omitempty"` // standby, warm or cold
	BootMS   int64  `json:"bootMs,omitempty"`
}

type listedSandbox struct {
	TemplateID  string            `json:"templateID"`
	SandboxID   string            `json:"sandboxID"`
	ClientID    string            `json:"clientID"`
	Alias       string            `json:"alias,omitempty"`
	StartedAt   string            `json:"startedAt"`
	EndAt       string            `json:"endAt"`
	CPUCount    int               `json:"cpuCount"`
	MemoryMB    int               `json:"memoryMB"`
	DiskSizeMB  int               `json:"diskSizeMB"`
	State       string            `json:"state"`
	EnvdVersion string            `json:"envdVersion"`
	Metadata    map[string]string `json:"metadata"`
	Runtime     string            `json:"runtime,omitempty"` // ours
}

type sandboxDetail struct {
	listedSandbox
	EnvdAccessToken     string        `json:"envdAccessToken"`
	Domain              *string       `json:"domain"`
	AllowInternetAccess *bool         `json:"allowInternetAccess"`
	Network             networkConfig `json:"network"`
	Lifecycle           lifecycle     `json:"lifecycle"`
	Keeping             *keeping      `json:"keeping,omitempty"` // ours
	boot
}

// keeping is how far the snapshot is that is being taken of a sandbox, for a pause, a
// fork or its own sake.
type keeping struct {
	Bytes   int64 `json:"bytes"`
	OfBytes int64 `json:"ofBytes"` // it may come to be
}

type lifecycle struct {
	AutoResume bool   `json:"autoResume"`
	OnTimeout  string `json:"onTimeout"`
}

type sandboxRun struct {
	SandboxID  string `json:"sandboxID"`
	TemplateID string `json:"templateID"`
	Alias      string `json:"alias,omitempty"`
	Status     string `json:"status"`
	EndReason  string `json:"endReason,omitempty"`
	CreatedAt  string `json:"createdAt"`
	EndedAt    string `json:"endedAt,omitempty"`

	// Ours: what endReason's four words cannot say, such as "oom", a sentence for
	// people, and what the sandbox runs on. The clients' parsers pass over fields that they do not know.
	Reason  string `json:"reason,omitempty"`
	Detail  string `json:"detail,omitempty"`
	Runtime string `json:"runtime,omitempty"`
}

type metric struct {
	Timestamp     string  `json:"timestamp"`
	TimestampUnix int64   `json:"timestampUnix"`
	CPUCount      int     `json:"cpuCount"`
	CPUUsedPct    float64 `json:"cpuUsedPct"`
	MemUsed       int64   `json:"memUsed"`
	MemTotal      int64   `json:"memTotal"`
	MemCache      int64   `json:"memCache"` // E2B's parser requires it
	DiskUsed      int64   `json:"diskUsed"`
	DiskTotal     int64   `json:"diskTotal"`
}

type sandboxesMetrics struct {
	Sandboxes map[string]metric `json:"sandboxes"`
}

type logLine struct {
	Timestamp string `json:"timestamp"`
	Line      string `json:"line"`
}

// logEntry serves both clients: eventType is Moru's, level E2B's.
type logEntry struct {
	Timestamp string            `json:"timestamp"`
	EventType string            `json:"eventType"`
	Level     string            `json:"level"`
	Message   string            `json:"message"`
	Fields    map[string]string `json:"fields"`
}

type logsV1 struct {
	Logs       []logLine  `json:"logs"`
	LogEntries []logEntry `json:"logEntries"`
}

type logsV2 struct {
	Logs []logEntry `json:"logs"`
}

type template struct {
	TemplateID    string   `json:"templateID"`
	BuildID       string   `json:"buildID"`
	CPUCount      int      `json:"cpuCount"`
	MemoryMB      int      `json:"memoryMB"`
	DiskSizeMB    int      `json:"diskSizeMB"`
	Public        bool     `json:"public"`
	Aliases       []string `json:"aliases"`
	Names         []string `json:"names"` // E2B's word for them
	CreatedAt     string   `json:"createdAt"`
	UpdatedAt     string   `json:"updatedAt"`
	CreatedBy     *string  `json:"createdBy"`
	LastSpawnedAt *string  `json:"lastSpawnedAt"`
	SpawnCount    int      `json:"spawnCount"`
	BuildCount    int      `json:"buildCount"`
	EnvdVersion   string   `json:"envdVersion"`
	BuildStatus   string   `json:"buildStatus"`
	Runtime       string   `json:"runtime,omitempty"` // ours: of sandboxes that ask for none
}

type templateWithBuilds struct {
	template
	Builds []templateBuild `json:"builds"`
}

type templateBuild struct {
	BuildID     string `json:"buildID"`
	Status      string `json:"status"`
	CreatedAt   string `json:"createdAt"`
	UpdatedAt   string `json:"updatedAt"`
	FinishedAt  string `json:"finishedAt"`
	CPUCount    int    `json:"cpuCount"`
	MemoryMB    int    `json:"memoryMB"`
	DiskSizeMB  int    `json:"diskSizeMB"`
	EnvdVersion string `json:"envdVersion"`
}

type templateAlias struct {
	TemplateID string `json:"templateID"`
	Public     bool   `json:"public"`
}

type team struct {
	TeamID    string `json:"teamID"`
	Name      string `json:"name"`
	APIKey    string `json:"apiKey"`
	IsDefault bool   `json:"isDefault"`
}

type newAPIKey struct {
	Name string `json:"name"`
}

type apiKey struct {
	ID        string  `json:"id"`
	Name      string  `json:"name"`
	Key       string  `json:"key,omitempty"` // once, when it is made
	Mask      keyMask `json:"mask"`
	CreatedAt string  `json:"createdAt"`
	CreatedBy *string `json:"createdBy"`
	LastUsed  *string `json:"lastUsed"`
}

type keyMask struct {
	Prefix            string `json:"prefix"`
	ValueLength       int    `json:"valueLength"`
	MaskedValuePrefix string `json:"maskedValuePrefix"`
	MaskedValueSuffix string `json:"maskedValueSuffix"`
}
