package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestWarmTemplate: a sandbox of a template with a start command goes on from the
// state behind it, and what the command left running answers at once; nothing of how
// it was made is left, and a restart makes it no second time.
func TestWarmTemplate(t *testing.T) {
	d := start(t, "--standby", "0", "--memory-mib", "512", "--warm=true")
	c := d.client()
	for round := range 2 {
		var made struct{ SandboxID, BootPath string }
		d.eventually(2*patience, func() error {
			a := d.call(d.note().APIKey, http.MethodPost, "/sandboxes", map[string]any{"templateID": "python", "timeout": 60})
			if err := a.decode(&made); err != nil || a.Status != http.StatusCreated {
				return fmt.Errorf("status %d, %w", a.Status, err)
			}
			if made.BootPath != "warm" {
				_ = c.Kill(t.Context(), made.SandboxID)
				return fmt.Errorf("it came to be %s", made.BootPath)
			}
			return nil
		})
		sb, err := c.Connect(t.Context(), made.SandboxID)
		if err != nil {
			t.Fatal(err)
		}
		out, err := sb.Run(t.Context(), `curl -s --unix-socket /tmp/.python/sock --data-binary 'import sys; print(6 * 7, "ssl" in sys.modules)' http://python/`)
		if err != nil || strings.TrimSpace(out.Stdout) != "42 True" {
			t.Errorf("round %d: %+v, %v", round, out, err)
		}
		d.agree()
		if err := sb.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		d.stop()
		d.up()
		c = d.client()
	}
}
