package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed python/drive.py
var driver string

// requirements names the SDKs' versions; the end-to-end tests use the same.
const requirements = "e2e/python/requirements.txt"

// cached makes dir in the cache unless a finished one is there. A half-made one
// lacks the mark.
func cached(ctx context.Context, dir string, make func(dir string) error) error {
	mark := filepath.Join(dir, ".complete")
	if _, err := os.Stat(mark); err == nil {
		return nil
	}
	log.Println("preparing", dir)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := make(dir); err != nil {
		return err
	}
	return os.WriteFile(mark, nil, 0o644)
}

func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// python returns the interpreter of an environment with the SDKs.
func (b *bench) python(ctx context.Context) (string, error) {
	text, err := os.ReadFile(requirements)
	if err != nil {
		return "", fmt.Errorf("%w: run the benchmark from the repository's root", err)
	}
	sum := sha256.Sum256(text)
	dir := filepath.Join(b.cache, "e2e-python-"+hex.EncodeToString(sum[:6]))
	err = cached(ctx, dir, func(dir string) error {
		if err := command(ctx, "python3", "-m", "venv", dir); err != nil {
			return err
		}
		return command(ctx, filepath.Join(dir, "bin/pip"), "install", "-q", "-r", requirements)
	})
	for line := range strings.Lines(string(text)) {
		if name, version, ok := strings.Cut(strings.TrimSpace(line), "=="); ok && name == "moru" {
			b.report.Versions["moru (Python SDK)"] = version
		}
	}
	return filepath.Join(dir, "bin/python"), err
}

// sdk is a running drive.py.
type sdk struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (b *bench) sdk(ctx context.Context, d *daemon) (*sdk, error) {
	python, err := b.python(ctx)
	if err != nil {
		return nil, err
	}
	s := &sdk{cmd: exec.CommandContext(ctx, python, "-c", driver)}
	s.cmd.Env, s.cmd.Stderr = d.env(), os.Stderr
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = bufio.NewReader(out)
	return s, s.cmd.Start()
}

// do runs one of the driver's functions and decodes what it returned.
func (s *sdk) do(into any, call string, args ...any) error {
	if _, err := fmt.Fprintln(s.in, append([]any{call}, args...)...); err != nil {
		return fmt.Errorf("the SDK's driver ended: %w", err)
	}
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("the SDK's driver ended: %w", err)
	}
	return json.Unmarshal(line, into)
}

func (s *sdk) close() {
	_ = s.in.Close()
	_ = s.cmd.Wait()
}
