package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// An Option configures a Client.
type Option func(*config) error

type config struct {
	apiKey, apiURL, sandboxURL, domain string
	httpClient                         *http.Client
	roots                              *x509.CertPool
	userAgent                          string
	requestTimeout                     time.Duration
}

// WithAPIKey sets the key. Default: the environment's NACRE_API_KEY, else
// MORU_API_KEY, else E2B_API_KEY.
func WithAPIKey(key string) Option {
	return func(c *config) error { c.apiKey = key; return nil }
}

// WithAPIURL sets the control plane's address. Default: NACRE_API_URL and its
// Moru and E2B namesakes, else https://api. and the domain.
func WithAPIURL(url string) Option {
	return func(c *config) error { c.apiURL = url; return nil }
}

// WithSandboxURL sends guest traffic to one address, with routing headers,
// instead of to a host name for each sandbox. Default: NACRE_SANDBOX_URL and its
// namesakes; without one the API's address, but for a client that was told a domain or
// reaches the API at "api." and the server's.
func WithSandboxURL(url string) Option {
	return func(c *config) error { c.sandboxURL = url; return nil }
}

// WithDomain sets what the sandboxes' host names end in, with a port where it
// is not 443. A domain that the server names wins. Default: NACRE_DOMAIN and its
// namesakes.
func WithDomain(domain string) Option {
	return func(c *config) error { c.domain = domain; return nil }
}

// WithHTTPClient sets the client that all requests go through. Its Timeout
// should be 0, for it would cut streams.
func WithHTTPClient(hc *http.Client) Option {
	return func(c *config) error { c.httpClient = hc; return nil }
}

// WithCA trusts the authorities in a PEM file and no others. Default: the
// system's, which SSL_CERT_FILE replaces. It cannot go together with WithHTTPClient.
func WithCA(file string) Option {
	return func(c *config) error {
		pem, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		c.roots = x509.NewCertPool()
		if !c.roots.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s holds no certificate in PEM form", file)
		}
		return nil
	}
}

// WithUserAgent puts a program's name and version before the SDK's own.
func WithUserAgent(product string) Option {
	return func(c *config) error { c.userAgent = product + " " + c.userAgent; return nil }
}

// dialLocalhost dials names below "localhost" at the loopback address, which RFC
// 6761 asks of resolvers and few do.
func dialLocalhost(ctx context.Context, netw, addr string) (net.Conn, error) {
	if host, port, err := net.SplitHostPort(addr); err == nil && strings.HasSuffix(host, ".localhost") {
		addr = net.JoinHostPort("localhost", port)
	}
	d := net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	return d.DialContext(ctx, netw, addr)
}

// resolve fills what no option set.
func (c *config) resolve() error {
	fill := func(field *string, name string) {
		for _, brand := range []string{"NACRE_", "MORU_", "E2B_"} {
			if *field == "" {
				*field = os.Getenv(brand + name)
			}
		}
	}
	fill(&c.apiKey, "API_KEY")
	fill(&c.apiURL, "API_URL")
	fill(&c.sandboxURL, "SANDBOX_URL")
	fill(&c.domain, "DOMAIN")
	if c.apiURL == "" && c.domain != "" {
		c.apiURL = "https://api." + c.domain
	}
	if c.apiURL == "" {
		return errors.New("no server is named: set NACRE_API_URL or NACRE_DOMAIN (in Go: WithAPIURL or WithDomain)")
	}
	if c.apiKey == "" {
		return errors.New("there is no API key: set NACRE_API_KEY (in Go: WithAPIKey); `nacre key create` makes one")
	}
	c.apiURL = strings.TrimRight(c.apiURL, "/")
	c.sandboxURL = strings.TrimRight(c.sandboxURL, "/")
	if c.httpClient != nil {
		if c.roots != nil {
			return errors.New("WithCA and WithHTTPClient exclude each other: put the authority into the client's transport")
		}
		return nil
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 64 // one sandbox URL is one host for every sandbox
	t.MaxIdleConns = 256
	t.DisableCompression = true // a file's length would be lost
	t.DialContext = dialLocalhost
	if c.roots != nil {
		t.TLSClientConfig = &tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS12}
	}
	c.httpClient = &http.Client{Transport: t}
	return nil
}
