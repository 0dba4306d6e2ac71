package nacre_test

import (
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
)

// TestAMisfitSaysWhatDiffersAndWhatHelps: of a snapshot that cannot be restored on a
// host, a user is told what it was taken on, what the host has, which part of it
// differs and what to do.
func TestAMisfitSaysWhatDiffersAndWhatHelps(t *testing.T) {
	host := nacre.Capabilities{Runtime: "gvisor", Snapshots: true, RestoreKey: "gvisor/v2/amd64/aa",
		Others: []nacre.Capabilities{{Runtime: "firecracker", Snapshots: true, RestoreKey: "firecracker/1.12.1/amd64/bb"}}}
	for key, says := range map[string][]string{
		"gvisor/v2/amd64/aa":           nil,
		"firecracker/1.12.1/amd64/bb":  nil,
		"gvisor/v1/amd64/aa":           {"another version of gvisor", "gvisor/v1/amd64/aa", "gvisor/v2/amd64/aa", "the version of nacre and gvisor"},
		"firecracker/1.12.1/amd64/cc":  {"another processor", "firecracker/1.12.1/amd64/cc", "firecracker/1.12.1/amd64/bb", "a host whose processor"},
		"firecracker/1.12.1/arm64/bb":  {"another processor", "arm64"},
		"firecracker/1.12.10/amd64/bb": {"another version of firecracker"},
		"firecracker/1.12/amd64/bb":    {"another version of firecracker"},
		"xen/4/amd64/aa":               {"xen/4/amd64/aa", "offers gvisor and firecracker", "where xen is offered"},
	} {
		err := host.CanRestore("s1", key)
		if says == nil {
			if err != nil {
				t.Errorf("%s: %v", key, err)
			}
			continue
		}
		message := nacre.ErrorMessage(err)
		if !nacre.IsCode(err, nacre.CodeMismatch) || !strings.Contains(message, "s1 does not fit this host") {
			t.Errorf("%s: %v", key, err)
		}
		for _, w := range says {
			if !strings.Contains(message, w) {
				t.Errorf("%s: %q lacks %q", key, message, w)
			}
		}
	}
}
