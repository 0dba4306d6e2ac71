package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/runtime/firecracker"
)

const testKernel = "\x7fELF, which a kernel begins with"

// programs makes a directory with what is asked for its version only.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{firecracker.VMMName, firecracker.JailerName} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho Firecracker v1.16.1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func hexSum(text string) string {
	h := sha256.Sum256([]byte(text))
	return hex.EncodeToString(h[:])
}

func setup(t *testing.T, data string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(append([]string{"setup", "firecracker", "--data-dir", data}, args...))
	root.SetOut(&out)
	root.SetErr(&out)
	root.SilenceErrors, root.SilenceUsage = true, true
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// TestSetupWhereTheNetworkIsClosed: paths by flag or by variable do, and who gives none
// is told what to do.
func TestSetupWhereTheNetworkIsClosed(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, []byte(testKernel), 0o644); err != nil {
		t.Fatal(err)
	}
	const nobody = "https://127.0.0.1:1/file"
	for name, c := range map[string]struct {
		args []string
		env  map[string]string
		want []string // in the error; none when it is to succeed
	}{
		"flags":              {args: []string{"--from", programs(t), "--kernel", kernel}},
		"variables":          {env: map[string]string{"NACRE_FIRECRACKER_FROM": programs(t), "NACRE_FIRECRACKER_KERNEL": kernel}},
		"flags win":          {args: []string{"--kernel", kernel}, env: map[string]string{"NACRE_FIRECRACKER_FROM": programs(t), "NACRE_FIRECRACKER_KERNEL": "/nowhere", "NACRE_FIRECRACKER_KERNEL_SHA256": "x"}},
		"kernel's sum":       {args: []string{"--from", programs(t), "--kernel", kernel, "--kernel-sha256", hexSum(testKernel)}},
		"kernel's wrong sum": {args: []string{"--from", programs(t), "--kernel", kernel, "--kernel-sha256", hexSum("")}, want: []string{"not the one that was meant", kernel}},
		"no kernel there": {args: []string{"--from", programs(t), "--kernel", nobody, "--kernel-sha256", hexSum("")},
			want: []string{nobody, "connection refused", "--build-kernel", "make guest-kernel", "--kernel"}},
		"no release there": {args: []string{"--from", nobody, "--sha256", hexSum(""), "--kernel", kernel}, want: []string{nobody, "--from"}},
		"sum of no file":   {args: []string{"--from", programs(t), "--kernel-sha256", hexSum("")}, want: []string{"--kernel"}},
		"two ways":         {args: []string{"--from", programs(t), "--no-build", "--build-kernel"}, want: []string{"build-kernel", "no-build"}},
		"two kernels":      {args: []string{"--from", programs(t), "--kernel", kernel, "--build-kernel"}, want: []string{"--build-kernel"}},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			data := t.TempDir()
			out, err := setup(t, data, c.args...)
			if len(c.want) == 0 {
				if _, ok := firecracker.Installed(filepath.Join(data, "firecracker")); err != nil || !ok || !strings.Contains(out, "Firecracker 1.16.1") {
					t.Errorf("%v, installed %t: %s", err, ok, out)
				}
				return
			}
			for _, w := range c.want {
				if err == nil || !strings.Contains(errorText(err), w) {
					t.Errorf("%v; want an error that says %q", err, w)
				}
			}
		})
	}
}

// TestSetupAgain: who was killed in a setup, or ends one in the middle, keeps what was
// there and sets up again; two at once do not meet.
func TestSetupAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first := ctx.Err() == nil
		_, _ = w.Write([]byte(testKernel)[:8])
		w.(http.Flusher).Flush()
		if first {
			<-r.Context().Done()
			return
		}
		_, _ = w.Write([]byte(testKernel)[8:])
	}))
	defer s.Close()
	dir := t.TempDir()
	before := filepath.Join(dir, firecracker.KernelName)
	if err := os.WriteFile(before, []byte("before"), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, ".tmp-of-one-that-was-killed"), 0o700); err != nil {
		t.Fatal(err)
	}
	from := firecracker.Release{Source: programs(t), Kernel: s.URL + "/vmlinux", KernelSHA256: hexSum(testKernel), Client: s.Client(),
		Progress: func(string, int64, int64) { cancel() }}
	if _, err := firecracker.Install(ctx, dir, from); err == nil || errorText(err) != "interrupted" {
		t.Errorf("interrupted: %v", err)
	}
	if b, err := os.ReadFile(before); string(b) != "before" {
		t.Errorf("what was there is gone: %q, %v", b, err)
	}

	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := firecracker.Install(t.Context(), dir, from); err == nil || !strings.Contains(err.Error(), "another") {
		t.Errorf("while another one is at work: %v", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}

	for range 2 {
		if v, err := firecracker.Install(t.Context(), dir, from); v != "1.16.1" || err != nil {
			t.Errorf("again: %q, %v", v, err)
		}
		if b, err := os.ReadFile(before); string(b) != testKernel {
			t.Errorf("the kernel is %q, %v", b, err)
		}
		entries, err := os.ReadDir(dir)
		if len(entries) != 4 || err != nil {
			t.Errorf("it holds %v, %v; want the kernel, the note on it, and two programs", entries, err)
		}
	}
}

// elsewhere is a client to whom the server is every host.
func elsewhere(s *httptest.Server) *http.Client {
	c := s.Client()
	c.Transport.(*http.Transport).DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
		return d.DialContext(ctx, "tcp", s.Listener.Addr().String())
	}
	return c
}

// TestSetupBuildsAKernelThatIsNotPublished: nobody need know of it who only says `nacre
// setup firecracker`. Nothing is built in the place of a kernel that is another one than
// was meant, that a user named, or where he does not want it.
func TestSetupBuildsAKernelThatIsNotPublished(t *testing.T) {
	answer := http.NotFound
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r) }))
	defer s.Close()
	built := filepath.Join(t.TempDir(), "built")
	of := func(content string) {
		if err := os.WriteFile(built, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	makes := func(context.Context) (string, error) { return built, nil }
	cannot := func(context.Context) (string, error) { return "", errors.New("apt offers no linux-source-6.12") }
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		kernel string // what the user names
		make   func(context.Context) (string, error)
		built  string
		want   []string // in the error, or in what is said when it is to succeed
		fails  bool
	}{
		{"not published", http.NotFound, "", makes, testKernel, []string{firecracker.PinnedKernelURL, "404", "built here instead"}, false},
		{"network is closed", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "", makes, testKernel, []string{"built here instead"}, false},
		{"cannot be built either", http.NotFound, "", cannot, "", []string{"linux-source-6.12", "404", "--kernel"}, true},
		{"not wanted", http.NotFound, "", nil, "", []string{"404", "--build-kernel", "--kernel"}, true},
		{"named by the user", http.NotFound, "https://mirror.example/vmlinux", makes, testKernel, []string{"mirror.example", "404"}, true},
		{"another one", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(testKernel)) }, "", makes, testKernel, []string{"not the one that was meant"}, true},
		{"built wrongly", http.NotFound, "", makes, testKernel + firecracker.PinnedKernelBanner, []string{firecracker.PinnedKernelSHA256}, true},
		{"no kernel", http.NotFound, "", makes, "text", []string{"vmlinux"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			answer = c.answer
			of(c.built)
			var said bytes.Buffer
			from := firecracker.Release{Source: programs(t), Client: elsewhere(s), Kernel: c.kernel}
			if c.kernel != "" {
				from.KernelSHA256 = hexSum(testKernel)
			}
			if c.make != nil {
				from.BuildKernel = insteadOfDownload(&said, c.make)
			}
			dir := t.TempDir()
			_, err := firecracker.Install(t.Context(), dir, from)
			text := said.String()
			if _, there := firecracker.Installed(dir); c.fails != (err != nil) || there == c.fails {
				t.Fatalf("%v, installed %t; %s", err, there, text)
			}
			if c.fails {
				text = errorText(err)
			}
			for _, w := range c.want {
				if !strings.Contains(text, w) {
					t.Errorf("it says %q; want %q", text, w)
				}
			}
		})
	}
}
