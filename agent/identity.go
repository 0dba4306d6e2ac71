package agent

import (
	"crypto/subtle"
	"maps"
	"sync"

	"github.com/nacrehq/nacre/agent/envd"
)

// fallbackUser is the default user of a guest that was told none.
const fallbackUser = "user"

// identity is what the guest was told by Init. It lives in memory only: the
// environment holds secrets, and a file or the agent's own environment would
// show them to every process.
type identity struct {
	mu   sync.Mutex
	told told
}

// told is one consistent view of the identity. env must not be written to.
type told struct {
	inited      bool
	accessToken string
	hostToken   string
	env         map[string]string
	defaultUser string
	defaultCwd  string
}

func (i *identity) get() told {
	i.mu.Lock()
	defer i.mu.Unlock()
	t := i.told
	if t.defaultUser == "" {
		t.defaultUser = fallbackUser
	}
	return t
}

// set applies an Init if hostToken is the one that the first Init set. The
// check and the change are one step, so that of two first Inits one loses.
func (i *identity) set(presented string, in *envd.InitRequest) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.told.inited && !sameToken(presented, i.told.hostToken) {
		return false
	}
	host := in.HostToken
	if host == "" {
		host = i.told.hostToken
	}
	i.told = told{
		inited:      true,
		accessToken: in.AccessToken,
		hostToken:   host,
		env:         maps.Clone(in.EnvVars),
		defaultUser: in.DefaultUser,
		defaultCwd:  in.DefaultWorkdir,
	}
	return true
}

// sameToken compares in constant time.
func sameToken(given, want string) bool {
	return subtle.ConstantTimeCompare([]byte(given), []byte(want)) == 1
}
