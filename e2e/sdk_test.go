package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestSDKs walks the whole path with the four published packages, over plain
// HTTP and over TLS with the local authority.
func TestSDKs(t *testing.T) {
	d := start(t)
	for _, mode := range []string{"http", "tls"} {
		var flags []string
		if mode == "tls" {
			flags = append(flags, "--tls")
		}
		env := append(d.env(flags...), "NACRE_MODE="+mode)
		for _, sdk := range []string{"moru", "e2b"} {
			t.Run("python/"+sdk+"/"+mode, func(t *testing.T) {
				run(t, "python", append(env, "NACRE_SDK="+sdk), os.Getenv(envPython),
					"-m", "pytest", "-q", "-rfs", "--tb=short", "--timeout=120", "-p", "no:cacheprovider", "--durations=5", ".")
			})
		}
		for name, pkg := range map[string]string{"moru": "@moru-ai/core", "e2b": "e2b"} {
			t.Run("js/"+name+"/"+mode, func(t *testing.T) {
				// Node looks for packages beside the file.
				dir := filepath.Join(os.Getenv(envNode), "run-"+name+"-"+mode)
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(dir)
				src, err := os.ReadFile("js/suite.test.mjs")
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "suite.test.mjs"), src, 0o644); err != nil {
					t.Fatal(err)
				}
				run(t, dir, append(env, "NACRE_SDK="+pkg), "node", "--test", "--test-force-exit", "--test-reporter=tap", "suite.test.mjs")
			})
		}
	}
}

// run executes a suite and shows its output: its skips are counted by who reads it. It has
// several times what it takes on a host with much other work; pytest ends each test that hangs.
func run(t *testing.T, dir string, env []string, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, env
	out, err := cmd.CombinedOutput()
	if len(out) > 20000 {
		out = out[len(out)-20000:]
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
