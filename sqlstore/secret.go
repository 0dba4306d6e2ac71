package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"maps"
	"strings"
	"time"
	"unicode"

	"github.com/nacrehq/nacre"
)

// Bounds of a secret, in bytes.
const (
	maxSecretName  = 256
	maxSecretValue = 64 << 10
	maxEnvName     = 256
)

// secretBody is the part of a secret that no query looks at.
type secretBody struct {
	Kind      string            `json:"kind,omitempty"`
	Hint      string            `json:"hint,omitempty"`
	Metadata  map[string]string `json:"metadata,omitzero"`
	Version   int               `json:"version"`
	UpdatedAt int64             `json:"updatedAt"`
	RotatedAt int64             `json:"rotatedAt,omitempty"` // 0: never
}

func noSecret() error { return nacre.Errorf(nacre.CodeNotFound, "no secret has this id") }

// secretHint shows just enough of a value to tell it from others.
func secretHint(value string) string {
	if r := []rune(value); len(r) >= 16 {
		return string(r[:4]) + "…"
	}
	return "…"
}

func checkSecret(s *nacre.Secret, value *string) error {
	switch {
	case s.ID == "" || !plain(string(s.ID)) || s.TeamID == "" || !plain(string(s.TeamID)):
		return nacre.Invalidf("id", "a secret needs an id and a team")
	case s.Name == "" || len(s.Name) > maxSecretName || !plain(s.Name) || strings.ContainsFunc(s.Name, unicode.IsControl):
		return nacre.Invalidf("name", "a secret's name is text of 1 to %d bytes without control characters", maxSecretName)
	case !plain(s.Kind) || len(s.Kind) > maxSecretName:
		return nacre.Invalidf("type", "a secret's type is text of up to %d bytes", maxSecretName)
	case !plain(s.Scope) || len(s.Scope) > maxSecretName:
		return nacre.Invalidf("scope", "a secret's scope is text of up to %d bytes", maxSecretName)
	case !validMap(s.Metadata):
		return nacre.Invalidf("metadata", "keys and values of metadata must be UTF-8 text")
	case value != nil && (*value == "" || len(*value) > maxSecretValue):
		return nacre.Invalidf("value", "a secret's value has 1 to %d bytes", maxSecretValue)
	}
	return nil
}

// unixMicro is 0 for the zero time.
func unixMicro(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromUnixMicro(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return fromMicro(us)
}

func encodeSecret(s *nacre.Secret) (string, error) {
	text, err := json.Marshal(secretBody{Kind: s.Kind, Hint: s.Hint, Metadata: s.Metadata, Version: s.Version,
		UpdatedAt: unixMicro(s.UpdatedAt), RotatedAt: unixMicro(s.RotatedAt)})
	return string(text), err
}

const secretColumns = `s.id, s.team_id, s.name, s.scope, s.created_at, s.expires_at, s.body`

func scanSecret(r *sql.Rows, s *nacre.Secret, more ...any) error {
	var created, expires int64
	var text []byte
	err := r.Scan(append([]any{(*string)(&s.ID), (*string)(&s.TeamID), &s.Name, &s.Scope, &created, &expires, &text}, more...)...)
	if err != nil {
		return err
	}
	var b secretBody
	if err := json.Unmarshal(text, &b); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the record of a secret cannot be read")
	}
	s.Kind, s.Hint, s.Metadata, s.Version = b.Kind, b.Hint, b.Metadata, b.Version
	s.CreatedAt, s.ExpiresAt = fromUnixMicro(created), fromUnixMicro(expires)
	s.UpdatedAt, s.RotatedAt = fromUnixMicro(b.UpdatedAt), fromUnixMicro(b.RotatedAt)
	return nil
}

// InsertSecret implements nacre.SecretStore. Hint and Version are the store's.
func (db *DB) InsertSecret(ctx context.Context, s nacre.Secret, value string) error {
	if err := checkSecret(&s, &value); err != nil {
		return err
	}
	s.Version, s.Hint = 1, secretHint(value)
	text, err := encodeSecret(&s)
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the secret cannot be encoded")
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		n, err := c.exec(ctx, `INSERT INTO secrets (id, team_id, name, scope, created_at, expires_at, body, value)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			string(s.ID), string(s.TeamID), s.Name, s.Scope, unixMicro(s.CreatedAt), unixMicro(s.ExpiresAt), text,
			db.sealer.keep("secret "+string(s.ID), []byte(value)))
		if err == nil && n == 0 {
			return &nacre.Error{Code: nacre.CodeConflict, Field: "name", Message: "a secret with the name " + s.Name + " exists; choose another name, or give that one a new value"}
		}
		return err
	})
}

// GetSecret implements nacre.SecretStore.
func (db *DB) GetSecret(ctx context.Context, team nacre.TeamID, id nacre.SecretID) (nacre.Secret, error) {
	s, err := db.getSecret(ctx, db.reads, team, id, "")
	return s, db.fail(ctx, err)
}

func (db *DB) getSecret(ctx context.Context, c conn, team nacre.TeamID, id nacre.SecretID, suffix string) (nacre.Secret, error) {
	var s nacre.Secret
	if !plain(string(team)) || !plain(string(id)) {
		return s, noSecret()
	}
	found, err := c.one(ctx, func(r *sql.Rows) error { return scanSecret(r, &s) },
		`SELECT `+secretColumns+` FROM secrets s WHERE s.id = ? AND s.team_id = ?`+suffix, string(id), string(team))
	if err == nil && !found {
		err = noSecret()
	}
	return s, err
}

// Secrets implements nacre.SecretStore.
func (db *DB) Secrets(ctx context.Context, team nacre.TeamID, f nacre.SecretFilter) ([]nacre.Secret, error) {
	if !plain(string(team)) || !plain(f.Name) || !plain(f.Scope) || !plain(string(f.Secret)) || !plain(string(f.Sandbox)) {
		return nil, nil
	}
	a := arm{from: "secrets s"}
	a.and("s.team_id = ?", string(team))
	if f.Secret != "" {
		a.and("s.id = ?", string(f.Secret))
	}
	if f.Name != "" {
		a.and("s.name = ?", f.Name)
	}
	if f.Scope != "" {
		a.and("s.scope = ?", f.Scope)
	}
	if f.Sandbox != "" {
		a.and("s.id IN (SELECT secret_id FROM secret_bindings WHERE sandbox_id = ?)", string(f.Sandbox))
	}
	var out []nacre.Secret
	err := db.reads.each(ctx, func(r *sql.Rows) error {
		out = append(out, nacre.Secret{})
		return scanSecret(r, &out[len(out)-1])
	}, `SELECT `+secretColumns+` FROM `+a.from+` WHERE `+strings.Join(a.conds, " AND ")+` ORDER BY s.created_at DESC, s.id`, a.args...)
	return out, db.fail(ctx, err)
}

// ChangeSecret implements nacre.SecretStore.
func (db *DB) ChangeSecret(ctx context.Context, team nacre.TeamID, id nacre.SecretID, ch nacre.SecretChange) (nacre.Secret, error) {
	var out nacre.Secret
	err := db.write(ctx, func(ctx context.Context, c conn) error {
		s, err := db.getSecret(ctx, c, team, id, db.d.forUpdate)
		if err != nil {
			return err
		}
		now := micro(db.clock())
		s.UpdatedAt = now
		if ch.Name != nil {
			s.Name = *ch.Name
		}
		if ch.ExpiresAt != nil {
			s.ExpiresAt = fromUnixMicro(unixMicro(*ch.ExpiresAt))
		}
		if ch.Metadata != nil {
			s.Metadata = maps.Clone(ch.Metadata)
		}
		if ch.Value != nil {
			s.Version, s.Hint, s.RotatedAt = s.Version+1, secretHint(*ch.Value), now
		}
		if err := checkSecret(&s, ch.Value); err != nil {
			return err
		}
		if err := db.replaceSecret(ctx, c, &s, ch.Value); err != nil {
			return err
		}
		out = s
		return nil
	})
	if err != nil {
		return nacre.Secret{}, err
	}
	return out, nil
}

func (db *DB) replaceSecret(ctx context.Context, c conn, s *nacre.Secret, value *string) error {
	taken, err := c.one(ctx, func(*sql.Rows) error { return nil },
		`SELECT 1 FROM secrets WHERE team_id = ? AND name = ? AND id <> ?`, string(s.TeamID), s.Name, string(s.ID))
	if err != nil {
		return err
	}
	if taken {
		return &nacre.Error{Code: nacre.CodeConflict, Field: "name", Message: "a secret with the name " + s.Name + " exists; choose another name"}
	}
	text, err := encodeSecret(s)
	if err != nil {
		return err
	}
	_, err = c.exec(ctx, `UPDATE secrets SET name = ?, scope = ?, expires_at = ?, body = ? WHERE id = ?`,
		s.Name, s.Scope, unixMicro(s.ExpiresAt), text, string(s.ID))
	if err != nil || value == nil {
		return err
	}
	_, err = c.exec(ctx, `UPDATE secrets SET value = ? WHERE id = ?`, db.sealer.keep("secret "+string(s.ID), []byte(*value)), string(s.ID))
	return err
}

// DeleteSecret implements nacre.SecretStore.
func (db *DB) DeleteSecret(ctx context.Context, team nacre.TeamID, id nacre.SecretID) error {
	return db.deleteOne(ctx, "secrets", team, string(id), noSecret())
}

// deleteOne deletes a team's row by its id; missing is the error when there is none.
func (db *DB) deleteOne(ctx context.Context, table string, team nacre.TeamID, id string, missing error) error {
	if !plain(string(team)) || !plain(id) {
		return missing
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		n, err := c.exec(ctx, `DELETE FROM `+table+` WHERE id = ? AND team_id = ?`, id, string(team))
		if err == nil && n == 0 {
			return missing
		}
		return err
	})
}

// mustBeAlive locks the record of a sandbox that something is to hang on, so that it
// does not end meanwhile.
func (db *DB) mustBeAlive(ctx context.Context, c conn, team nacre.TeamID, id nacre.SandboxID) (nacre.Sandbox, error) {
	s, err := db.get(ctx, c, team, id, db.d.forUpdate)
	if err == nil && !s.Alive() {
		err = nacre.Errorf(nacre.CodeNotFound, "sandbox %s has ended", id)
	}
	return s, err
}

// BindSecret implements nacre.SecretStore.
func (db *DB) BindSecret(ctx context.Context, b nacre.SecretBinding) error {
	if b.ID == "" || !plain(string(b.ID)) || b.Placeholder == "" || !plain(b.Placeholder) {
		return nacre.Invalidf("id", "a binding needs an id and a placeholder")
	}
	if len(b.Env) > maxEnvName || !plain(b.Env) || strings.ContainsFunc(b.Env, func(r rune) bool { return r == '=' || unicode.IsControl(r) }) {
		return nacre.Invalidf("env", "the name of a variable has up to %d bytes and no '='", maxEnvName)
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		if _, err := db.getSecret(ctx, c, b.TeamID, b.Secret, db.d.forUpdate); err != nil {
			return err
		}
		if _, err := db.mustBeAlive(ctx, c, b.TeamID, b.Sandbox); err != nil {
			return err
		}
		n, err := c.exec(ctx, `INSERT INTO secret_bindings (id, team_id, secret_id, sandbox_id, env, placeholder, created_at)
			VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`, string(b.ID), string(b.TeamID), string(b.Secret), string(b.Sandbox),
			b.Env, b.Placeholder, unixMicro(b.CreatedAt))
		if err == nil && n == 0 {
			return &nacre.Error{Code: nacre.CodeConflict, Field: "env", Message: "the sandbox has a secret in the variable " + b.Env + " already; unbind that one first"}
		}
		return err
	})
}

// SecretBindings implements nacre.SecretStore.
func (db *DB) SecretBindings(ctx context.Context, team nacre.TeamID, f nacre.SecretFilter) ([]nacre.SecretBinding, error) {
	if !plain(string(team)) || !plain(string(f.Secret)) || !plain(string(f.Sandbox)) {
		return nil, nil
	}
	a := arm{from: "secret_bindings"}
	a.and("team_id = ?", string(team))
	if f.Secret != "" {
		a.and("secret_id = ?", string(f.Secret))
	}
	if f.Sandbox != "" {
		a.and("sandbox_id = ?", string(f.Sandbox))
	}
	var out []nacre.SecretBinding
	err := db.reads.each(ctx, func(r *sql.Rows) error {
		var b nacre.SecretBinding
		var created int64
		err := r.Scan((*string)(&b.ID), (*string)(&b.TeamID), (*string)(&b.Secret), (*string)(&b.Sandbox), &b.Env, &b.Placeholder, &created)
		b.CreatedAt = fromUnixMicro(created)
		out = append(out, b)
		return err
	}, `SELECT id, team_id, secret_id, sandbox_id, env, placeholder, created_at FROM `+a.from+
		` WHERE `+strings.Join(a.conds, " AND ")+` ORDER BY created_at DESC, id`, a.args...)
	return out, db.fail(ctx, err)
}

// UnbindSecret implements nacre.SecretStore.
func (db *DB) UnbindSecret(ctx context.Context, team nacre.TeamID, id nacre.BindingID) error {
	return db.deleteOne(ctx, "secret_bindings", team, string(id), nacre.Errorf(nacre.CodeNotFound, "no binding has this id"))
}

// SecretValue implements nacre.SecretStore.
func (db *DB) SecretValue(ctx context.Context, sandbox nacre.SandboxID, placeholder string) (string, nacre.Secret, error) {
	var s nacre.Secret
	var kept []byte
	found := false
	var err error
	if sandbox.Valid() && plain(placeholder) {
		found, err = db.reads.one(ctx, func(r *sql.Rows) error { return scanSecret(r, &s, &kept) },
			`SELECT `+secretColumns+`, s.value FROM secret_bindings b
			JOIN secrets s ON s.id = b.secret_id AND s.team_id = b.team_id
			JOIN sandboxes x ON x.id = b.sandbox_id AND x.team_id = b.team_id
			WHERE b.placeholder = ? AND b.sandbox_id = ? AND x.state NOT IN ('stopping', 'ended')`, placeholder, string(sandbox))
	}
	if err != nil {
		return "", nacre.Secret{}, db.fail(ctx, err)
	}
	if !found || !s.ExpiresAt.IsZero() && !db.clock().Before(s.ExpiresAt) {
		return "", nacre.Secret{}, nacre.Errorf(nacre.CodeNotFound, "the placeholder stands for nothing here")
	}
	value, err := db.sealer.reveal("secret "+string(s.ID), kept)
	return string(value), s, err
}
