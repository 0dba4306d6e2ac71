package miosa

import (
	"maps"
	"slices"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

type envVar struct {
	Key       string `json:"key"`
	Value     string `json:"value"`
	Encrypted bool   `json:"encrypted"`
}

// listEnv lists what was set at create.
func (a *API) listEnv(c *api.Call) error {
	s, err := a.alive(c)
	if err != nil {
		return err
	}
	out := []envVar{}
	for _, k := range slices.Sorted(maps.Keys(s.Env)) {
		out = append(out, envVar{Key: k, Value: s.Env[k]})
	}
	return list(c, out)
}

// changeEnv refuses: the environment is what it was created with.
func (a *API) changeEnv(c *api.Call) error {
	if _, err := a.alive(c); err != nil {
		return err
	}
	return errEnvReadOnly()
}

func errEnvReadOnly() error {
	err := nacre.Errorf(nacre.CodeConflict, "env is read-only once a sandbox was created; give variables to each exec, or create another sandbox")
	err.Field = "env"
	return as("ENV_READ_ONLY", err)
}
