package base

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// buildReal builds the image once into the cache that the caller keeps, or skips.
func buildReal(t *testing.T) Result {
	t.Helper()
	if testing.Short() {
		t.Skip("building the base image takes a minute; run without -short")
	}
	if os.Geteuid() != 0 {
		t.Skip("building the base image needs root")
	}
	if m := Missing(); len(m) > 0 {
		t.Skipf("building the base image needs %v", m)
	}
	dir := os.Getenv("NACRE_CACHE_DIR")
	if dir == "" {
		dir = "/var/cache/nacre"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var last int64
	began := time.Now()
	res, err := Build(ctx, Options{CacheDir: dir, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Progress: func(step string, done, total int64) {
		if done < last || total != progressTotal || step == "" {
			t.Errorf("progress %q %d/%d after %d", step, done, total, last)
		}
		if done/100 != last/100 {
			t.Logf("%6.1fs %4d/%d %s", time.Since(began).Seconds(), done, total, step)
		}
		last = done
	}})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// TestBaseImage: what people expect of a sandbox is in the image, and nothing of
// this host.
func TestBaseImage(t *testing.T) {
	res := buildReal(t)
	if out, err := exec.Command("fsck.erofs", res.Path).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v: %s", err, out)
	}
	if res.Size > 750<<20 {
		t.Errorf("the image has %d MiB", res.Size>>20)
	}
	if b := string(res.Build()); len(b) != 20 || b[0] != 'b' {
		t.Errorf("build id %q", b)
	}
	dir := t.TempDir()
	// A mount namespace of its own: nothing is left when the shell is killed.
	script := `set -eu
mount -t erofs -o loop,ro "$1" "$2"
cd "$2"
` + imageChecks
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", res.Path, dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		if bytes.Contains(out, []byte("unknown filesystem type")) {
			t.Skip("the kernel has no EROFS")
		}
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s", out)
}

const imageChecks = `
fail() { echo "FAIL: $*"; exit 1; }
grep -q '^user:x:1000:1000::/home/user:/bin/bash$' etc/passwd || fail no user
grep -q '^user:x:1000:$' etc/group || fail no group
[ "$(stat -c '%u:%g %a' home/user)" = "1000:1000 755" ] || fail home
[ "$(stat -c '%u:%g %a' home/user/.profile)" = "1000:1000 644" ] || fail profile
grep -q EUID etc/profile || fail "a profile of ours"
[ "$(stat -c '%u %a' etc/sudoers.d/user)" = "0 440" ] || fail sudoers
[ "$(stat -c '%u %a' etc/shadow)" = "0 640" ] || fail shadow
[ "$(stat -c '%a' usr/bin/sudo)" = 4755 ] || fail sudo is not setuid
[ "$(stat -c '%a' tmp)" = 1777 ] || fail tmp
[ "$(stat -c '%u %a' .)" = "0 755" ] || fail root directory
[ -z "$(find dev tmp var/tmp var/log run ! -type d)" ] || fail leftovers
for f in etc/hosts etc/hostname etc/resolv.conf etc/machine-id; do
	[ -f "$f" ] && [ ! -L "$f" ] || fail "$f is no plain file"
done
[ ! -s etc/machine-id ] || fail machine-id
for p in bash python python3 pip pip3 node npm npx git curl wget gcc cc make ps pgrep ss ip nc tput less sudo ssh jq xz unzip apt-get; do
	chroot . /bin/sh -c "command -v $p" >/dev/null || fail "no $p"
done
[ ! -e etc/apt/apt.conf.d/99mmdebstrap ] || fail options of the build
! ls usr/lib/python3*/EXTERNALLY-MANAGED >/dev/null 2>&1 || fail pip is locked
! grep -rqi proxy etc/apt etc/environment etc/profile.d || fail a proxy
! grep -rq '://[^/ ]*@' etc/apt || fail a credential
chroot . localedef --list-archive | grep -qx C.utf8 || fail no archive of locales
[ "$(LANG=C.UTF-8 chroot . python3 -c 'import locale; print(locale.setlocale(locale.LC_ALL, ""), locale.strxfrm("ä") > "z")')" = "C.UTF-8 True" ] || fail the locale
chroot . python3 -c 'import ssl, venv, sqlite3, zoneinfo; print("python ok")'
chroot . node -e 'console.log("node", process.version)'
chroot . setpriv --reuid 1000 --regid 1000 --clear-groups /bin/sh -c 'test "$(id -un)" = user'
# A compiled module names its source's time: one that differs is compiled again at each import.
chroot . python3 -v -B -c 'import json, asyncio' 2>&1 | grep -c 'matches /usr/lib/python3' | grep -qv '^0$' || fail python caches are stale
! chroot . python3 -v -B -c 'import json, asyncio, http.client' 2>&1 | grep 'bytecode is stale' || fail python caches are stale
for s in etc/apt/sources.list.d/*.sources; do cat $s; done
df -h . | tail -1
`

func TestCacheNeedsManifestAndSize(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, tempPrefix+"x", "image")
	if err := os.MkdirAll(filepath.Dir(image), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, []byte("image"), 0o600); err != nil {
		t.Fatal(err)
	}
	hash := strings.Repeat("a", 32)
	res, err := publish(t.Context(), dir, hash, image)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := cached(dir, hash); !ok || got != res {
		t.Fatalf("cached %+v %v, want %+v", got, ok, res)
	}
	if _, ok := cached(dir, strings.Repeat("b", 32)); ok {
		t.Error("another recipe's image was taken")
	}
	// What a kill between the two renames leaves.
	manifest := strings.TrimSuffix(res.Path, ".erofs") + ".json"
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(manifest); err != nil {
		t.Fatal(err)
	}
	if _, ok := cached(dir, hash); ok {
		t.Error("an image without a manifest was taken")
	}
	for name, torn := range map[string][]byte{"half": text[:len(text)/2], "empty": nil, "null": []byte("null")} {
		if err := os.WriteFile(manifest, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, ok := cached(dir, hash); ok {
			t.Errorf("an image with a %s manifest was taken", name)
		}
	}
	if err := os.WriteFile(manifest, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(res.Path, 3); err != nil {
		t.Fatal(err)
	}
	if _, ok := cached(dir, hash); ok {
		t.Error("a truncated image was taken")
	}
}
