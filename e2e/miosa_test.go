package e2e

import (
	"os"
	"testing"
)

// TestMiosa walks the whole path with the published MIOSA client.
func TestMiosa(t *testing.T) {
	d := start(t)
	run(t, "python-miosa", d.env(), os.Getenv(envMiosa),
		"-m", "pytest", "-q", "-rfs", "--tb=short", "--timeout=120", "-p", "no:cacheprovider", "--durations=5", ".")
}
