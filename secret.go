package nacre

import (
	"context"
	"time"
)

// SecretID names a secret, "sec_" + 16 characters; BindingID its use in a sandbox,
// "bnd_" + 16.
type (
	SecretID  string
	BindingID string
)

// NewSecretID returns a fresh id.
func NewSecretID() SecretID { return SecretID("sec_" + randomID(16)) }

// NewBindingID returns a fresh id.
func NewBindingID() BindingID { return BindingID("bnd_" + randomID(16)) }

// Secret is a secret's record. Its value is never part of it.
type Secret struct {
	ID        SecretID
	TeamID    TeamID
	Name      string
	Kind      string // the client's word, e.g. "api_key"
	Scope     string // the client's word, e.g. "user"
	Hint      string // what may be shown of the value: "sk-l…" or "…"
	Metadata  map[string]string
	Version   int // 1, raised by each new value
	CreatedAt time.Time
	UpdatedAt time.Time
	RotatedAt time.Time // zero until the value was replaced
	ExpiresAt time.Time // zero for never; afterwards its value is not given out
}

// SecretBinding is the use of a secret in a sandbox: its guest sees Placeholder in
// the variable Env, and the egress proxy may put the value in its place.
type SecretBinding struct {
	ID          BindingID
	TeamID      TeamID
	Secret      SecretID
	Sandbox     SandboxID
	Env         string // "" for none
	Placeholder string // unguessable and unique
	CreatedAt   time.Time
}

// SecretFilter selects a team's secrets or bindings. Zero fields do not restrict.
type SecretFilter struct {
	Secret  SecretID
	Sandbox SandboxID // that they are bound to
	Name    string    // of secrets only
	Scope   string    // of secrets only
}

// SecretChange is what a change of a secret sets; nil fields stay.
type SecretChange struct {
	Value     *string
	Name      *string
	Metadata  map[string]string
	ExpiresAt *time.Time
}

// SecretStore keeps secrets, sealed at rest. Errors and concurrency as in
// SandboxStore. Lists are whole, newest first, then by id.
type SecretStore interface {
	// InsertSecret adds a secret with its value. A name that the team uses already is
	// CodeConflict.
	InsertSecret(ctx context.Context, s Secret, value string) error
	GetSecret(ctx context.Context, team TeamID, id SecretID) (Secret, error)
	Secrets(ctx context.Context, team TeamID, f SecretFilter) ([]Secret, error)
	// ChangeSecret returns the record as written. A new value raises Version; the
	// placeholders stay and stand for it from now on.
	ChangeSecret(ctx context.Context, team TeamID, id SecretID, c SecretChange) (Secret, error)
	// DeleteSecret deletes it with its bindings. A repeat is CodeNotFound.
	DeleteSecret(ctx context.Context, team TeamID, id SecretID) error

	// BindSecret adds a binding. Secret and sandbox must be the team's and the sandbox
	// alive, else CodeNotFound; a second one of the same variable in a sandbox is CodeConflict.
	BindSecret(ctx context.Context, b SecretBinding) error
	SecretBindings(ctx context.Context, team TeamID, f SecretFilter) ([]SecretBinding, error)
	// UnbindSecret makes the placeholder worthless. A repeat is CodeNotFound.
	UnbindSecret(ctx context.Context, team TeamID, id BindingID) error

	// SecretValue tells what a placeholder stands for in this sandbox, and is the one
	// way to a value. In any other sandbox, after an unbind, the expiry or the
	// sandbox's end it is CodeNotFound.
	SecretValue(ctx context.Context, sandbox SandboxID, placeholder string) (value string, s Secret, err error)
}
