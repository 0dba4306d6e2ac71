package firecracker

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// releaseArchive packs the programs as Firecracker's releases do.
func releaseArchive(t *testing.T, files map[string]string) (archive []byte, sum string) {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, path := range files {
		content, err := os.ReadFile(path)
		check(t, err)
		check(t, w.WriteHeader(&tar.Header{Name: "release-v1.12.1-x86_64/" + name, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}))
		_, err = w.Write(content)
		check(t, err)
	}
	check(t, w.Close())
	check(t, z.Close())
	h := sha256.Sum256(b.Bytes())
	return b.Bytes(), hex.EncodeToString(h[:])
}

func kernelSum(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// TestInstall: a release by address, by path and unpacked; what is wrong with one is
// said, and what was there before stays.
func TestInstall(t *testing.T) {
	const kernel = "/assets/vmlinux"
	whole, sum := releaseArchive(t, map[string]string{
		"firecracker-v1.12.1-x86_64": kvmhost.PinnedFirecracker, "jailer-v1.12.1-x86_64": kvmhost.PinnedJailer,
		"snapshot-editor-v1.12.1-x86_64": "/etc/hosts", "LICENSE": "/etc/hosts",
	})
	half, halfSum := releaseArchive(t, map[string]string{"firecracker-v1.12.1-x86_64": kvmhost.PinnedFirecracker})
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/whole.tgz":
			w.Header().Set("Content-Length", strconv.Itoa(len(whole)))
			_, _ = w.Write(whole)
		case "/half.tgz":
			_, _ = w.Write(half)
		case "/cut.tgz":
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write(whole[:1000])
		case "/vmlinux":
			http.ServeFile(w, r, kernel)
		default:
			http.NotFound(w, r)
		}
	}))
	defer s.Close()
	file := filepath.Join(t.TempDir(), "release.tgz")
	check(t, os.WriteFile(file, whole, 0o644))
	torn := filepath.Join(t.TempDir(), "torn.tgz")
	check(t, os.WriteFile(torn, whole[:len(whole)/2], 0o644))
	for name, c := range map[string]struct {
		from Release
		want string // in the error; "" when it is to succeed
	}{
		"address":            {Release{Source: s.URL + "/whole.tgz", SHA256: sum, Kernel: kernel}, ""},
		"path":               {Release{Source: file, Kernel: kernel}, ""},
		"path and sum":       {Release{Source: file, SHA256: strings.ToUpper(sum), Kernel: kernel}, ""},
		"directory":          {Release{Source: filepath.Dir(kvmhost.PinnedFirecracker), Kernel: kernel}, ""},
		"another sum":        {Release{Source: s.URL + "/whole.tgz", SHA256: halfSum, Kernel: kernel}, "not the one that was meant"},
		"address, no sum":    {Release{Source: s.URL + "/whole.tgz", Kernel: kernel}, "SHA-256"},
		"no such file there": {Release{Source: s.URL + "/none.tgz", SHA256: sum, Kernel: kernel}, "--from"},
		"connection breaks":  {Release{Source: s.URL + "/cut.tgz", SHA256: sum, Kernel: kernel}, "--from"},
		"not https":          {Release{Source: "http://127.0.0.1/whole.tgz", SHA256: sum, Kernel: kernel}, "https"},
		"no such path":       {Release{Source: "/nowhere/release.tgz", Kernel: kernel}, "cannot be read"},
		"torn":               {Release{Source: torn, Kernel: kernel}, "damaged"},
		"kernel's address":   {Release{Source: file, Kernel: s.URL + "/vmlinux", KernelSHA256: kernelSum(t, kernel)}, ""},
		"kernel, no sum":     {Release{Source: file, Kernel: s.URL + "/vmlinux"}, "SHA-256"},
		"another kernel":     {Release{Source: file, Kernel: s.URL + "/vmlinux", KernelSHA256: sum}, "not the one that was meant"},
		"kernel unpublished": {Release{Source: file, Kernel: s.URL + "/none", KernelSHA256: sum}, "--build-kernel"},
		"no archive":         {Release{Source: "/etc/hosts", Kernel: kernel}, "no gzip archive"},
		"one program":        {Release{Source: s.URL + "/half.tgz", SHA256: halfSum, Kernel: kernel}, "1 of the two programs"},
		"no kernel":          {Release{Source: file, Kernel: "/etc/hosts"}, "vmlinux"},
		"a sum of nothing":   {Release{SHA256: sum, Kernel: kernel}, "--from"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			check(t, os.WriteFile(filepath.Join(dir, VMMName), []byte("before"), 0o755))
			c.from.Client, c.from.AllowHoles = s.Client(), true
			var done, total int64
			c.from.Progress = func(_ string, d, n int64) { done, total = d, n }
			v, err := Install(t.Context(), dir, c.from)
			if c.want != "" {
				if err == nil || !strings.Contains(nacre.ErrorMessage(err), c.want) {
					t.Errorf("%v; want an error that says %q", err, c.want)
				}
				if b, _ := os.ReadFile(filepath.Join(dir, VMMName)); string(b) != "before" {
					t.Error("what was there before is gone")
				}
			} else if _, ok := Installed(dir); err != nil || v != "1.12.1" || !ok {
				t.Errorf("%q, %v, installed %t", v, err, ok)
			}
			if strings.HasSuffix(c.from.Source, "whole.tgz") && c.from.SHA256 != "" && strings.HasPrefix(c.from.Source, s.URL) && (done != int64(len(whole)) || total != done) {
				t.Errorf("told %d of %d bytes, the archive has %d", done, total, len(whole))
			}
			if left, _ := filepath.Glob(filepath.Join(dir, ".tmp-*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if _, err := Install(t.Context(), t.TempDir(), Release{Source: file, Kernel: kernel}); !nacre.IsCode(err, nacre.CodeUnsupported) || !strings.Contains(err.Error(), "CVE-") {
		t.Errorf("a release with a known hole: %v", err)
	}
}

// TestPinnedRelease: the release that is brought by default is one that the driver
// takes.
func TestPinnedRelease(t *testing.T) {
	v, err := parseVersion(pinnedURL)
	check(t, err)
	for _, jailer := range []bool{false, true} {
		check(t, checkVersion(v, jailer, false))
	}
	if !strings.HasPrefix(pinnedURL, "https://") || len(pinnedSHA256) != 64 {
		t.Errorf("%s, %s", pinnedURL, pinnedSHA256)
	}
}
