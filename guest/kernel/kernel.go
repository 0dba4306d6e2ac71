// Package kernel carries the recipe of the guest kernel of Firecracker machines: a
// commented list of options, and a script that builds it from Debian's source.
package kernel

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed config
var config []byte

//go:embed build.sh
var script []byte

// Build makes the kernel below cache, unless it is there, and returns its path. It
// needs Debian's apt, root when packages are missing, 2 GiB of disk while it builds,
// and a quarter of an hour of one processor. progress gets what the build says.
func Build(ctx context.Context, cache string, progress io.Writer) (string, error) {
	dir, err := os.MkdirTemp("", "nacre-guest-kernel-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	for name, b := range map[string][]byte{"config": config, "build.sh": script} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o700); err != nil {
			return "", err
		}
	}
	var out bytes.Buffer
	c := exec.CommandContext(ctx, "sh", filepath.Join(dir, "build.sh"))
	c.Env = append(os.Environ(), "NACRE_CACHE="+cache)
	c.Stdout, c.Stderr = &out, progress
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("guest kernel: %w", err)
	}
	return strings.TrimSpace(out.String()), nil
}
