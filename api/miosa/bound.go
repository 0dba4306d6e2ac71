package miosa

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// boundTTL is how long a sandbox's placeholders are believed: so late a binding that
// was made by another process shows.
const boundTTL = 5 * time.Second

// boundEntries is how many sandboxes' placeholders are remembered.
const boundEntries = 4096

// bound remembers which variables of a sandbox stand for secrets. Commands get them
// whether or not the store answers.
type bound struct {
	api *API
	mu  sync.Mutex
	of  map[nacre.SandboxID]boundEnv
}

type boundEnv struct {
	env map[string]string
	at  time.Time
}

// add puts the placeholders into a command's environment, behind what the command
// has itself.
func (b *bound) add(ctx context.Context, g *guest, env map[string]string) map[string]string {
	known := b.env(ctx, g)
	if len(known) == 0 {
		return env
	}
	out := maps.Clone(known)
	maps.Copy(out, env)
	return out
}

func (b *bound) env(ctx context.Context, g *guest) map[string]string {
	if b.api.Secrets == nil {
		return nil
	}
	b.mu.Lock()
	was, ok := b.of[g.id]
	b.mu.Unlock()
	now := b.api.Clock()
	if age := now.Sub(was.at); ok && age >= 0 && age < boundTTL {
		return was.env
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	uses, err := b.api.Secrets.SecretBindings(ctx, g.team, nacre.SecretFilter{Sandbox: g.id})
	if err != nil {
		return was.env
	}
	env := map[string]string{}
	for _, u := range uses {
		if u.Env != "" {
			env[u.Env] = u.Placeholder
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.of) >= boundEntries {
		clear(b.of)
	}
	b.of[g.id] = boundEnv{env, now}
	return env
}

func (b *bound) forget(id nacre.SandboxID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.of, id)
}

func (b *bound) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.of)
}
