package api

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// KeyStore is the part of nacre.TeamStore that requests need.
type KeyStore interface {
	KeyByHash(ctx context.Context, hash [32]byte) (nacre.Key, error)
	KeysUsed(ctx context.Context, at map[string]time.Time) error
}

// A key found is believed for keyTTL, so a revoked one is worthless within a
// second everywhere. A key not found is asked for anew each time: strangers
// cannot fill the memory, and a new key is good at once.
const (
	keyTTL     = 500 * time.Millisecond
	keyEntries = 4096
)

// That a key was used is written once in useEvery, and useAfter behind the request:
// whoever was let in does something now that is written too.
const (
	useEvery = time.Minute
	useAfter = 250 * time.Millisecond
)

// Auth turns API keys into teams. Keys are looked up by the hash of their 160
// random bits, so how long a look-up takes tells nothing about them.
type Auth struct {
	keys  KeyStore
	clock nacre.Clock
	wake  chan struct{} // of Run: there is something in used

	mu    sync.Mutex
	known map[[32]byte]knownKey
	told  map[string]time.Time // when a key's use was put into used
	used  map[string]time.Time // what Run is to write
}

type knownKey struct {
	key nacre.Key
	at  time.Time
}

// NewAuth returns an Auth over the store. All dialects may share one.
// Run it as well, or nothing is kept of when keys were used.
func NewAuth(keys KeyStore, clock nacre.Clock) *Auth {
	if clock == nil {
		clock = time.Now
	}
	return &Auth{keys: keys, clock: clock, wake: make(chan struct{}, 1),
		known: map[[32]byte]knownKey{}, told: map[string]time.Time{}, used: map[string]time.Time{}}
}

// Run writes when keys were used until ctx ends. A write that fails is not repeated:
// the key's next minute is written again.
func (a *Auth) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.wake:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(useAfter):
		}
		a.mu.Lock()
		used := a.used
		a.used = map[string]time.Time{}
		a.mu.Unlock()
		_ = a.keys.KeysUsed(ctx, used)
	}
}

// use remembers for Run that a key was used. The caller holds mu.
func (a *Auth) use(id string) {
	now := a.clock()
	if age := now.Sub(a.told[id]); age >= 0 && age < useEvery {
		return
	}
	if len(a.told) >= keyEntries {
		clear(a.told)
	}
	a.told[id], a.used[id] = now, now
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Key returns the record of a good key. None, an unknown and a revoked one are
// CodeUnauthenticated; a store that does not answer is CodeUnavailable.
func (a *Auth) Key(ctx context.Context, key string) (nacre.Key, error) {
	if key == "" {
		return nacre.Key{}, nacre.Errorf(nacre.CodeUnauthenticated,
			"no API key was sent; put it in the header X-API-Key or Authorization: Bearer")
	}
	hash, ok := nacre.HashKey(key)
	if !ok {
		return nacre.Key{}, badKey()
	}
	if k, ok := a.cached(hash); ok {
		return k, nil
	}
	asked := a.clock() // before the look-up: a revocation after it must count from here
	k, err := a.keys.KeyByHash(ctx, hash)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return nacre.Key{}, badKey()
	}
	if err != nil {
		return nacre.Key{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= keyEntries {
		clear(a.known)
	}
	a.known[hash] = knownKey{k, asked}
	a.use(k.ID)
	return k, nil
}

// Forget makes the next look-up of every key a fresh one; for whoever has just
// revoked one in this process.
func (a *Auth) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.known)
}

func (a *Auth) cached(hash [32]byte) (nacre.Key, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok := a.known[hash]
	age := a.clock().Sub(k.at)
	if !ok || age < 0 || age >= keyTTL {
		delete(a.known, hash)
		return nacre.Key{}, false
	}
	a.use(k.key.ID)
	return k.key, true
}

func badKey() error {
	return nacre.Errorf(nacre.CodeUnauthenticated, "this API key is not known or has been revoked; check it, or make a new one")
}

// Credential returns the key that a request presents: X-API-Key, else a bearer
// token, else "". Clients with both mean the former.
func Credential(r *http.Request) string {
	if key := r.Header.Get("X-Api-Key"); key != "" {
		return strings.TrimSpace(key)
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token)
	}
	return ""
}
