package e2e

import (
	"os"
	"testing"
)

// TestMiosa walks the whole path with the published MIOSA client, over plain HTTP,
// and over TLS with the local authority what goes another way there.
func TestMiosa(t *testing.T) {
	d := start(t)
	for mode, files := range map[string][]string{
		"http": {"."},
		"tls":  {"test_exec.py", "test_files.py", "test_previews.py", "test_async.py"},
	} {
		t.Run(mode, func(t *testing.T) {
			var flags []string
			if mode == "tls" {
				flags = append(flags, "--tls")
			}
			args := []string{"-m", "pytest", "-q", "-rfs", "--tb=short", "--timeout=120", "-p", "no:cacheprovider", "--durations=5"}
			run(t, "python-miosa", d.env(flags...), os.Getenv(envMiosa), append(args, files...)...)
		})
	}
}
