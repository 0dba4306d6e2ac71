package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nacrehq/nacre/client"
	"github.com/nacrehq/nacre/nacretest/fakenet"
)

// daemon is a `nacre up` on a data directory of its own, which may be killed and
// started again.
type daemon struct {
	t    testing.TB
	dir  string
	args []string
	bin  string

	cmd  *exec.Cmd
	log  *tail
	done chan struct{} // closed when cmd has ended
	err  error         // of cmd, once done
}

// start runs a server until the test ends and waits until it is ready. Its
// sandboxes end with the test too.
func start(t testing.TB, args ...string) *daemon {
	t.Helper()
	d := prepared(t, args...)
	d.up()
	return d
}

// prepared is a data directory without a server yet, on a host with a fake
// internet.
func prepared(t testing.TB, args ...string) *daemon {
	t.Helper()
	fakenet.Start(t)
	dir, err := os.MkdirTemp("", "nacre-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, dir: dir, bin: os.Getenv(envBinary), log: &tail{},
		args: append([]string{"up", "--data-dir", dir, "--cache-dir", os.Getenv(envCache), "--install=false", "--log-level", "warn", "--warm=false",
			"--http", freeAddr(t), "--https", freeAddr(t)}, args...)}
	t.Cleanup(d.destroy)
	if microVMs() { // from what the environment names
		if out, err := exec.Command(d.bin, "setup", "firecracker", "--data-dir", dir, "--allow-known-holes").CombinedOutput(); err != nil {
			t.Fatalf("nacre setup firecracker: %v\n%s", err, out)
		}
	}
	return d
}

// lastPort is the last that freeAddr took. Those from 32768 on are the ones that the
// kernel gives to connections (ip_local_port_range), which could have a server's while it
// is down.
var lastPort atomic.Int32

func init() { lastPort.Store(20000) }

// freeAddr returns an address that nothing listens on, and that nobody takes before the
// server does or while it is restarted: the namespace is the tests' own.
func freeAddr(t testing.TB) string {
	t.Helper()
	for {
		addr := "127.0.0.1:" + strconv.Itoa(int(lastPort.Add(1)))
		l, err := net.Listen("tcp", addr)
		switch {
		case err == nil:
			_ = l.Close()
			return addr
		case !errors.Is(err, syscall.EADDRINUSE):
			t.Fatal(err)
		}
	}
}

// up starts the server and returns when it says that it is ready.
func (d *daemon) up() {
	d.t.Helper()
	d.launch()
	ctx, cancel := context.WithTimeout(d.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, d.bin, "env", "--data-dir", d.dir, "--wait", "110s").CombinedOutput()
	if err != nil {
		d.t.Fatalf("nacre env: %v\n%s\nserver: %s", err, out, d.log)
	}
}

// launch starts the server without waiting for it.
func (d *daemon) launch() {
	d.t.Helper()
	cmd := exec.Command(d.bin, d.args...)
	cmd.Stdout, cmd.Stderr = d.log, d.log
	// A group of its own: a terminal's Ctrl-C is for the test, not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	done := make(chan struct{})
	d.cmd, d.done = cmd, done
	go func() {
		d.err = cmd.Wait()
		close(done)
	}()
}

// kill9 ends the server as a crash would.
func (d *daemon) kill9() {
	d.t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		d.t.Fatal(err)
	}
	<-d.done
}

// stop ends the server as an operator would.
func (d *daemon) stop() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	select {
	case <-d.done:
	case <-time.After(slow(patience)):
		d.t.Fatalf("the server did not end: %s", d.log)
	}
}

func (d *daemon) running() bool {
	if d.cmd == nil {
		return false
	}
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// destroy ends the sandboxes and the server and removes all that it made.
func (d *daemon) destroy() {
	if d.t.Failed() {
		d.t.Logf("server log of %s:\n%s", d.dir, d.log)
	}
	if d.cmd != nil && !d.running() {
		d.launch()
	}
	if d.running() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, d.bin, "env", "--data-dir", d.dir, "--wait", "50s").CombinedOutput(); err == nil {
			if out, err := exec.CommandContext(ctx, d.bin, "kill", "--all", "--data-dir", d.dir).CombinedOutput(); err != nil {
				d.t.Errorf("nacre kill --all: %v\n%s", err, out)
			}
		} else {
			d.t.Logf("the server could not be asked to end its sandboxes: %v\n%s", err, out)
		}
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.done:
		case <-time.After(slow(patience)):
			_ = d.cmd.Process.Signal(syscall.SIGQUIT) // it tells what it waits for, and ends
			<-d.done
			d.t.Errorf("the server did not end: %s", d.log)
		}
	}
	if out, err := exec.Command(d.bin, "down", "--data-dir", d.dir).CombinedOutput(); err != nil {
		d.t.Errorf("nacre down: %v\n%s", err, out)
	}
	if err := os.RemoveAll(d.dir); err != nil {
		d.t.Error(err)
	}
}

// cli runs a nacre command against the server and returns its standard output.
func (d *daemon) cli(args ...string) string {
	d.t.Helper()
	out, err := d.try(args...)
	if err != nil {
		d.t.Fatalf("nacre %s: %v\nserver: %s", strings.Join(args, " "), err, d.log)
	}
	return out
}

// try is cli for a command that may fail; the error holds what it said.
func (d *daemon) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(d.t.Context(), 2*time.Minute)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, d.bin, append([]string{"--data-dir", d.dir}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, errOut.String())
	}
	return out.String(), nil
}

// env is what `nacre env` prints, added to this process's environment.
func (d *daemon) env(flags ...string) []string {
	d.t.Helper()
	var vars map[string]string
	if err := json.Unmarshal([]byte(d.cli(append([]string{"env", "--json"}, flags...)...)), &vars); err != nil {
		d.t.Fatal(err)
	}
	env := os.Environ()
	for k, v := range vars {
		env = append(env, k+"="+v)
	}
	return env
}

// client returns the Go SDK on the server.
func (d *daemon) client() *client.Client {
	d.t.Helper()
	var vars map[string]string
	if err := json.Unmarshal([]byte(d.cli("env", "--json")), &vars); err != nil {
		d.t.Fatal(err)
	}
	c, err := client.New(client.WithAPIKey(vars["E2B_API_KEY"]), client.WithAPIURL(vars["E2B_API_URL"]), client.WithSandboxURL(vars["E2B_SANDBOX_URL"]))
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

func (d *daemon) path(parts ...string) string {
	return filepath.Join(append([]string{d.dir}, parts...)...)
}

// tail keeps the last part of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - 64<<10; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
