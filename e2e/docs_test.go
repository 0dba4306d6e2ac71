package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDocsRunAsWritten: what a newcomer copies from the pages works.
func TestDocsRunAsWritten(t *testing.T) {
	d := start(t, "--standby", "1")
	for _, c := range []struct {
		page, from, to string // what is run begins with from and ends before to
		python         string // the first python3 of the PATH
		want           string
	}{
		{"README.md", "from moru import", "```", os.Getenv(envPython), "hello world\n"},
		{"README.md", "bin/nacre run -- uname -a", "`", os.Getenv(envPython), "Linux"},
		{"README.md", "bin/nacre ps", "`", os.Getenv(envPython), "RUNTIME"},
		{"docs/miosa.md", "python3 -c 'from miosa import", "\n\n", os.Getenv(envMiosa), "Linux"},
	} {
		page, err := os.ReadFile(filepath.Join("..", c.page))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, found := strings.Cut(string(page), c.from)
		text, _, ended := strings.Cut(rest, c.to)
		if !found || !ended {
			t.Errorf("%s has no %q", c.page, c.from)
			continue
		}
		text = strings.ReplaceAll(c.from+text, "\n    with", "\nwith") // of a block that is marked by its indentation
		name, args := "sh", []string{"-c", text}
		if strings.HasPrefix(text, "from ") {
			name, args = c.python, []string{"-c", text}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = ".."
		cmd.Env = append(d.env(), "NACRE_DATA_DIR="+d.dir, "PATH="+filepath.Dir(c.python)+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v, want %q:\n%s\n%s", c.page, err, c.want, text, out)
		}
	}
}
