package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nacrehq/nacre/api/miosa"
	"github.com/nacrehq/nacre/edge"
	"github.com/nacrehq/nacre/internal/atomicfile"
	"github.com/nacrehq/nacre/internal/bulk"
	"github.com/nacrehq/nacre/internal/clientfile"
	"github.com/nacrehq/nacre/internal/localca"
)

// entrance decides whose a request is: a sandbox's or the API's. Both share the
// listeners; their paths do not collide, and what names a sandbox is the edge's.
type entrance struct {
	edge  *edge.Edge
	api   http.Handler
	miosa http.Handler
	log   *slog.Logger
}

func (e *entrance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if e.edge.Match(r) {
		e.edge.ServeHTTP(w, r)
		return
	}
	if miosa.Match(r) {
		e.miosa.ServeHTTP(w, r)
		return
	}
	e.api.ServeHTTP(w, r)
}

// addresses are the URLs at which the listeners are reached from this host.
type addresses struct{ http, https string }

// listen opens the listeners and serves them in g until ctx ends.
func (e *entrance) listen(ctx context.Context, g *errgroup.Group, c Config, t *tlsFiles) (addresses, error) {
	var at addresses
	if c.HTTP != "" {
		l, err := listenAt("--http", c.HTTP)
		if err != nil {
			return at, err
		}
		at.http = urlOf("http", l.Addr().String())
		e.serve(ctx, g, bulk.Listener{Listener: l})
	}
	if c.HTTPS != "" {
		l, err := listenAt("--https", c.HTTPS)
		if err != nil {
			return at, err
		}
		at.https = urlOf("https", l.Addr().String())
		e.serve(ctx, g, tls.NewListener(bulk.Listener{Listener: l}, t.config))
	}
	return at, nil
}

func listenAt(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; choose another address, or stop what listens there", flag, err)
	}
	return l, nil
}

// addressesFree tells of an address that is taken before anything is made: a base
// template takes a minute. Nobody is kept waiting there meanwhile, as who finds a
// listener would be.
func (c Config) addressesFree() error {
	for _, at := range [][2]string{{"--http", c.HTTP}, {"--https", c.HTTPS}} {
		if at[1] == "" {
			continue
		}
		l, err := listenAt(at[0], at[1])
		if err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (e *entrance) serve(ctx context.Context, g *errgroup.Group, l net.Listener) {
	srv := &http.Server{Handler: e, ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelDebug)}
	edge.Harden(srv)
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		// Streams may be open for hours; requests get a moment to end.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			return srv.Close()
		}
		return nil
	})
}

// tlsFiles is how the HTTPS listener proves who it is. Files are "" with a
// certificate of the operator's own.
type tlsFiles struct {
	config   *tls.Config
	caFile   string
	caBundle string
}

func (s *Server) loadTLS() (*tlsFiles, error) {
	if s.cfg.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(s.cfg.TLSCert, s.cfg.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert, --tls-key: %w", err)
		}
		return &tlsFiles{config: &tls.Config{Certificates: []tls.Certificate{cert},
			MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}}, nil
	}
	dir := filepath.Join(s.cfg.DataDir, "tls")
	ca, err := localca.Open(dir, s.cfg.Domain, time.Now)
	if err != nil {
		return nil, fmt.Errorf("local certificate authority: %w", err)
	}
	bundle, err := writeBundle(dir, ca.CertFile())
	if err != nil {
		return nil, fmt.Errorf("local certificate authority: %w", err)
	}
	return &tlsFiles{config: ca.TLSConfig(), caFile: ca.CertFile(), caBundle: bundle}, nil
}

// hostRoots is where the distributions keep their roots in one file.
var hostRoots = [...]string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"}

// writeBundle puts our authority and the host's roots into one file: a client
// whose SSL_CERT_FILE pointed at ours alone could reach nobody else.
func writeBundle(dir, caFile string) (string, error) {
	text, err := os.ReadFile(caFile)
	if err != nil {
		return "", err
	}
	for _, path := range hostRoots {
		if roots, err := os.ReadFile(path); err == nil {
			text = append(append(text, '\n'), roots...)
			break
		}
	}
	path := filepath.Join(dir, "ca-bundle.crt")
	return path, atomicfile.Write(path, text, 0o644)
}

// announce writes what the command on this host reads.
func (s *Server) announce(p *parts, at addresses) error {
	f := clientfile.File{APIKey: p.key, APIURL: at.http, Domain: s.cfg.Domain, CAFile: p.tls.caFile, CABundle: p.tls.caBundle}
	if at.https != "" {
		f.TLSDomain = s.publicDomain()
	}
	if err := clientfile.Write(s.cfg.DataDir, f); err != nil {
		return fmt.Errorf("client file: %w", err)
	}
	return nil
}
