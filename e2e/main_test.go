// Package e2e runs the real binary with the published SDKs, as a user would, on
// a host of its own: a network namespace whose uplink leads to a fake internet.
package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nacrehq/nacre/image/base"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/runtime/gvisor"
)

// The outer process, which has the real network, prepares what is downloaded and
// tells the inner one, which has not, where it is.
const (
	envPython = "NACRE_E2E_PYTHON" // interpreter of the virtual environment
	envMiosa  = "NACRE_E2E_MIOSA"  // that of the one with the package miosa
	envNode   = "NACRE_E2E_NODE"   // folder with node_modules
	envBinary = "NACRE_E2E_BINARY"
	envCache  = "NACRE_CACHE_DIR"
)

func TestMain(m *testing.M) {
	if gvisor.Main() { // a sandbox of a server that runs in this process
		return
	}
	if os.Getenv(envBinary) == "" {
		if os.Geteuid() != 0 {
			log.Fatal("the end-to-end tests make network namespaces and cgroups; run them as root")
		}
		if err := prepare(); err != nil {
			log.Fatal(err)
		}
	}
	os.Exit(fakenet.Main(m))
}

func prepare() error {
	cache := os.Getenv(envCache)
	if cache == "" {
		cache = "/var/cache/nacre"
	}
	bin, err := filepath.Abs("../bin/nacre")
	if err != nil {
		return err
	}
	if _, err := os.Stat(bin); err != nil {
		return fmt.Errorf("%w: run `make build` first", err)
	}
	python, err := pythonSDKs(cache, "python")
	if err != nil {
		return fmt.Errorf("Python SDKs: %w", err)
	}
	miosa, err := pythonSDKs(cache, "python-miosa")
	if err != nil {
		return fmt.Errorf("MIOSA's Python SDK: %w", err)
	}
	node, err := nodeSDKs(cache)
	if err != nil {
		return fmt.Errorf("JavaScript SDKs: %w", err)
	}
	last := ""
	if _, err := base.Build(context.Background(), base.Options{CacheDir: cache, Progress: func(step string, _, _ int64) {
		if step != last {
			last = step
			log.Println("base image:", step)
		}
	}}); err != nil {
		return fmt.Errorf("base image: %w", err)
	}
	for k, v := range map[string]string{envBinary: bin, envPython: python, envMiosa: miosa, envNode: node, envCache: cache} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	return nil
}

// pythonSDKs makes a virtual environment once for each requirements.txt.
func pythonSDKs(cache, suite string) (string, error) {
	requirements := suite + "/requirements.txt"
	return once(cache, suite, requirements, "bin/python", func(dir string) error {
		if err := command("", "python3", "-m", "venv", dir); err != nil {
			return err
		}
		return command("", filepath.Join(dir, "bin/pip"), "install", "-q", "-r", requirements)
	})
}

func nodeSDKs(cache string) (string, error) {
	path, err := once(cache, "node", "js/package.json", "node_modules", func(dir string) error {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := command("", "cp", "js/package.json", dir); err != nil {
			return err
		}
		return command(dir, "npm", "install", "--no-audit", "--no-fund")
	})
	return filepath.Dir(path), err
}

// once makes cache/e2e-<name>-<hash of the file> unless it is there, and returns
// the path of want in it. A half-made one has another name.
func once(cache, name, file, want string, make func(dir string) error) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	dir := filepath.Join(cache, "e2e-"+name+"-"+hex.EncodeToString(sum[:6]))
	mark := filepath.Join(dir, ".complete")
	if _, err := os.Stat(mark); err == nil {
		return filepath.Join(dir, want), nil
	}
	log.Println("preparing", dir)
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	if err := make(dir); err != nil {
		return "", err
	}
	return filepath.Join(dir, want), os.WriteFile(mark, nil, 0o644)
}

func command(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
