package sqlstore

import (
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"time"
	"unicode/utf8"

	"github.com/nacrehq/nacre"
)

// body is the part of a sandbox that no query looks at. Only zero values are left
// out, so that nil and empty maps and slices both come back as they were.
type body struct {
	Template   string              `json:"template,omitempty"`
	TemplateID nacre.TemplateID    `json:"templateId,omitempty"`
	BuildID    nacre.BuildID       `json:"buildId,omitempty"`
	Machine    nacre.MachineID     `json:"machine,omitempty"`
	Runtime    nacre.RuntimeName   `json:"runtime,omitempty"`
	EndReason  nacre.EndReason     `json:"endReason,omitempty"`
	Detail     string              `json:"detail,omitempty"`
	Resources  nacre.Resources     `json:"resources,omitzero"`
	Metadata   map[string]string   `json:"metadata,omitzero"`
	Network    nacre.NetworkPolicy `json:"network,omitzero"`
	Secure     bool                `json:"secure,omitempty"`
	Timeout    time.Duration       `json:"timeout,omitempty"` // nanoseconds
	OnTimeout  nacre.TimeoutAction `json:"onTimeout,omitempty"`
	TokenEpoch int                 `json:"tokenEpoch,omitempty"`
	BootPath   nacre.BootPath      `json:"bootPath,omitempty"`
	BootTime   time.Duration       `json:"bootTime,omitempty"` // nanoseconds

	Parent      nacre.SandboxID  `json:"parent,omitempty"`
	Snapshot    nacre.SnapshotID `json:"snapshot,omitempty"`
	Origin      nacre.SnapshotID `json:"origin,omitempty"`
	AutoResume  bool             `json:"autoResume,omitempty"`
	FilesOnly   bool             `json:"filesOnly,omitempty"`
	PausedAt    int64            `json:"pausedAt,omitempty"`    // microseconds; 0 for never
	IdleTimeout time.Duration    `json:"idleTimeout,omitempty"` // nanoseconds
	AlwaysOn    bool             `json:"alwaysOn,omitempty"`
}

func encodeBody(s *nacre.Sandbox) (string, error) {
	text, err := json.Marshal(body{
		Template: s.Template, TemplateID: s.TemplateID, BuildID: s.BuildID, Machine: s.Machine, Runtime: s.Runtime,
		EndReason: s.EndReason, Detail: s.Detail, Resources: s.Resources, Metadata: s.Metadata,
		Network: s.Network, Secure: s.Secure, Timeout: s.Timeout, OnTimeout: s.OnTimeout,
		TokenEpoch: s.TokenEpoch, BootPath: s.BootPath, BootTime: s.BootTime,
		Parent: s.Parent, Snapshot: s.Snapshot, Origin: s.Origin, AutoResume: s.AutoResume, FilesOnly: s.FilesOnly,
		PausedAt: unlessZero(s.PausedAt), IdleTimeout: s.IdleTimeout, AlwaysOn: s.AlwaysOn,
	})
	return string(text), err
}

// sandboxColumns is what scanSandbox reads.
const sandboxColumns = `s.id, s.team_id, s.state, s.node, s.created_at, s.started_at, s.deadline, s.ended_at, s.version, s.name, s.body, s.env`

func (db *DB) scanSandbox(r *sql.Rows, s *nacre.Sandbox) error {
	var created, started, deadline, ended int64
	var text, env []byte
	err := r.Scan((*string)(&s.ID), (*string)(&s.TeamID), (*string)(&s.State), (*string)(&s.Node),
		&created, &started, &deadline, &ended, &s.Version, &s.Name, &text, &env)
	if err != nil {
		return err
	}
	var b body
	if err := json.Unmarshal(text, &b); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the record of sandbox "+string(s.ID)+" cannot be read")
	}
	s.Template, s.TemplateID, s.BuildID, s.Machine = b.Template, b.TemplateID, b.BuildID, b.Machine
	s.Runtime = b.Runtime
	s.EndReason, s.Detail, s.Resources, s.Metadata = b.EndReason, b.Detail, b.Resources, b.Metadata
	s.Network, s.Secure, s.Timeout, s.OnTimeout = b.Network, b.Secure, b.Timeout, b.OnTimeout
	s.TokenEpoch, s.BootPath, s.BootTime = b.TokenEpoch, b.BootPath, b.BootTime
	s.Parent, s.Snapshot, s.Origin, s.AutoResume, s.FilesOnly = b.Parent, b.Snapshot, b.Origin, b.AutoResume, b.FilesOnly
	s.IdleTimeout, s.AlwaysOn = b.IdleTimeout, b.AlwaysOn
	if b.PausedAt != 0 {
		s.PausedAt = fromMicro(b.PausedAt)
	}
	s.CreatedAt, s.StartedAt = fromMicro(created), fromMicro(started)
	s.Deadline, s.EndedAt = fromMicro(deadline), fromMicro(ended)
	s.Env, err = db.sealer.open(string(s.ID), env)
	return err
}

// dueAt is the column that the deadline query goes by: NULL for a sandbox that
// has ended, is ending, or has no deadline.
func dueAt(s *nacre.Sandbox) sql.NullInt64 {
	return sql.NullInt64{Int64: s.Deadline.UnixMicro(), Valid: s.Alive() && !s.Deadline.IsZero()}
}

// holds is the column that the holders of a snapshot are found by.
func holds(s *nacre.Sandbox) sql.NullString {
	return sql.NullString{String: string(s.Snapshot), Valid: s.Alive() && s.Snapshot != ""}
}

func cutTimes(s *nacre.Sandbox) {
	s.CreatedAt, s.StartedAt = micro(s.CreatedAt), micro(s.StartedAt)
	s.Deadline, s.EndedAt = micro(s.Deadline), micro(s.EndedAt)
	s.PausedAt = micro(s.PausedAt)
}

// unlessZero is a time in microseconds, 0 for the zero time.
func unlessZero(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// maxSandboxName is how long a sandbox's name, or a snapshot's, may be, in bytes.
const maxSandboxName = 256

// check refuses what could not be kept as it is.
func check(s *nacre.Sandbox) error {
	if !s.ID.Valid() {
		return nacre.Invalidf("id", "a sandbox's id is 'i' and 20 characters of a-z and 0-9")
	}
	if s.TeamID == "" || !plain(string(s.TeamID)) {
		return nacre.Invalidf("teamId", "a sandbox needs a team")
	}
	if _, known := nacre.Transitions[s.State]; !known {
		return nacre.Invalidf("state", "%q is no state of a sandbox", s.State)
	}
	if !plain(string(s.Node)) {
		return nacre.Invalidf("node", "a node's id must be UTF-8 text")
	}
	if !plain(s.Name) || len(s.Name) > maxSandboxName {
		return nacre.Invalidf("name", "a sandbox's name is text of up to %d bytes", maxSandboxName)
	}
	if s.Snapshot != "" && !s.Snapshot.Valid() {
		return nacre.Invalidf("snapshot", "a snapshot's id is 's' and 19 characters of a-z and 0-9")
	}
	if !validMap(s.Metadata) {
		return nacre.Invalidf("metadata", "keys and values of metadata must be UTF-8 text")
	}
	if !validMap(s.Env) {
		return nacre.Invalidf("env", "names and values of the environment must be UTF-8 text")
	}
	return nil
}

func validMap(m map[string]string) bool {
	for k, v := range m {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return false
		}
	}
	return true
}

// tag stands for one pair of metadata in the index: 128 bits of SHA-256, which
// keeps long values out of it.
func tag(key, value string) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(key)+len(value)), uint64(len(key)))
	sum := sha256.Sum256(append(append(b, key...), value...))
	return sum[:16]
}
