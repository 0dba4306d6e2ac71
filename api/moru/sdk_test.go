package moru

import (
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// The published clients against the handler: their parsers are the judges of the
// shapes. NACRE_SDK_PYTHON names an interpreter with the packages moru and e2b,
// NACRE_SDK_NODE_MODULES a folder with @moru-ai/core and e2b.

// watched serves the dialect and keeps metrics coming for every sandbox made.
func watched(t *testing.T) (*harness, string) {
	h := newHarness(t)
	h.now = time.Now()
	h.service.OnCreate = func(id nacre.SandboxID) {
		h.service.AddMetric(id, nacre.Metric{Time: time.Now(), CPUCount: 2, CPUUsedPct: 1.5, MemUsed: 1 << 20, MemTotal: 1 << 30, DiskTotal: 1 << 32})
	}
	srv := httptest.NewServer(h.handler)
	t.Cleanup(srv.Close)
	return h, srv.URL
}

func runClient(t *testing.T, h *harness, url string, dir string, argv ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		"MORU_API_URL="+url, "MORU_API_KEY="+h.keyA, "E2B_API_URL="+url, "E2B_API_KEY="+h.keyA,
		"OTHER_KEY="+h.keyB, "PYTHONDONTWRITEBYTECODE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, h.log)
	}
}

func TestPythonClients(t *testing.T) {
	python := os.Getenv("NACRE_SDK_PYTHON")
	if python == "" {
		python = "python3"
	}
	for _, pkg := range []string{"moru", "e2b"} {
		t.Run(pkg, func(t *testing.T) {
			if err := exec.CommandContext(t.Context(), python, "-c", "import "+pkg).Run(); err != nil {
				t.Skipf("%s has no package %s; set NACRE_SDK_PYTHON", python, pkg)
			}
			h, url := watched(t)
			runClient(t, h, url, ".", python, "testdata/client.py", pkg)
		})
	}
}

func TestJavaScriptClients(t *testing.T) {
	modules := os.Getenv("NACRE_SDK_NODE_MODULES")
	for _, pkg := range []string{"@moru-ai/core", "e2b"} {
		t.Run(pkg, func(t *testing.T) {
			node, err := exec.LookPath("node")
			if err != nil {
				t.Skip("node is not installed")
			}
			if _, err := os.Stat(filepath.Join(modules, pkg)); modules == "" || err != nil {
				t.Skipf("no package %s; set NACRE_SDK_NODE_MODULES", pkg)
			}
			h, url := watched(t)
			script, err := filepath.Abs("testdata/client.cjs")
			if err != nil {
				t.Fatal(err)
			}
			t.Setenv("NODE_PATH", modules)
			runClient(t, h, url, t.TempDir(), node, script, pkg)
		})
	}
}
