package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPreloadedPython: code runs in an interpreter of its own that has everything
// imported; nothing of one run is seen by the next, and no two share random numbers.
func TestPreloadedPython(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("python3 is not installed here")
	}
	sock := filepath.Join(t.TempDir(), "d", "sock")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", startPython())
	cmd.Env = append(os.Environ(), "PRELOAD_SOCKET="+sock)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			for {
				c, err := (&net.Dialer{}).DialContext(ctx, "unix", sock)
				if err == nil || ctx.Err() != nil {
					return c, err
				}
				time.Sleep(10 * time.Millisecond) // nothing tells when it listens
			}
		}}}
	run := func(code string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://python/", strings.NewReader(code))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		out, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if got := run("import sys\nprint(6 * 7, 'ssl' in sys.modules, __name__)\nx = 1\n"); got != "42 True __main__\n" {
		t.Errorf("it printed %q", got)
	}
	if got := run("print(x)"); !strings.Contains(got, "NameError") {
		t.Errorf("a run saw another's variable: %q", got)
	}
	if got := run("raise SystemExit(3)"); got != "" {
		t.Errorf("an exit printed %q", got)
	}
	const draw = "import random, uuid\nprint(random.random(), uuid.uuid4())"
	if a, b := run(draw), run(draw); a == b {
		t.Errorf("two runs drew the same: %q", a)
	}
	// What the interpreter drew when it started is every run's; docs/snapshots.md says so.
	const seeded = "print(hash('a word'))"
	if a, b := run(seeded), run(seeded); a != b {
		t.Errorf("two runs hash otherwise: %q, %q", a, b)
	}
	const fresh = "import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', \"print(hash('a word'))\"]))"
	if a, b := run(fresh), run(fresh); a == b {
		t.Errorf("two interpreters that were started anew hash alike: %q", a)
	}
	if st, err := os.Stat(filepath.Dir(sock)); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("others can reach it: %v, %v", st, err)
	}
}
