package sqlstore

import (
	"database/sql"
	"encoding/json"
	"time"

	"github.com/nacrehq/nacre"
)

// snapshotBody is the part of a snapshot that no query looks at.
type snapshotBody struct {
	Comment    string              `json:"comment,omitempty"`
	FilesOnly  bool                `json:"filesOnly,omitempty"`
	RestoreKey string              `json:"restoreKey,omitempty"`
	Template   string              `json:"template,omitempty"`
	TemplateID nacre.TemplateID    `json:"templateId,omitempty"`
	BuildID    nacre.BuildID       `json:"buildId,omitempty"`
	Resources  nacre.Resources     `json:"resources,omitzero"`
	Metadata   map[string]string   `json:"metadata,omitzero"`
	Network    nacre.NetworkPolicy `json:"network,omitzero"`
	Secure     bool                `json:"secure,omitempty"`
	Timeout    time.Duration       `json:"timeout,omitempty"` // nanoseconds
	OnTimeout  nacre.TimeoutAction `json:"onTimeout,omitempty"`
	Bytes      int64               `json:"bytes,omitempty"`
	Stopped    time.Duration       `json:"stopped,omitempty"`    // nanoseconds
	LastUsedAt int64               `json:"lastUsedAt,omitempty"` // microseconds; 0 for never
}

func encodeSnapshot(s *nacre.Snapshot) (string, error) {
	text, err := json.Marshal(snapshotBody{
		Comment: s.Comment, FilesOnly: s.FilesOnly, RestoreKey: s.RestoreKey,
		Template: s.Template, TemplateID: s.TemplateID, BuildID: s.BuildID, Resources: s.Resources,
		Metadata: s.Metadata, Network: s.Network, Secure: s.Secure, Timeout: s.Timeout, OnTimeout: s.OnTimeout,
		Bytes: s.Bytes, Stopped: s.Stopped, LastUsedAt: unlessZero(s.LastUsedAt),
	})
	return string(text), err
}

const snapshotColumns = `s.id, s.team_id, s.name, s.kind, s.state, s.sandbox_id, s.node, s.created_at, s.expires_at, s.disk_bytes, s.version, s.body, s.env`

func (db *DB) scanSnapshot(r *sql.Rows, s *nacre.Snapshot) error {
	var created int64
	var expires sql.NullInt64
	var text, env []byte
	err := r.Scan((*string)(&s.ID), (*string)(&s.TeamID), &s.Name, (*string)(&s.Kind), (*string)(&s.State), (*string)(&s.Sandbox),
		(*string)(&s.Node), &created, &expires, &s.DiskBytes, &s.Version, &text, &env)
	if err != nil {
		return err
	}
	var b snapshotBody
	if err := json.Unmarshal(text, &b); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the record of snapshot "+string(s.ID)+" cannot be read")
	}
	s.Comment, s.FilesOnly, s.RestoreKey = b.Comment, b.FilesOnly, b.RestoreKey
	s.Template, s.TemplateID, s.BuildID, s.Resources = b.Template, b.TemplateID, b.BuildID, b.Resources
	s.Metadata, s.Network, s.Secure, s.Timeout, s.OnTimeout = b.Metadata, b.Network, b.Secure, b.Timeout, b.OnTimeout
	s.Bytes, s.Stopped = b.Bytes, b.Stopped
	s.CreatedAt = fromMicro(created)
	if expires.Valid {
		s.ExpiresAt = fromMicro(expires.Int64)
	}
	if b.LastUsedAt != 0 {
		s.LastUsedAt = fromMicro(b.LastUsedAt)
	}
	s.Env, err = db.sealer.open(string(s.ID), env)
	return err
}

func expiresAt(s *nacre.Snapshot) sql.NullInt64 {
	return sql.NullInt64{Int64: s.ExpiresAt.UnixMicro(), Valid: !s.ExpiresAt.IsZero()}
}

func cutSnapshotTimes(s *nacre.Snapshot) {
	s.CreatedAt, s.ExpiresAt, s.LastUsedAt = micro(s.CreatedAt), micro(s.ExpiresAt), micro(s.LastUsedAt)
}

func checkSnapshot(s *nacre.Snapshot) error {
	switch {
	case !s.ID.Valid():
		return nacre.Invalidf("id", "a snapshot's id is 's' and 19 characters of a-z and 0-9")
	case s.TeamID == "" || !plain(string(s.TeamID)):
		return nacre.Invalidf("teamId", "a snapshot needs a team")
	case !plain(s.Name) || len(s.Name) > maxSandboxName:
		return nacre.Invalidf("name", "a snapshot's name is text of up to %d bytes", maxSandboxName)
	case s.Kind != nacre.SnapshotUser && s.Kind != nacre.SnapshotPause && s.Kind != nacre.SnapshotFork && s.Kind != nacre.SnapshotWarm:
		return nacre.Invalidf("kind", "%q is no kind of snapshot", s.Kind)
	case s.State != nacre.SnapshotCreating && s.State != nacre.SnapshotReady && s.State != nacre.SnapshotDeleting:
		return nacre.Invalidf("state", "%q is no state of a snapshot", s.State)
	case !plain(string(s.Sandbox)) || !plain(string(s.Node)):
		return nacre.Invalidf("sandbox", "a snapshot's sandbox and node must be UTF-8 text")
	case !validMap(s.Metadata):
		return nacre.Invalidf("metadata", "keys and values of metadata must be UTF-8 text")
	case !validMap(s.Env):
		return nacre.Invalidf("env", "names and values of the environment must be UTF-8 text")
	}
	return nil
}

// takenOf is the sandbox that a snapshot's events are about.
func takenOf(s *nacre.Snapshot) *nacre.Sandbox {
	return &nacre.Sandbox{ID: s.Sandbox, TeamID: s.TeamID}
}
