package kernel

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nacrehq/nacre/runtime/firecracker"
)

func sum(b ...[]byte) string {
	h := sha256.Sum256(bytes.Join(b, nil))
	return hex.EncodeToString(h[:])
}

var banner = regexp.MustCompile(`Linux version [^\x00\n]* #(\S+) SMP [^\x00\n]*`)

// TestPinnedKernel: what `nacre setup firecracker` downloads is what these options give.
func TestPinnedKernel(t *testing.T) {
	if got := sum(config); got != firecracker.PinnedKernelOptions {
		t.Fatalf("the options (sum %s) are not those of the pinned kernel: run `make guest-kernel`, publish the result and pin it in runtime/firecracker/release.go", got)
	}
	if !strings.HasPrefix(firecracker.PinnedKernelURL, "https://") || len(firecracker.PinnedKernelSHA256) != 64 {
		t.Errorf("%s, %s", firecracker.PinnedKernelURL, firecracker.PinnedKernelSHA256)
	}
	pinned := banner.FindStringSubmatch(firecracker.PinnedKernelBanner)
	if pinned == nil {
		t.Fatalf("the banner %q names no package", firecracker.PinnedKernelBanner)
	}
	version, _, _ := strings.Cut(pinned[1], "~")
	if !strings.Contains(firecracker.PinnedKernelURL, version) {
		t.Errorf("%s is not of %s", firecracker.PinnedKernelURL, version)
	}
	// The same name as in build.sh.
	key := sum(config, script, fmt.Appendln(nil, pinned[1]))[:16]
	path := filepath.Join(cmp.Or(os.Getenv("NACRE_CACHE"), "/var/cache/nacre"), "guest-kernel-"+key, "vmlinux")
	built, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("SKIP: no kernel of linux-source %s was built here to compare with (make guest-kernel): %v", pinned[1], err)
	}
	switch got := string(banner.Find(built)); {
	case got != firecracker.PinnedKernelBanner:
		t.Skipf("SKIP: %s was built by another compiler or linker, whose bytes differ: %s", path, got)
	case sum(built) != firecracker.PinnedKernelSHA256:
		t.Errorf("%s has the sum %s, and %s is pinned", path, sum(built), firecracker.PinnedKernelSHA256)
	}
}
