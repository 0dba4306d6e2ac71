package base

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// The builds here run shell scripts in the tools' place: they are about what happens
// around the tools.

// fakeDebstrap makes the few files that a build touches, and says what apt would.
const fakeDebstrap = `#!/bin/sh
set -e
root=$(pwd)/root
echo run >> "$(dirname "$0")/runs"
mkdir -p "$root/etc/apt/apt.conf.d" "$root/etc/skel" "$root/dev" "$root/var/log" "$root/usr/lib/python3.11" "$root/tmp" "$root/run"
for f in passwd group shadow gshadow; do echo "root:x:0:0::/root:/bin/sh" > "$root/etc/$f"; done
echo 'Acquire::http::Proxy "http://joe:hunter2@proxy.test";' > "$root/etc/apt/apt.conf.d/99mmdebstrap"
echo profile > "$root/etc/skel/.profile"
echo log > "$root/var/log/dpkg.log"
touch "$root/usr/lib/python3.11/EXTERNALLY-MANAGED"
ln -s /etc/passwd "$root/etc/resolv.conf"
touch -d @1700000000 "$root/usr/lib/python3.11/json.py"
echo "I: downloading packages with apt..."
echo "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded."
echo "Get:1 http://mirror.test/debian bookworm/main amd64 a 1 [1 kB]"
echo "Unpacking a (1) ..."
echo "Setting up a (1) ..." >&2
`

// fakeMkfs copies the tree into a tar file in the image's place.
const fakeMkfs = `#!/bin/sh
set -e
while [ $# -gt 2 ]; do shift; done
tar -C "$2" -cf "$1" .
`

const fakeAptConfig = `#!/bin/sh
echo 'Acquire::Retries "3";'
`

// fakeHost puts the scripts into PATH and returns a host to build for. extra runs
// at the end of mmdebstrap.
func fakeHost(t *testing.T, extra string) (h host, bin string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a build needs root, for its namespaces")
	}
	etc, bin := t.TempDir(), t.TempDir()
	write(t, filepath.Join(etc, "os-release"), "ID=debian\nVERSION_CODENAME=bookworm\n", 0o644)
	write(t, filepath.Join(etc, "apt/sources.list"), "deb http://mirror.test/debian bookworm main\n", 0o644)
	write(t, filepath.Join(bin, "mmdebstrap"), fakeDebstrap+extra, 0o755)
	write(t, filepath.Join(bin, "mkfs.erofs"), fakeMkfs, 0o755)
	write(t, filepath.Join(bin, "apt-config"), fakeAptConfig, 0o755)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return host{etc: etc}, bin
}

func runs(t *testing.T, bin string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(bin, "runs"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(text), "run")
}

// wantOnly checks that the cache holds finished images and no leftovers.
func wantOnly(t *testing.T, dir string, images int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".erofs":
			n++
		case ".json", ".lock":
		default:
			t.Errorf("%s is left", e.Name())
		}
	}
	if n != images {
		t.Errorf("%d images, want %d", n, images)
	}
}

func TestBuildOnce(t *testing.T) {
	h, bin := fakeHost(t, "")
	dir := filepath.Join(t.TempDir(), "cache")
	results := make([]Result, 4)
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() {
			var err error
			if results[i], err = build(t.Context(), Options{CacheDir: dir}, h); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	again, err := build(t.Context(), Options{CacheDir: dir, Progress: func(string, int64, int64) { t.Error("a cached image was built") }}, h)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r != again || r.Size == 0 {
			t.Errorf("%+v and %+v", r, again)
		}
	}
	if n := runs(t, bin); n != 1 {
		t.Errorf("built %d times", n)
	}
	wantOnly(t, dir, 1)
}

// TestContents: what the build does to the packages' tree.
func TestContents(t *testing.T) {
	h, _ := fakeHost(t, "")
	res, err := build(t.Context(), Options{CacheDir: t.TempDir()}, h)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if out, err := exec.Command("tar", "-C", root, "-xpf", res.Path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	read := func(path string) string {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	if got := read("etc/passwd"); !strings.HasSuffix(got, "\nuser:x:1000:1000::/home/user:/bin/bash\nsandbox:x:1000:1000::/home/sandbox:/bin/bash\n") {
		t.Errorf("passwd: %q", got)
	}
	if got := read("etc/apt/sources.list.d/debian.sources"); !strings.Contains(got, "URIs: http://mirror.test/debian\n") {
		t.Errorf("sources: %q", got)
	}
	if fi, err := os.Lstat(filepath.Join(root, "etc/resolv.conf")); err != nil || !fi.Mode().IsRegular() || fi.Size() != 0 {
		t.Errorf("resolv.conf: %v %v", fi, err)
	}
	fi, err := os.Stat(filepath.Join(root, "home/user/.profile"))
	if err != nil {
		t.Fatal(err)
	}
	if st := fi.Sys().(*syscall.Stat_t); st.Uid != 1000 || st.Gid != 1000 {
		t.Errorf(".profile belongs to %d:%d", st.Uid, st.Gid)
	}
	for _, gone := range []string{"etc/apt/apt.conf.d/99mmdebstrap", "var/log/dpkg.log", "usr/lib/python3.11/EXTERNALLY-MANAGED"} {
		if _, err := os.Lstat(filepath.Join(root, gone)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there", gone)
		}
	}
	// The packaged file keeps its time, ours have the newest packaged one's.
	for _, path := range []string{"usr/lib/python3.11/json.py", "etc/passwd", "home/user"} {
		if fi, err := os.Stat(filepath.Join(root, path)); err != nil || fi.ModTime().Unix() != 1700000000 {
			t.Errorf("%s has time %v, %v", path, fi.ModTime(), err)
		}
	}
}

// TestFailedBuild: the error says what failed and no secret, and the next build works.
func TestFailedBuild(t *testing.T) {
	h, bin := fakeHost(t, "echo 'E: http://joe:hunter2@proxy.test does not answer' >&2\nexit 25\n")
	dir := t.TempDir()
	var log strings.Builder
	_, err := build(t.Context(), Options{CacheDir: dir, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}, h)
	if !nacre.IsCode(err, nacre.CodeUnavailable) || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("a failed build: %v", err)
	}
	if strings.Contains(err.Error()+log.String(), "hunter2") {
		t.Error("a credential was shown")
	}
	wantOnly(t, dir, 0)
	write(t, filepath.Join(bin, "mmdebstrap"), fakeDebstrap, 0o755)
	if _, err := build(t.Context(), Options{CacheDir: dir}, h); err != nil {
		t.Error(err)
	}
}

func TestFault11_DiskFullWhileBuilding(t *testing.T) {
	h, _ := fakeHost(t, "echo 'dpkg: error: cannot write: No space left on device' >&2\nexit 1\n")
	dir := t.TempDir()
	if _, err := build(t.Context(), Options{CacheDir: dir}, h); !nacre.IsCode(err, nacre.CodeNoSpace) {
		t.Errorf("a full disk: %v", err)
	}
	wantOnly(t, dir, 0)
}

// hang is a build that mounts something, leaves a child about, says so, and never ends.
const hang = `mkdir -p root/mnt; mount -t tmpfs t root/mnt; touch root/mnt/x; sleep 1000 & echo "Setting up hang (1) ..."; wait`

// TestCancelledBuild: the processes are gone and nothing is left when Build returns.
func TestCancelledBuild(t *testing.T) {
	h, _ := fakeHost(t, hang)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	_, err := build(ctx, Options{CacheDir: dir, Logger: slog.New(onLine{"hang", cancel})}, h)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	wantOnly(t, dir, 0)
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("a mount is left: %v", err)
	}
}

// onLine is a log handler that calls back when a record has the text in it.
type onLine struct {
	text string
	call func()
}

func (o onLine) Enabled(context.Context, slog.Level) bool { return true }
func (o onLine) WithAttrs([]slog.Attr) slog.Handler       { return o }
func (o onLine) WithGroup(string) slog.Handler            { return o }
func (o onLine) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if strings.Contains(a.Value.String(), o.text) {
			o.call()
		}
		return true
	})
	return nil
}

// TestFault03_KilledBuild: kill -9 of the builder takes its tools and mounts with
// it; the next build clears the rest away and succeeds.
func TestFault03_KilledBuild(t *testing.T) {
	if args := os.Getenv("NACRE_TEST_KILLED_BUILD"); args != "" {
		dir, etc, _ := strings.Cut(args, "|")
		_, err := build(context.Background(), Options{CacheDir: dir, Logger: slog.New(onLine{"hang", func() { os.Stdout.WriteString("!") }})}, host{etc: etc})
		t.Fatal(err)
	}
	h, bin := fakeHost(t, hang)
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestFault03_KilledBuild$")
	cmd.Env = append(os.Environ(), "NACRE_TEST_KILLED_BUILD="+dir+"|"+h.etc)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	write(t, filepath.Join(bin, "mmdebstrap"), fakeDebstrap, 0o755)
	// The lock is free only when the last process of the killed build is gone.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := build(ctx, Options{CacheDir: dir}, h); err != nil {
		t.Fatal(err)
	}
	wantOnly(t, dir, 1)
	if n := runs(t, bin); n != 2 {
		t.Errorf("mmdebstrap ran %d times", n)
	}
}

func TestUnsupportedHost(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"no os-release":  {},
		"another system": {"os-release": "ID=fedora\nVERSION_ID=42\n"},
		"no sources":     {"os-release": "ID=debian\nVERSION_CODENAME=bookworm\n"},
		"foreign sources": {"os-release": "ID=debian\nVERSION_CODENAME=bookworm\n",
			"apt/sources.list": "deb [signed-by=/etc/apt/keyrings/vendor.gpg] http://vendor.test bookworm main\n"},
	} {
		etc := t.TempDir()
		for path, text := range files {
			write(t, filepath.Join(etc, path), text, 0o644)
		}
		if _, err := build(t.Context(), Options{CacheDir: t.TempDir()}, host{etc: etc}); !nacre.IsCode(err, nacre.CodeUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMissingTools(t *testing.T) {
	err := missingError(Requirements())
	if !nacre.IsCode(err, nacre.CodeUnavailable) || !strings.Contains(err.Error(), "apt-get install mmdebstrap erofs-utils") {
		t.Error(err)
	}
}
