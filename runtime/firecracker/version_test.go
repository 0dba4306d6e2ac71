package firecracker

import (
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
)

// TestKnownHolesAreRefused: by the CVE's name, unless a test asks for them.
func TestKnownHolesAreRefused(t *testing.T) {
	for _, c := range []struct {
		v           version
		vmm, jailer string // the reason, "" for none
	}{
		{version{1, 11, 9}, "too old", "too old"},
		{version{1, 12, 1}, "", "CVE-2026-1386"},
		{version{1, 13, 0}, "CVE-2026-5747", "CVE-2026-1386"},
		{version{1, 13, 1}, "CVE-2026-5747", "CVE-2026-1386"},
		{version{1, 13, 2}, "CVE-2026-5747", ""},
		{version{1, 14, 0}, "CVE-2026-5747", "CVE-2026-1386"},
		{version{1, 14, 3}, "CVE-2026-5747", ""},
		{version{1, 14, 4}, "", ""},
		{version{1, 15, 0}, "CVE-2026-5747", ""},
		{version{1, 15, 1}, "", ""},
		{version{1, 16, 0}, "", ""},
		{version{2, 0, 0}, "", ""},
	} {
		for jailer, want := range map[bool]string{false: c.vmm, true: c.jailer} {
			err := checkVersion(c.v, jailer, false)
			if (err == nil) != (want == "") || err != nil && (!strings.Contains(nacre.ErrorMessage(err), want) || !nacre.IsCode(err, nacre.CodeUnsupported)) {
				t.Errorf("%s, jailer %v: %v, want %q", c.v, jailer, err, want)
			}
			if err := checkVersion(c.v, jailer, true); (err == nil) != (want != "too old") {
				t.Errorf("%s, jailer %v, holes allowed: %v", c.v, jailer, err)
			}
		}
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]version{
		"Firecracker v1.12.1\n\nSupported snapshot data format versions: v7.0.0\n": {1, 12, 1},
		"Jailer v1.16.0": {1, 16, 0},
	} {
		if got, err := parseVersion(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "Firecracker", "v1.2", "v99999999999999999999.0.0"} {
		if v, err := parseVersion(text); err == nil {
			t.Errorf("%q is %v", text, v)
		}
	}
}
