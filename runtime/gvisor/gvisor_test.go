package gvisor

import (
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

func TestContract(t *testing.T) {
	nacretest.TestRuntime(t, nacretest.RuntimeHost{
		New: func(t testing.TB) (nacre.Runtime, func()) {
			r := newRuntime(t)
			return r, func() { _ = r.Close() }
		},
		Spec:      newSpec,
		Daemon:    inDaemon,
		Leftovers: leftovers,
	})
}
