// Package e2e runs the real binary with the published SDKs, as a user would, on
// a host of its own: a network namespace whose uplink leads to a fake internet.
package e2e

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/e2e/cached"
	"github.com/nacrehq/nacre/image/base"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/runtime/gvisor"
)

// The outer process, which has the real network, prepares what is downloaded and
// tells the inner one, which has not, where it is.
const (
	envPython = "NACRE_E2E_PYTHON" // interpreter of the virtual environment
	envMiosa  = "NACRE_E2E_MIOSA"  // that of the one with the package miosa
	envNode   = "NACRE_E2E_NODE"   // folder with node_modules
	envBinary = "NACRE_E2E_BINARY"
	envCache  = cached.Variable

	// Where the server's machines are of this runtime, which NACRE_RUNTIME says to the
	// server too, a test knows what else root in a guest may do.
	envRuntime = "NACRE_RUNTIME"
	// envSlowness is how many times as long tests may wait here as on a real host; 1
	// where it is not set.
	envSlowness = "NACRE_TEST_SLOWNESS"
)

// slow is how long a test may wait here for what takes a real host no longer than d.
func slow(d time.Duration) time.Duration {
	if n, err := strconv.Atoi(os.Getenv(envSlowness)); err == nil && n > 1 {
		return d * time.Duration(n)
	}
	return d
}

// microVMs tells that the machines have a kernel of their own.
func microVMs() bool { return os.Getenv(envRuntime) == string(nacre.RuntimeFirecracker) }

func TestMain(m *testing.M) {
	if gvisor.Main() { // a sandbox of a server that runs in this process
		return
	}
	if os.Getenv(envBinary) == "" {
		if os.Geteuid() != 0 {
			log.Fatal("the end-to-end tests make network namespaces and cgroups; run them as root")
		}
		if err := prepare(); err != nil {
			log.Fatal(err)
		}
	}
	os.Exit(fakenet.Main(m))
}

func prepare() error {
	cache := cached.Dir()
	bin, err := filepath.Abs("../bin/nacre")
	if err != nil {
		return err
	}
	if _, err := os.Stat(bin); err != nil {
		return fmt.Errorf("%w: run `make build` first", err)
	}
	python, err := pythonSDKs("python")
	if err != nil {
		return fmt.Errorf("Python SDKs: %w", err)
	}
	miosa, err := pythonSDKs("python-miosa")
	if err != nil {
		return fmt.Errorf("MIOSA's Python SDK: %w", err)
	}
	node, err := nodeSDKs()
	if err != nil {
		return fmt.Errorf("JavaScript SDKs: %w", err)
	}
	last := ""
	if _, err := base.Build(context.Background(), base.Options{CacheDir: cache, Progress: func(step string, _, _ int64) {
		if step != last {
			last = step
			log.Println("base image:", step)
		}
	}}); err != nil {
		return fmt.Errorf("base image: %w", err)
	}
	for k, v := range map[string]string{envBinary: bin, envPython: python, envMiosa: miosa, envNode: node, envCache: cache} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	return nil
}

func pythonSDKs(suite string) (string, error) {
	return cached.Python(suite, suite+"/requirements.txt")
}

func nodeSDKs() (string, error) {
	return cached.Node("node", "js/package.json")
}

func command(dir, name string, args ...string) error { return cached.Command(dir, name, args...) }
