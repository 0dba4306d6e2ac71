package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"strings"

	"github.com/nacrehq/nacre"
)

// maxDomain is how long a host name may be.
const maxDomain = 253

// domainBody is the part of a domain that no query looks at.
type domainBody struct {
	Target    string `json:"target,omitempty"`
	Proof     string `json:"proof,omitempty"`
	CheckedAt int64  `json:"checkedAt,omitempty"` // 0: never
}

func noDomain() error { return nacre.Errorf(nacre.CodeNotFound, "no domain has this id") }

// validDomain accepts names of two labels or more.
func validDomain(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if !validSlug(label) {
			return false
		}
	}
	return len(name) <= maxDomain && strings.Contains(name, ".")
}

func checkDomain(d *nacre.Domain) error {
	if d.ID == "" || !plain(string(d.ID)) || d.TeamID == "" || !plain(string(d.TeamID)) || !plain(d.Target) || !plain(d.Proof) {
		return nacre.Invalidf("id", "a domain needs an id and a team")
	}
	if !validDomain(d.Name) {
		return nacre.Invalidf("domain", "domain must be a host name such as apps.example.com")
	}
	return nil
}

func encodeDomain(d *nacre.Domain) (string, error) {
	text, err := json.Marshal(domainBody{Target: d.Target, Proof: d.Proof, CheckedAt: unixMicro(d.CheckedAt)})
	return string(text), err
}

func domainTaken(name string) error {
	return &nacre.Error{Code: nacre.CodeConflict, Field: "domain", Message: "the domain " + name + " is in use already"}
}

// InsertDomain implements nacre.DomainStore.
func (db *DB) InsertDomain(ctx context.Context, d nacre.Domain) error {
	if err := checkDomain(&d); err != nil {
		return err
	}
	text, err := encodeDomain(&d)
	if err != nil {
		return err
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		if err := nameFree(ctx, c, &d); err != nil {
			return err
		}
		if d.Preview != "" {
			if _, err := db.getPreview(ctx, c, d.TeamID, d.Preview, ""); err != nil {
				return err
			}
		}
		n, err := c.exec(ctx, `INSERT INTO domains (id, team_id, name, preview_id, created_at, verified_at, body)
			VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`, string(d.ID), string(d.TeamID), d.Name, string(d.Preview),
			unixMicro(d.CreatedAt), unixMicro(d.VerifiedAt), text)
		if err == nil && n == 0 {
			return domainTaken(d.Name)
		}
		return err
	})
}

// nameFree refuses a name that another record has verified.
func nameFree(ctx context.Context, c conn, d *nacre.Domain) error {
	taken, err := c.one(ctx, func(*sql.Rows) error { return nil },
		`SELECT 1 FROM domains WHERE name = ? AND verified_at > 0 AND id <> ?`, d.Name, string(d.ID))
	if err == nil && taken {
		err = domainTaken(d.Name)
	}
	return err
}

const domainColumns = `id, team_id, name, preview_id, created_at, verified_at, body`

func scanDomain(r *sql.Rows, d *nacre.Domain) error {
	var created, verified int64
	var text []byte
	if err := r.Scan((*string)(&d.ID), (*string)(&d.TeamID), &d.Name, (*string)(&d.Preview), &created, &verified, &text); err != nil {
		return err
	}
	var b domainBody
	if err := json.Unmarshal(text, &b); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the record of a domain cannot be read")
	}
	d.Target, d.Proof, d.CheckedAt = b.Target, b.Proof, fromUnixMicro(b.CheckedAt)
	d.CreatedAt, d.VerifiedAt = fromUnixMicro(created), fromUnixMicro(verified)
	return nil
}

// Domains implements nacre.DomainStore.
func (db *DB) Domains(ctx context.Context, team nacre.TeamID) ([]nacre.Domain, error) {
	if !plain(string(team)) {
		return nil, nil
	}
	var out []nacre.Domain
	err := db.reads.each(ctx, func(r *sql.Rows) error {
		out = append(out, nacre.Domain{})
		return scanDomain(r, &out[len(out)-1])
	}, `SELECT `+domainColumns+` FROM domains WHERE team_id = ? ORDER BY created_at, id`, string(team))
	return out, db.fail(ctx, err)
}

// UpdateDomain implements nacre.DomainStore. Id, team and name stay.
func (db *DB) UpdateDomain(ctx context.Context, team nacre.TeamID, id nacre.DomainID, change func(*nacre.Domain) error) (nacre.Domain, error) {
	if !plain(string(team)) || !plain(string(id)) {
		return nacre.Domain{}, noDomain()
	}
	return update(ctx, db, func(ctx context.Context, c conn) (nacre.Domain, error) {
		var d nacre.Domain
		found, err := c.one(ctx, func(r *sql.Rows) error { return scanDomain(r, &d) },
			`SELECT `+domainColumns+` FROM domains WHERE id = ? AND team_id = ?`+db.d.forUpdate, string(id), string(team))
		if err == nil && !found {
			err = noDomain()
		}
		return d, err
	}, change, func(ctx context.Context, c conn, old, d *nacre.Domain) error {
		if d.ID != old.ID || d.TeamID != old.TeamID || d.Name != old.Name {
			return nacre.Invalidf("domain", "the name of a domain cannot be changed; add another")
		}
		if err := checkDomain(d); err != nil {
			return err
		}
		if !d.VerifiedAt.IsZero() {
			if err := nameFree(ctx, c, d); err != nil {
				return err
			}
		}
		text, err := encodeDomain(d)
		if err != nil {
			return err
		}
		_, err = c.exec(ctx, `UPDATE domains SET preview_id = ?, verified_at = ?, body = ? WHERE id = ?`,
			string(d.Preview), unixMicro(d.VerifiedAt), text, string(d.ID))
		d.CheckedAt, d.VerifiedAt = fromUnixMicro(unixMicro(d.CheckedAt)), fromUnixMicro(unixMicro(d.VerifiedAt))
		return err
	})
}

// DeleteDomain implements nacre.DomainStore.
func (db *DB) DeleteDomain(ctx context.Context, team nacre.TeamID, id nacre.DomainID) error {
	return db.deleteOne(ctx, "domains", team, string(id), noDomain())
}
