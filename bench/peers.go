package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// gvisorModule is what is embedded, and what the peer is built from.
const gvisorModule = "gvisor.dev/gvisor"

// runsc builds gVisor's own command from the module in bench/peer, once for each
// version. The module is apart because the command needs more than Nacre does.
func (b *bench) runsc(ctx context.Context) (string, error) {
	text, err := os.ReadFile("bench/peer/go.mod")
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(text), gvisorModule+" v")
	version := "v" + strings.Fields(rest)[0]
	if ours := b.report.Versions["gvisor"]; ours != version {
		return "", fmt.Errorf("bench/peer/go.mod has gVisor %s, and Nacre %s: they must be the same", version, ours)
	}
	dir := filepath.Join(b.cache, "bench-runsc-"+version)
	err = cached(ctx, dir, func(dir string) error {
		return command(ctx, "env", "CGO_ENABLED=0", "go", "build", "-C", "bench/peer", "-trimpath", "-ldflags", "-s -w",
			"-o", filepath.Join(dir, "runsc"), gvisorModule+"/runsc")
	})
	return filepath.Join(dir, "runsc"), err
}

// caddy starts Caddy as a reverse proxy: the host's own, or the distribution's
// package unpacked into the cache.
func (b *bench) caddy(ctx context.Context, to string) (at string, stop func(), err error) {
	program, err := exec.LookPath("caddy")
	if err != nil {
		dir := filepath.Join(b.cache, "bench-caddy")
		err = cached(ctx, dir, func(dir string) error {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			return command(ctx, "sh", "-c", "cd '"+dir+"' && apt-get -q download caddy && dpkg-deb -x caddy_*.deb . && rm caddy_*.deb")
		})
		if err != nil {
			return "", nil, errors.New("no caddy on this host and none to be had from apt")
		}
		program = filepath.Join(dir, "usr/bin/caddy")
	}
	if out, err := exec.CommandContext(ctx, program, "version").Output(); err == nil {
		b.report.Versions["caddy"] = strings.TrimSpace(string(out))
	}
	addr, err := freeAddr()
	if err != nil {
		return "", nil, err
	}
	home, err := os.MkdirTemp("", "nacre-bench-")
	if err != nil {
		return "", nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	config := filepath.Join(home, "Caddyfile")
	text := fmt.Sprintf("{\n\tadmin off\n\tauto_https off\n}\nhttp://:%s {\n\tbind 127.0.0.1\n\treverse_proxy %s\n}\n", port, to)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return "", nil, err
	}
	cmd := exec.Command(program, "run", "--config", config, "--adapter", "caddyfile")
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_DATA_HOME="+home, "XDG_CONFIG_HOME="+home)
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		_ = os.RemoveAll(home)
	}
	for range 100 {
		if fetch(ctx, http.DefaultClient, "http://"+addr) == nil {
			return "http://" + addr, stop, nil
		}
		if err = pause(ctx, 50*time.Millisecond); err != nil {
			break
		}
	}
	stop()
	return "", nil, errors.New("caddy did not start to answer")
}
