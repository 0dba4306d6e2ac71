package localca_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nacrehq/nacre/internal/localca"
)

type clock struct{ now time.Time }

func (c *clock) time() time.Time { return c.now }

func open(t *testing.T, dir string, c *clock) *localca.CA {
	t.Helper()
	ca, err := localca.Open(dir, "Nacre.localhost:8443", c.time)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func leaf(t *testing.T, ca *localca.CA) *x509.Certificate {
	t.Helper()
	cert, err := ca.TLSConfig().GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf
}

func roots(t *testing.T, path string) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		t.Fatal("no certificate in", path)
	}
	return pool
}

// TestServes: whoever trusts ca.crt reaches every name, over HTTP/2.
func TestServes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	ca := open(t, dir, &clock{time.Now()})
	pool := roots(t, ca.CertFile())
	for _, name := range []string{
		"nacre.localhost", "api.nacre.localhost", "8080-iaaaaaaaaaaaaaaaaaaa1.nacre.localhost", "localhost", "127.0.0.1", "::1",
	} {
		if _, err := leaf(t, ca).Verify(x509.VerifyOptions{DNSName: name, Roots: pool}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := leaf(t, ca).Verify(x509.VerifyOptions{DNSName: "example.com", Roots: pool}); err == nil {
		t.Error("it serves a stranger's name")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) })}
	go func() { _ = srv.Serve(tls.NewListener(l, ca.TLSConfig())) }()
	defer func() { _ = srv.Close() }()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}
	resp, err := client.Get("https://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if body, _ := io.ReadAll(resp.Body); string(body) != "HTTP/2.0" {
		t.Errorf("spoke %s", body)
	}
	if info, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode: %v %v", info.Mode(), err)
	}
}

// TestSecondStart: the authority stays, whatever a crash left of the first.
func TestSecondStart(t *testing.T) {
	dir, now := t.TempDir(), &clock{time.Now()}
	first, err := os.ReadFile(open(t, dir, now).CertFile())
	if err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, now)
	if text, _ := os.ReadFile(again.CertFile()); string(text) != string(first) {
		t.Error("a second start made another authority")
	}
	// Killed after the key, before the certificate.
	if err := os.Remove(again.CertFile()); err != nil {
		t.Fatal(err)
	}
	open(t, dir, now)
	// A lost key is said, not papered over.
	if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := localca.Open(dir, "x", now.time); err == nil {
		t.Error("a lost key went unnoticed")
	}
}

// TestRenewal: the server's certificate is renewed ahead of its end and after a
// step of the clock, the authority's keeps those who trust the old one.
func TestRenewal(t *testing.T) {
	dir, now := t.TempDir(), &clock{time.Now()}
	ca := open(t, dir, now)
	old := roots(t, ca.CertFile())
	for _, step := range []time.Duration{61 * 24 * time.Hour, -100 * 24 * time.Hour, 50 * 24 * time.Hour, 0, 2000 * 24 * time.Hour} {
		now.now = now.now.Add(step)
		l := leaf(t, ca)
		if now.now.Before(l.NotBefore) || now.now.After(l.NotAfter.Add(-30*24*time.Hour)) {
			t.Errorf("at %s the certificate is good from %s to %s", now.now, l.NotBefore, l.NotAfter)
		}
	}
	now.now = time.Now().Add(9*365*24*time.Hour + 48*time.Hour)
	renewed := open(t, dir, now)
	for name, pool := range map[string]*x509.CertPool{"old": old, "new": roots(t, renewed.CertFile())} {
		if _, err := leaf(t, renewed).Verify(x509.VerifyOptions{DNSName: "nacre.localhost", Roots: pool, CurrentTime: now.now}); err != nil {
			t.Errorf("who trusts the %s authority: %v", name, err)
		}
	}
}
