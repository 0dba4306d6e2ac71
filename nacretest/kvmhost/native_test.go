package kvmhost

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	nativeTestEnv = "NACRE_TEST_NATIVE" // the path of a file of the host around
	echoPort      = 3000
)

// TestMain lets the test binary be the program of TestNative, whose host is always fit.
func TestMain(m *testing.M) {
	path := os.Getenv(nativeTestEnv)
	if path == "" && os.Getenv(workerEnv) == "" {
		os.Exit(m.Run())
	}
	os.Exit(Main(m, Config{Timeout: 2 * time.Minute, Ports: []int{echoPort}, Fit: func(context.Context) error { return nil },
		Files: func() (map[string]string, error) { return map[string]string{"/assets/brought": path}, nil },
		Outer: map[string]func(context.Context, Request) (string, error){"reach": reach}}))
}

// reach is the host around: it connects to a port of the tests' host, and says what it
// sees of its own files.
func reach(ctx context.Context, r Request) (string, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", r.Addrs[echoPort])
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, r.Args[0]); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// TestNative: tests that run natively have their files, a root, processes and a network
// of their own, are reached from around as on an emulated host, and leave nothing.
func TestNative(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces")
	}
	file := filepath.Join(t.TempDir(), "brought")
	if err := os.WriteFile(file, []byte("brought"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Two programs stand for a release; nothing is fetched.
	release := t.TempDir()
	for _, name := range []string{"firecracker", "jailer"} {
		if err := os.WriteFile(filepath.Join(release, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cache := t.TempDir()
	if err := os.MkdirAll(filepath.Join(cache, "native-killed", "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		code int
		text string
	}{
		"TestWithin":  {0, "on this host, natively: 1 ended, 0 failed, 0 skipped"},
		"TestFailing": {1, "on this host, natively: 1 ended, 1 failed, 0 skipped"},
		"TestLeaving": {0, "on this host, natively: 1 ended, 0 failed, 1 skipped: TestLeaving"},
	} {
		t.Run(name, func(t *testing.T) {
			c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+name+"$")
			c.Env = append(os.Environ(), nativeTestEnv+"="+file, nativeDirEnv+"="+cache, "NACRE_FIRECRACKER_DIR="+release)
			out, err := c.CombinedOutput()
			if c.ProcessState == nil || c.ProcessState.ExitCode() != want.code || !strings.Contains(string(out), want.text) ||
				!strings.Contains(string(out), "the tests run natively") {
				t.Errorf("%v, want status %d and %q:\n%s", err, want.code, want.text, out)
			}
			if left, _ := filepath.Glob(filepath.Join(cache, "native-*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil || strings.Contains(string(mounts), cache) {
				t.Errorf("mounts are left: %v\n%s", err, mounts)
			}
			if procs, _ := exec.Command("pgrep", "-f", "^/native-left-behind").Output(); len(procs) > 0 {
				t.Errorf("processes are left: %s", procs)
			}
		})
	}
}

func within(t *testing.T) {
	if os.Getenv(workerEnv) != nativeWorker {
		t.Skip("a part of TestNative")
	}
}

func TestWithin(t *testing.T) {
	within(t)
	if b, err := os.ReadFile("/assets/brought"); string(b) != "brought" {
		t.Errorf("%q, %v", b, err)
	}
	if Emulated() {
		t.Error("it says that it is emulated")
	}
	if _, err := os.Stat("/var/lib/dpkg"); err == nil {
		t.Error("the files of the host around are there")
	}
	if err := unix.Mknod("/tmp/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		t.Error(err)
	} else if b, err := os.ReadFile("/tmp/null"); err != nil || len(b) != 0 {
		t.Errorf("a device node is none: %v", err)
	}
	if links, err := net.Interfaces(); err != nil || len(links) != 3 {
		t.Errorf("network interfaces: %v, %v", links, err)
	}
	l, err := net.Listen("tcp4", fmt.Sprintf(":%d", echoPort))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := Outside(ctx, "reach", "there and back"); out != "there and back\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

func TestFailing(t *testing.T) {
	within(t)
	t.Error("as it should")
}

func TestLeaving(t *testing.T) {
	within(t)
	c := exec.Command("/proc/self/exe", "-test.run=^TestSleeping$")
	c.Args[0] = "/native-left-behind"
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // it runs
		t.Fatal(err)
	}
	t.Skip("it leaves a process")
}

func TestSleeping(t *testing.T) {
	if os.Args[0] != "/native-left-behind" {
		t.Skip("a part of TestNative")
	}
	fmt.Println("here")
	_ = unix.Pause()
}
