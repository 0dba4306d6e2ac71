package server

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestDoctorOnTheAddressPool: without a server, too, it tells whether the configured
// pool could be used here, and looking makes nothing.
func TestDoctorOnTheAddressPool(t *testing.T) {
	dir := t.TempDir()
	find := func(pool string) Finding {
		for _, f := range networkFindings(Config{DataDir: dir, NetworkPool: pool}) {
			if f.ID == "network" || strings.HasPrefix(f.ID, "network pool") {
				return f
			}
		}
		return Finding{}
	}
	for _, c := range []struct{ pool, level, says string }{
		{"", "ok", "sandboxes would have addresses of"},
		{"127.0.0.0/16", "fail", "overlaps the address 127.0.0.0/8"}, // the loopback's, on any host
		{"10.0.0.0/8", "fail", "/12 to /28"},
	} {
		f := find(c.pool)
		if f.Level != c.level || !strings.Contains(f.What, c.says) || (f.Level == "fail") != strings.Contains(f.Advice, "--network-pool") {
			t.Errorf("%q: %+v", c.pool, f)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := loadSecrets(dir); err != nil {
		t.Fatal(err)
	}
	if f := find(""); f.Level != "ok" {
		t.Errorf("after a first start: %+v", f)
	}
}
