package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/nacrehq/nacre"
)

// maxPreviewTokens of one sandbox; the oldest go.
const maxPreviewTokens = 100

// previewBody is the part of a preview that no query looks at.
type previewBody struct {
	Port      int               `json:"port"`
	Label     string            `json:"label,omitempty"`
	Private   bool              `json:"private,omitempty"`
	Ancestors []string          `json:"ancestors,omitzero"`
	Metadata  map[string]string `json:"metadata,omitzero"`
}

func noPreview() error { return nacre.Errorf(nacre.CodeNotFound, "no preview has this id") }

func slugTaken(slug string) error {
	return &nacre.Error{Code: nacre.CodeConflict, Field: "slug", Message: "the slug " + slug + " is in use; choose another"}
}

// validSlug tells whether s can stand in a host name.
func validSlug(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
}

func checkPreview(p *nacre.Preview) error {
	switch {
	case p.ID == "" || !plain(string(p.ID)) || p.TeamID == "" || !plain(string(p.TeamID)):
		return nacre.Invalidf("id", "a preview needs an id and a team")
	case p.Port < 1 || p.Port > 65535:
		return nacre.Invalidf("port", "port must be between 1 and 65535")
	case !validSlug(p.Slug):
		return nacre.Invalidf("slug", "slug must be 1 to 63 characters of a-z, 0-9 and '-', not beginning or ending with '-'")
	case !validMap(p.Metadata):
		return nacre.Invalidf("metadata", "keys and values of metadata must be UTF-8 text")
	}
	return nil
}

func encodePreview(p *nacre.Preview) (string, error) {
	text, err := json.Marshal(previewBody{Port: p.Port, Label: p.Label, Private: p.Private, Ancestors: p.Ancestors, Metadata: p.Metadata})
	if err != nil {
		return "", nacre.Wrap(nacre.CodeInternal, err, "the preview cannot be encoded")
	}
	return string(text), nil
}

const previewColumns = `p.id, p.team_id, p.sandbox_id, p.slug, p.created_at, p.updated_at, p.body`

func scanPreview(r *sql.Rows, p *nacre.Preview) error {
	var created, updated int64
	var text []byte
	err := r.Scan((*string)(&p.ID), (*string)(&p.TeamID), (*string)(&p.Sandbox), &p.Slug, &created, &updated, &text)
	if err != nil {
		return err
	}
	var b previewBody
	if err := json.Unmarshal(text, &b); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the record of a preview cannot be read")
	}
	p.Port, p.Label, p.Private, p.Ancestors, p.Metadata = b.Port, b.Label, b.Private, b.Ancestors, b.Metadata
	p.CreatedAt, p.UpdatedAt = fromUnixMicro(created), fromUnixMicro(updated)
	return nil
}

// InsertPreview implements nacre.PreviewStore.
func (db *DB) InsertPreview(ctx context.Context, p nacre.Preview, events ...nacre.Event) error {
	if err := checkPreview(&p); err != nil {
		return err
	}
	text, err := encodePreview(&p)
	if err != nil {
		return err
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		s, err := db.mustBeAlive(ctx, c, p.TeamID, p.Sandbox)
		if err != nil {
			return err
		}
		if err := db.freeSlug(ctx, c, p.Slug); err != nil {
			return err
		}
		n, err := c.exec(ctx, `INSERT INTO previews (id, team_id, sandbox_id, slug, created_at, updated_at, body)
			VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`, string(p.ID), string(p.TeamID), string(p.Sandbox), p.Slug,
			unixMicro(p.CreatedAt), unixMicro(p.UpdatedAt), text)
		if err != nil {
			return err
		}
		if n == 0 {
			return slugTaken(p.Slug)
		}
		return db.insertEvents(ctx, c, &s, events)
	})
}

// freeSlug deletes the preview that holds the slug if its sandbox has ended. A
// deployment's stays: its next sandbox answers under the same name.
func (db *DB) freeSlug(ctx context.Context, c conn, slug string) error {
	var old nacre.Preview
	found, err := c.one(ctx, func(r *sql.Rows) error { return scanPreview(r, &old) },
		`SELECT `+previewColumns+` FROM previews p LEFT JOIN sandboxes s ON s.id = p.sandbox_id
		WHERE p.slug = ? AND (s.id IS NULL OR s.state = 'ended')`, slug)
	if err != nil || !found || old.Metadata[nacre.LabelDeployment] != "" {
		return err
	}
	return deletePreview(ctx, c, string(old.ID))
}

func deletePreview(ctx context.Context, c conn, id string) error {
	if _, err := c.exec(ctx, `DELETE FROM preview_tokens WHERE preview_id = ?`, id); err != nil {
		return err
	}
	_, err := c.exec(ctx, `DELETE FROM previews WHERE id = ?`, id)
	return err
}

// GetPreview implements nacre.PreviewStore.
func (db *DB) GetPreview(ctx context.Context, team nacre.TeamID, id nacre.PreviewID) (nacre.Preview, error) {
	p, err := db.getPreview(ctx, db.reads, team, id, "")
	return p, db.fail(ctx, err)
}

func (db *DB) getPreview(ctx context.Context, c conn, team nacre.TeamID, id nacre.PreviewID, suffix string) (nacre.Preview, error) {
	var p nacre.Preview
	if !plain(string(team)) || !plain(string(id)) {
		return p, noPreview()
	}
	found, err := c.one(ctx, func(r *sql.Rows) error { return scanPreview(r, &p) },
		`SELECT `+previewColumns+` FROM previews p WHERE p.id = ? AND p.team_id = ?`+suffix, string(id), string(team))
	if err == nil && !found {
		err = noPreview()
	}
	return p, err
}

// Previews implements nacre.PreviewStore.
func (db *DB) Previews(ctx context.Context, team nacre.TeamID, sandbox nacre.SandboxID) ([]nacre.Preview, error) {
	if !plain(string(team)) || !sandbox.Valid() {
		return nil, nil
	}
	var out []nacre.Preview
	err := db.reads.each(ctx, func(r *sql.Rows) error {
		out = append(out, nacre.Preview{})
		return scanPreview(r, &out[len(out)-1])
	}, `SELECT `+previewColumns+` FROM previews p WHERE p.sandbox_id = ? AND p.team_id = ? ORDER BY p.created_at, p.id`,
		string(sandbox), string(team))
	return out, db.fail(ctx, err)
}

// UpdatePreview implements nacre.PreviewStore. A new sandbox must be alive; its slug
// may change, too.
func (db *DB) UpdatePreview(ctx context.Context, team nacre.TeamID, id nacre.PreviewID, change func(*nacre.Preview) error) (nacre.Preview, error) {
	return update(ctx, db, func(ctx context.Context, c conn) (nacre.Preview, error) {
		return db.getPreview(ctx, c, team, id, db.d.forUpdate)
	}, func(p *nacre.Preview) error {
		p.Metadata, p.Ancestors = maps.Clone(p.Metadata), slices.Clone(p.Ancestors)
		return change(p)
	}, func(ctx context.Context, c conn, old, p *nacre.Preview) error {
		if p.ID != old.ID || p.TeamID != old.TeamID {
			return nacre.Invalidf("id", "the id and the team of a preview cannot be changed")
		}
		if err := checkPreview(p); err != nil {
			return err
		}
		if err := db.replacePreview(ctx, c, old, p); err != nil {
			return err
		}
		p.CreatedAt, p.UpdatedAt = old.CreatedAt, micro(p.UpdatedAt)
		return nil
	})
}

func (db *DB) replacePreview(ctx context.Context, c conn, old, p *nacre.Preview) error {
	text, err := encodePreview(p)
	if err != nil {
		return err
	}
	if p.Sandbox != old.Sandbox {
		if _, err := db.mustBeAlive(ctx, c, p.TeamID, p.Sandbox); err != nil {
			return err
		}
		// The tokens open the preview, wherever it leads.
		if _, err := c.exec(ctx, `UPDATE preview_tokens SET sandbox_id = ? WHERE preview_id = ?`, string(p.Sandbox), string(p.ID)); err != nil {
			return err
		}
	}
	if p.Slug != old.Slug {
		if err := db.freeSlug(ctx, c, p.Slug); err != nil {
			return err
		}
		taken, err := c.one(ctx, func(*sql.Rows) error { return nil }, `SELECT 1 FROM previews WHERE slug = ?`, p.Slug)
		if err != nil {
			return err
		}
		if taken {
			return slugTaken(p.Slug)
		}
	}
	_, err = c.exec(ctx, `UPDATE previews SET sandbox_id = ?, slug = ?, updated_at = ?, body = ? WHERE id = ?`,
		string(p.Sandbox), p.Slug, unixMicro(p.UpdatedAt), text, string(p.ID))
	return err
}

// DeletePreview implements nacre.PreviewStore.
func (db *DB) DeletePreview(ctx context.Context, team nacre.TeamID, id nacre.PreviewID) error {
	return db.write(ctx, func(ctx context.Context, c conn) error {
		if _, err := db.getPreview(ctx, c, team, id, db.d.forUpdate); err != nil {
			return err
		}
		return deletePreview(ctx, c, string(id))
	})
}

// InsertPreviewToken implements nacre.PreviewStore.
func (db *DB) InsertPreviewToken(ctx context.Context, t nacre.PreviewToken) error {
	if t.ID == "" || !plain(string(t.ID)) || !plain(t.Hint) || !plain(t.Scope) || t.Hash == ([32]byte{}) {
		return nacre.Invalidf("id", "a preview token needs an id and a hash")
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		if _, err := db.get(ctx, c, t.TeamID, t.Sandbox, ""); err != nil {
			return err
		}
		if t.Preview != "" {
			p, err := db.getPreview(ctx, c, t.TeamID, t.Preview, "")
			if err != nil {
				return err
			}
			if p.Sandbox != t.Sandbox {
				return noPreview()
			}
		}
		n, err := c.exec(ctx, `INSERT INTO preview_tokens (id, team_id, sandbox_id, preview_id, hash, hint, scope, created_at, expires_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`, string(t.ID), string(t.TeamID), string(t.Sandbox), string(t.Preview),
			t.Hash[:], t.Hint, t.Scope, unixMicro(t.CreatedAt), unixMicro(t.ExpiresAt))
		if err != nil {
			return err
		}
		if n == 0 {
			return nacre.Errorf(nacre.CodeConflict, "this token exists")
		}
		_, err = c.exec(ctx, `DELETE FROM preview_tokens WHERE sandbox_id = ? AND id NOT IN
			(SELECT id FROM preview_tokens WHERE sandbox_id = ? ORDER BY created_at DESC, id DESC LIMIT ?)`,
			string(t.Sandbox), string(t.Sandbox), maxPreviewTokens)
		return err
	})
}

const tokenColumns = `id, team_id, sandbox_id, preview_id, hash, hint, scope, created_at, expires_at`

// tokens returns those that the condition selects, oldest first.
func tokens(ctx context.Context, c conn, cond string, args ...any) ([]nacre.PreviewToken, error) {
	var out []nacre.PreviewToken
	err := c.each(ctx, func(r *sql.Rows) error {
		var t nacre.PreviewToken
		var hash []byte
		var created, expires int64
		err := r.Scan((*string)(&t.ID), (*string)(&t.TeamID), (*string)(&t.Sandbox), (*string)(&t.Preview), &hash, &t.Hint, &t.Scope, &created, &expires)
		copy(t.Hash[:], hash)
		t.CreatedAt, t.ExpiresAt = fromUnixMicro(created), fromUnixMicro(expires)
		out = append(out, t)
		return err
	}, `SELECT `+tokenColumns+` FROM preview_tokens WHERE `+cond+` ORDER BY created_at, id`, args...)
	return out, err
}

// PreviewTokens implements nacre.PreviewStore.
func (db *DB) PreviewTokens(ctx context.Context, team nacre.TeamID, sandbox nacre.SandboxID) ([]nacre.PreviewToken, error) {
	if !plain(string(team)) || !sandbox.Valid() {
		return nil, nil
	}
	out, err := tokens(ctx, db.reads, `sandbox_id = ? AND team_id = ?`, string(sandbox), string(team))
	return out, db.fail(ctx, err)
}

// RevokePreviewTokens implements nacre.PreviewStore.
func (db *DB) RevokePreviewTokens(ctx context.Context, team nacre.TeamID, preview nacre.PreviewID, token nacre.PreviewTokenID) (int, error) {
	a := arm{}
	a.and("team_id = ?", string(team))
	if preview != "" {
		a.and("preview_id = ?", string(preview))
	}
	if token != "" {
		a.and("id = ?", string(token))
	}
	if preview == "" && token == "" || !plain(string(team)) || !plain(string(preview)) || !plain(string(token)) {
		return 0, nil
	}
	var n int64
	err := db.write(ctx, func(ctx context.Context, c conn) (err error) {
		n, err = c.exec(ctx, `DELETE FROM preview_tokens WHERE `+strings.Join(a.conds, " AND "), a.args...)
		return err
	})
	return int(n), err
}

// PreviewBySlug implements nacre.PreviewRoutes.
func (db *DB) PreviewBySlug(ctx context.Context, slug string) (nacre.PreviewRoute, error) {
	if !validSlug(slug) {
		return nacre.PreviewRoute{}, noPreview()
	}
	route, err := db.route(ctx, `SELECT `+previewColumns+` FROM previews p WHERE p.slug = ?`, slug)
	return route, db.fail(ctx, err)
}

// PreviewByDomain implements nacre.PreviewRoutes.
func (db *DB) PreviewByDomain(ctx context.Context, host string) (nacre.PreviewRoute, error) {
	if host == "" || len(host) > maxDomain || !plain(host) {
		return nacre.PreviewRoute{}, noPreview()
	}
	route, err := db.route(ctx, `SELECT `+previewColumns+` FROM domains d JOIN previews p ON p.id = d.preview_id AND p.team_id = d.team_id
		WHERE d.name = ? AND d.verified_at > 0`, host)
	if slug, rest, ok := strings.Cut(host, "."); ok && nacre.IsCode(err, nacre.CodeNotFound) && validSlug(slug) {
		route, err = db.route(ctx, `SELECT `+previewColumns+` FROM domains d JOIN previews p ON p.slug = ? AND p.team_id = d.team_id
			WHERE d.name = ? AND d.verified_at > 0 AND d.preview_id = ''`, slug, rest)
	}
	return route, db.fail(ctx, err)
}

func (db *DB) route(ctx context.Context, query string, args ...any) (nacre.PreviewRoute, error) {
	var out nacre.PreviewRoute
	found, err := db.reads.one(ctx, func(r *sql.Rows) error { return scanPreview(r, &out.Preview) }, query, args...)
	if err == nil && !found {
		err = noPreview()
	}
	if err != nil {
		return nacre.PreviewRoute{}, err
	}
	out.Tokens, err = tokens(ctx, db.reads, `sandbox_id = ? AND (preview_id = ? OR preview_id = '')`, string(out.Preview.Sandbox), string(out.Preview.ID))
	return out, err
}
