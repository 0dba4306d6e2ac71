package firecracker

import (
	"os"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

func TestRuntime(t *testing.T) { nacretest.TestRuntime(t, suiteHost(newSpec)) }

// TestLargePagesSnapshots: what a snapshot and a copy are does not depend on the size of
// the host's pages.
func TestLargePagesSnapshots(t *testing.T) {
	largePages(t, 6*HugePagesFor(128)) // as many machines as a case has at a time
	nacretest.TestSnapshots(t, suiteHost(func(t testing.TB) nacre.MachineSpec {
		s := newSpec(t)
		s.Resources.HugePages = true
		return s
	}))
}

func suiteHost(spec func(testing.TB) nacre.MachineSpec) nacretest.RuntimeHost {
	return nacretest.RuntimeHost{
		New: func(t testing.TB) (nacre.Runtime, func()) {
			r := newRuntime(t)
			return r, func() { check(t, r.Close()) }
		},
		Spec:      spec,
		Daemon:    inDaemon,
		Leftovers: leftovers,
	}
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
