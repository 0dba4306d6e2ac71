package nacre

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
)

// Team is a tenant.
type Team struct {
	ID        TeamID
	Name      string
	CreatedAt time.Time
}

// Key is an API key's record. The key itself is shown once and never kept.
type Key struct {
	ID        string // "key_" + 16 characters
	TeamID    TeamID
	Name      string
	Hash      [32]byte // HashKey
	Hint      string   // the first characters, to recognise it by
	CreatedAt time.Time
	RevokedAt time.Time // zero while it is good
	UsedAt    time.Time // a minute coarse; zero for never
}

// KeySecret is the part of an API key that counts: 40 hexadecimal digits. The
// clients of the three services insist on different prefixes ("e2b_", "msk_u_"),
// so one key is good under every one of them.
const keySecretLen = 40

// NewKey returns a key to show once, and its record.
func NewKey(team TeamID, name string, now time.Time) (string, Key) {
	var b [keySecretLen / 2]byte
	_, _ = rand.Read(b[:])
	secret := "e2b_" + hex.EncodeToString(b[:])
	hash, _ := HashKey(secret)
	return secret, Key{
		ID: "key_" + randomID(16), TeamID: team, Name: name,
		Hash: hash, Hint: secret[:8], CreatedAt: now,
	}
}

// HashKey returns what the store looks a key up by, and false for a text that
// cannot be a key: an optional prefix of letters, digits and '_' up to the last
// '_', then 40 lower-case hexadecimal digits. A plain SHA-256 will do: the secret
// has 160 random bits.
func HashKey(key string) ([32]byte, bool) {
	secret := key[strings.LastIndexByte(key, '_')+1:]
	if len(secret) != keySecretLen || len(key) > 2*keySecretLen {
		return [32]byte{}, false
	}
	for i := range len(secret) {
		if c := secret[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return [32]byte{}, false
		}
	}
	return sha256.Sum256([]byte(secret)), true
}

// TeamStore keeps teams and their keys. Errors and concurrency as in SandboxStore.
type TeamStore interface {
	// EnsureTeam returns the team of that name and makes it when there is none.
	// Names are 1 to 64 characters of [a-zA-Z0-9._-].
	EnsureTeam(ctx context.Context, name string) (Team, error)
	// Teams returns all, by name.
	Teams(ctx context.Context) ([]Team, error)
	// InsertKey adds a key.
	InsertKey(ctx context.Context, k Key) error
	// KeyByHash returns a key that is not revoked; else CodeNotFound.
	KeyByHash(ctx context.Context, hash [32]byte) (Key, error)
	// Keys returns a team's keys, newest first, revoked ones too.
	Keys(ctx context.Context, team TeamID) ([]Key, error)
	// RevokeKey makes a key worthless from now on. A repeat changes nothing.
	RevokeKey(ctx context.Context, team TeamID, id string) error
	// KeysUsed notes when keys were used last, by their ids. An earlier time than the
	// one noted changes nothing, and unknown ids are passed over.
	KeysUsed(ctx context.Context, at map[string]time.Time) error
}
