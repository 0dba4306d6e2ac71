// Package agentbin carries the guest agent inside the nacre binary. `make`
// builds cmd/nacre-agent into assets before it builds cmd/nacre.
package agentbin

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nacrehq/nacre/internal/atomicfile"
)

//go:embed all:assets
var assets embed.FS

// Extract writes the agent below dir, under a name that says its content, and
// returns the path. Machines of an older version keep theirs.
func Extract(dir string) (string, error) {
	bin, err := assets.ReadFile("assets/nacre-agent")
	if errors.Is(err, os.ErrNotExist) {
		return "", errors.New("this binary was built without the guest agent; build it with `make build`")
	}
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(bin)
	path := filepath.Join(dir, "nacre-agent-"+hex.EncodeToString(sum[:8]))
	if st, err := os.Stat(path); err == nil && st.Size() == int64(len(bin)) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := atomicfile.Write(path, bin, 0o555); err != nil {
		return "", fmt.Errorf("guest agent: %w", err)
	}
	return path, nil
}
