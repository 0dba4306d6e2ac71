// Package cached keeps what the end-to-end tests install, by the hash of what asks
// for it, beside the other things that are expensive to make.
package cached

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Variable of the environment that says where it is kept.
const Variable = "NACRE_CACHE_DIR"

// Dir is where it is kept.
func Dir() string {
	if d := os.Getenv(Variable); d != "" {
		return d
	}
	return "/var/cache/nacre"
}

// Python makes a virtual environment for a requirements.txt and returns its
// interpreter.
func Python(name, requirements string) (string, error) {
	return Once(name, requirements, "bin/python", func(dir string) error {
		if err := Command("", "python3", "-m", "venv", dir); err != nil {
			return err
		}
		return Command("", filepath.Join(dir, "bin/pip"), "install", "-q", "-r", requirements)
	})
}

// Node installs what a package.json asks for and returns the folder with node_modules.
func Node(name, packages string) (string, error) {
	path, err := Once(name, packages, "node_modules", func(dir string) error {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := Command("", "cp", packages, dir); err != nil {
			return err
		}
		return Command(dir, "npm", "install", "--no-audit", "--no-fund")
	})
	return filepath.Dir(path), err
}

// Once makes e2e-<name>-<hash of the file> unless it is there, and returns the path
// of want in it. A half-made one is made again.
func Once(name, file, want string, make func(dir string) error) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	dir := filepath.Join(Dir(), "e2e-"+name+"-"+hex.EncodeToString(sum[:6]))
	mark := filepath.Join(dir, ".complete")
	if _, err := os.Stat(mark); err == nil {
		return filepath.Join(dir, want), nil
	}
	log.Println("preparing", dir)
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(Dir(), 0o755); err != nil {
		return "", err
	}
	if err := make(dir); err != nil {
		return "", err
	}
	return filepath.Join(dir, want), os.WriteFile(mark, nil, 0o644)
}

// Command runs a program in dir; an error tells what it said.
func Command(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
