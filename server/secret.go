package server

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/atomicfile"
)

// secrets are derived from the one secret of an installation, DATA-DIR/secret.
type secrets struct {
	tokens   nacre.TokenKey
	env      [32]byte // encrypts the environments of sandboxes at rest
	instance string   // names this installation's kernel objects
}

// cgroup is the parent of all machines' cgroups of this installation.
func (s secrets) cgroup() string { return "nacre-" + s.instance }

// loadSecrets reads the installation's secret and makes it on the first start.
// Losing the file makes every token worthless, so it is written and synced
// before anything uses it.
func loadSecrets(dir string) (secrets, error) {
	path := filepath.Join(dir, "secret")
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		var b [32]byte
		_, _ = rand.Read(b[:])
		text = []byte(hex.EncodeToString(b[:]) + "\n")
		err = atomicfile.Write(path, text, 0o600)
	}
	if err != nil {
		return secrets{}, fmt.Errorf("installation secret: %w", err)
	}
	return parseSecrets(path, text)
}

// instanceOf names the installation on a data directory, "" while there is none.
func instanceOf(dir string) string {
	path := filepath.Join(dir, "secret")
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	s, _ := parseSecrets(path, text)
	return s.instance
}

func parseSecrets(path string, text []byte) (secrets, error) {
	root, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(root) != 32 {
		return secrets{}, fmt.Errorf("installation secret %s: want 64 hexadecimal digits", path)
	}
	var s secrets
	derive := func(label string, out []byte) error {
		b, err := hkdf.Key(sha256.New, root, nil, "nacre "+label, len(out))
		copy(out, b)
		return err
	}
	var id [3]byte
	if err := errors.Join(derive("tokens", s.tokens[:]), derive("env", s.env[:]), derive("instance", id[:])); err != nil {
		return secrets{}, err
	}
	s.instance = hex.EncodeToString(id[:])
	return s, nil
}
