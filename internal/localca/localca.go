// Package localca is a certificate authority for one installation: made on the
// first start, kept in two files, trusted by whoever puts its certificate where
// their client looks. Server certificates are made in memory and renewed there.
package localca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre/internal/atomicfile"
)

// Lives, and how long before its end each is renewed. A certificate begins a day
// early, for clients whose clock is behind.
const (
	caLife    = 10 * 365 * 24 * time.Hour
	caRenew   = 365 * 24 * time.Hour
	leafLife  = 90 * 24 * time.Hour
	leafRenew = 30 * 24 * time.Hour
	early     = 24 * time.Hour
)

// CA is an authority with the certificate of one domain's server.
type CA struct {
	path  string
	names []string
	ips   []net.IP
	clock func() time.Time
	key   *ecdsa.PrivateKey
	cert  *x509.Certificate

	mu   sync.Mutex
	leaf *tls.Certificate
}

// Open reads ca.key and ca.crt in dir, which it makes when they are missing. The
// key's mode is 0600. A crash in between leaves a key without a certificate, or
// nothing; the next Open goes on from there. An authority that is about to
// expire gets a new certificate of the same name and key, so that those who
// trust the old one trust what it signs.
func Open(dir, domain string, clock func() time.Time) (*CA, error) {
	if h, _, err := net.SplitHostPort(domain); err == nil {
		domain = h
	}
	domain = strings.TrimSuffix(strings.ToLower(domain), ".")
	c := &CA{
		path: filepath.Join(dir, "ca.crt"), clock: clock,
		names: []string{domain, "*." + domain, "localhost"}, // one label below covers api.<domain> and the sandboxes
		ips:   []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if domain == "" || domain == "localhost" {
		c.names = []string{"localhost", "*.localhost"}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	if c.key, err = loadKey(filepath.Join(dir, "ca.key"), c.path); err != nil {
		return nil, err
	}
	if c.cert, err = c.loadCert(); err != nil {
		return nil, err
	}
	if _, err := c.certificate(nil); err != nil {
		return nil, err
	}
	return c, nil
}

// CertFile is the path of the authority's certificate, for SSL_CERT_FILE and
// NODE_EXTRA_CA_CERTS.
func (c *CA) CertFile() string { return c.path }

// TLSConfig serves the domain, the names below it, localhost and the loopback
// addresses, over HTTP/2 and HTTP/1.1.
func (c *CA) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: c.certificate,
	}
}

// certificate returns the server's, a new one when the old is about to expire or
// the clock went back to before it.
func (c *CA) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock()
	if c.leaf != nil && now.Before(c.leaf.Leaf.NotAfter.Add(-leafRenew)) && now.After(c.leaf.Leaf.NotBefore) {
		return c.leaf, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: c.names[0]},
		NotBefore:    now.Add(-early), NotAfter: now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    c.names, IPAddresses: c.ips,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, c.cert, &key.PublicKey, c.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	c.leaf = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	return c.leaf, nil
}

// loadKey reads the authority's key, or makes one if there is no authority yet.
func loadKey(path, certPath string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(certPath); err == nil {
			return nil, fmt.Errorf("%s is there without %s; put the key back, or remove the certificate to start a new authority", certPath, path)
		}
		return newKey(path)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is not a PEM file", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s does not hold an ECDSA key", path)
	}
	return key, os.Chmod(path, 0o600)
}

func newKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, atomicfile.Write(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// loadCert reads the authority's certificate, or signs one.
func (c *CA) loadCert() (*x509.Certificate, error) {
	text, err := os.ReadFile(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return c.newCert(pkix.Name{Organization: []string{"Nacre"}, CommonName: "Nacre local CA " + keyName(c.key)})
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is not a PEM file", c.path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.path, err)
	}
	if !c.key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s does not belong to the key beside it", c.path)
	}
	if c.clock().After(cert.NotAfter.Add(-caRenew)) {
		return c.newCert(cert.Subject)
	}
	return cert, nil
}

func (c *CA) newCert(subject pkix.Name) (*x509.Certificate, error) {
	now := c.clock()
	t := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      subject,
		NotBefore:    now.Add(-early), NotAfter: now.Add(caLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:     true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &c.key.PublicKey, c.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return cert, atomicfile.Write(c.path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// keyName tells authorities apart in a list of trusted ones.
func keyName(key *ecdsa.PrivateKey) string {
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:4])
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[0] &= 0x7f
	b[0] |= 0x40
	return new(big.Int).SetBytes(b[:])
}
