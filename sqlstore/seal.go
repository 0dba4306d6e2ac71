package sqlstore

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/nacrehq/nacre"
)

// The first byte of a kept environment tells its form.
const (
	envPlain  = 0 // JSON follows
	envSealed = 1 // a 12-byte nonce and the AES-256-GCM sealed JSON follow
)

// sealer keeps environments. The id of the sandbox, or of the snapshot, is
// authenticated with each, so that one record's environment cannot be put into another.
type sealer struct{ aead cipher.AEAD } // nil aead: no key

func newSealer(key [32]byte) (*sealer, error) {
	if key == ([32]byte{}) {
		return &sealer{}, nil
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &sealer{aead: aead}, nil
}

// seal returns what the env column holds; nil for a nil map.
func (s *sealer) seal(id string, env map[string]string) ([]byte, error) {
	if env == nil {
		return nil, nil
	}
	text, err := json.Marshal(env)
	if err != nil {
		return nil, err
	}
	if s.aead == nil {
		return append([]byte{envPlain}, text...), nil
	}
	return s.sealBytes(id, text), nil
}

func (s *sealer) sealBytes(id string, text []byte) []byte {
	n := s.aead.NonceSize()
	out := make([]byte, 1+n, 1+n+len(text)+s.aead.Overhead())
	out[0] = envSealed
	_, _ = rand.Read(out[1:])
	return s.aead.Seal(out, out[1:1+n], text, []byte(id))
}

func (s *sealer) open(id string, kept []byte) (map[string]string, error) {
	if len(kept) == 0 {
		return nil, nil
	}
	text, err := s.openBytes(id, kept)
	if err != nil {
		return nil, nacre.Wrap(nacre.CodeInternal, err, "the environment of a sandbox cannot be read with this installation's secret")
	}
	var env map[string]string
	if err := json.Unmarshal(text, &env); err != nil {
		return nil, nacre.Wrap(nacre.CodeInternal, errors.New("the environment is not JSON"), "the environment of a sandbox cannot be read")
	}
	return env, nil
}

func (s *sealer) openBytes(id string, kept []byte) ([]byte, error) {
	switch {
	case kept[0] == envPlain:
		return kept[1:], nil
	case kept[0] != envSealed:
		return nil, errors.New("unknown form")
	case s.aead == nil:
		return nil, errors.New("sealed, and no key was given")
	case len(kept) < 1+s.aead.NonceSize():
		return nil, errors.New("cut short")
	}
	n := 1 + s.aead.NonceSize()
	return s.aead.Open(nil, kept[1:n], kept[n:], []byte(id))
}

// checkEnvKey refuses a key that is not the one that the database was first
// opened with. Without a key anything but sealed environments can be used.
func (db *DB) checkEnvKey(ctx context.Context) error {
	if db.sealer.aead == nil {
		return nil
	}
	const name, text = "env_key_check", "nacre"
	var kept []byte
	read := func(ctx context.Context, c conn) (bool, error) {
		return c.one(ctx, func(r *sql.Rows) error { return r.Scan(&kept) }, `SELECT value FROM settings WHERE name = ?`, name)
	}
	found, err := read(ctx, db.reads)
	if err != nil {
		return db.fail(ctx, err)
	}
	if !found {
		err := db.write(ctx, func(ctx context.Context, c conn) error {
			_, err := c.exec(ctx, `INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING`,
				name, db.sealer.sealBytes(name, []byte(text)))
			if err == nil {
				_, err = read(ctx, c)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if got, err := db.sealer.openBytes(name, kept); err != nil || string(got) != text {
		return nacre.Wrap(nacre.CodeInvalid, err, "the database was written with another installation's secret; start with that secret, or with another database")
	}
	return nil
}

// keep seals a text of any kind, named for what it belongs to; nil stays nil.
func (s *sealer) keep(name string, text []byte) []byte {
	switch {
	case text == nil:
		return nil
	case s.aead == nil:
		return append([]byte{envPlain}, text...)
	}
	return s.sealBytes(name, text)
}

// reveal is the way back.
func (s *sealer) reveal(name string, kept []byte) ([]byte, error) {
	if len(kept) == 0 {
		return nil, nil
	}
	text, err := s.openBytes(name, kept)
	if err != nil {
		return nil, nacre.Wrap(nacre.CodeInternal, err, "a sealed record cannot be read with this installation's secret")
	}
	return text, nil
}
