package firecracker

import (
	"os"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

func TestRuntime(t *testing.T) {
	nacretest.TestRuntime(t, nacretest.RuntimeHost{
		New: func(t testing.TB) (nacre.Runtime, func()) {
			r := newRuntime(t)
			return r, func() { check(t, r.Close()) }
		},
		Spec:      func(t testing.TB) nacre.MachineSpec { return newSpec(t) },
		Daemon:    inDaemon,
		Leftovers: leftovers,
	})
}

// The host that the tests run on can run guests, by definition; the one that is
// around it need not.
func TestProbe(t *testing.T) {
	self, err := os.Executable()
	check(t, err)
	if err := Probe(t.Context(), self); err != nil {
		t.Error(err)
	}
}
