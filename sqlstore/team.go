package sqlstore

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"maps"
	"slices"
	"time"

	"github.com/nacrehq/nacre"
)

// maxKeyName is how long the name of a key may be, in bytes.
const maxKeyName = 256

// EnsureTeam implements nacre.TeamStore.
func (db *DB) EnsureTeam(ctx context.Context, name string) (nacre.Team, error) {
	if !validTeamName(name) {
		return nacre.Team{}, nacre.Invalidf("name", "a team's name is 1 to 64 characters of a-z, A-Z, 0-9, '.', '_' and '-'")
	}
	t, found, err := db.teamByName(ctx, db.reads, name)
	if err != nil || found {
		return t, db.fail(ctx, err)
	}
	err = db.write(ctx, func(ctx context.Context, c conn) error {
		_, err := c.exec(ctx, `INSERT INTO teams (id, name, created_at) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING`,
			string(nacre.NewTeamID()), name, db.clock().UnixMicro())
		if err != nil {
			return err
		}
		t, found, err = db.teamByName(ctx, c, name)
		if err == nil && !found {
			err = nacre.Errorf(nacre.CodeUnavailable, "the team was deleted meanwhile; try again")
		}
		return err
	})
	if err != nil {
		return nacre.Team{}, err
	}
	return t, nil
}

func validTeamName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 64
}

func (db *DB) teamByName(ctx context.Context, c conn, name string) (nacre.Team, bool, error) {
	var t nacre.Team
	found, err := c.one(ctx, func(r *sql.Rows) error { return scanTeam(r, &t) },
		`SELECT id, name, created_at FROM teams WHERE name = ?`, name)
	return t, found, err
}

func scanTeam(r *sql.Rows, t *nacre.Team) error {
	var created int64
	if err := r.Scan((*string)(&t.ID), &t.Name, &created); err != nil {
		return err
	}
	t.CreatedAt = fromMicro(created)
	return nil
}

// Teams implements nacre.TeamStore.
func (db *DB) Teams(ctx context.Context) ([]nacre.Team, error) {
	var out []nacre.Team
	err := db.reads.each(ctx, func(r *sql.Rows) error {
		var t nacre.Team
		err := scanTeam(r, &t)
		out = append(out, t)
		return err
	}, `SELECT id, name, created_at FROM teams ORDER BY name`)
	if err != nil {
		return nil, db.fail(ctx, err)
	}
	return out, nil
}

// InsertKey implements nacre.TeamStore. An unknown team is CodeNotFound, an id or
// hash that exists CodeConflict.
func (db *DB) InsertKey(ctx context.Context, k nacre.Key) error {
	if k.ID == "" || !plain(k.ID) || !plain(string(k.TeamID)) || !plain(k.Hint) {
		return nacre.Invalidf("id", "a key needs an id and a team")
	}
	if !plain(k.Name) || len(k.Name) > maxKeyName {
		return nacre.Invalidf("name", "a key's name is text of up to %d bytes", maxKeyName)
	}
	revoked, used := microOrNull(k.RevokedAt), microOrNull(k.UsedAt)
	return db.write(ctx, func(ctx context.Context, c conn) error {
		c.changesLookups()
		known, err := c.one(ctx, func(*sql.Rows) error { return nil }, `SELECT 1 FROM teams WHERE id = ?`, string(k.TeamID))
		if err != nil {
			return err
		}
		if !known {
			return nacre.Errorf(nacre.CodeNotFound, "no team has this id")
		}
		n, err := c.exec(ctx, `INSERT INTO api_keys (id, team_id, name, hash, hint, created_at, revoked_at, used_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			k.ID, string(k.TeamID), k.Name, k.Hash[:], k.Hint, k.CreatedAt.UnixMicro(), revoked, used)
		if err == nil && n == 0 {
			return nacre.Errorf(nacre.CodeConflict, "this key exists")
		}
		return err
	})
}

const keyColumns = `id, team_id, name, hash, hint, created_at, revoked_at, used_at`

func scanKey(r *sql.Rows, k *nacre.Key) error {
	var hash []byte
	var created int64
	var revoked, used sql.NullInt64
	if err := r.Scan(&k.ID, (*string)(&k.TeamID), &k.Name, &hash, &k.Hint, &created, &revoked, &used); err != nil {
		return err
	}
	copy(k.Hash[:], hash)
	k.CreatedAt = fromMicro(created)
	if revoked.Valid {
		k.RevokedAt = fromMicro(revoked.Int64)
	}
	if used.Valid {
		k.UsedAt = fromMicro(used.Int64)
	}
	return nil
}

// KeyByHash implements nacre.TeamStore.
func (db *DB) KeyByHash(ctx context.Context, hash [32]byte) (nacre.Key, error) {
	k, age, known := db.keys.get(hash)
	if known {
		return k, nil
	}
	found, err := db.reads.one(ctx, func(r *sql.Rows) error { return scanKey(r, &k) },
		`SELECT `+keyColumns+` FROM api_keys WHERE hash = ? AND revoked_at IS NULL`, hash[:])
	if err != nil {
		return nacre.Key{}, db.fail(ctx, err)
	}
	if !found || subtle.ConstantTimeCompare(k.Hash[:], hash[:]) != 1 {
		return nacre.Key{}, nacre.Errorf(nacre.CodeNotFound, "the key is not known")
	}
	if db.alone {
		db.keys.put(hash, k, age)
	}
	return k, nil
}

// Keys implements nacre.TeamStore.
func (db *DB) Keys(ctx context.Context, team nacre.TeamID) ([]nacre.Key, error) {
	if !plain(string(team)) {
		return nil, nil
	}
	var out []nacre.Key
	err := db.reads.each(ctx, func(r *sql.Rows) error {
		var k nacre.Key
		err := scanKey(r, &k)
		out = append(out, k)
		return err
	}, `SELECT `+keyColumns+` FROM api_keys WHERE team_id = ? ORDER BY created_at DESC, id DESC`, string(team))
	if err != nil {
		return nil, db.fail(ctx, err)
	}
	return out, nil
}

// RevokeKey implements nacre.TeamStore. A key that does not exist, or is of
// another team, is CodeNotFound.
func (db *DB) RevokeKey(ctx context.Context, team nacre.TeamID, id string) error {
	missing := nacre.Errorf(nacre.CodeNotFound, "no key has this id")
	if !plain(string(team)) || !plain(id) {
		return missing
	}
	return db.write(ctx, func(ctx context.Context, c conn) error {
		c.changesLookups()
		n, err := c.exec(ctx, `UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ? AND team_id = ?`,
			db.clock().UnixMicro(), id, string(team))
		if err == nil && n == 0 {
			return missing
		}
		return err
	})
}

// KeysUsed implements nacre.TeamStore. Its query alone has no team: it is no tenant's,
// for the ids are those of keys that Auth has just found by their hashes, of many teams
// at once, and it returns nothing.
func (db *DB) KeysUsed(ctx context.Context, at map[string]time.Time) error {
	return db.write(ctx, func(ctx context.Context, c conn) error {
		c.changesLookups()
		for _, id := range slices.Sorted(maps.Keys(at)) { // one order: two servers that do the same never wait for each other
			if !plain(id) {
				continue
			}
			used := at[id].UnixMicro()
			if _, err := c.exec(ctx, `UPDATE api_keys SET used_at = ? WHERE id = ? AND (used_at IS NULL OR used_at < ?)`, used, id, used); err != nil {
				return err
			}
		}
		return nil
	})
}

func microOrNull(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: !t.IsZero()}
}
