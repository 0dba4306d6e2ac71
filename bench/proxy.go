package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/edge"
)

const (
	previewBox    = nacre.SandboxID("iaaaaaaaaaaaaaaaaaaaa")
	previewPort   = 8080
	previewDomain = "nacre.localhost"
	previewBulk   = 64 << 20
)

// previews is a node whose one sandbox's ports are a server on this host: what is
// left is the edge's own cost.
type previews struct{ addr string }

func (p previews) route() nacre.Route {
	return nacre.Route{Sandbox: previewBox, Machine: "maaaaaaaaaaaaaaaa"}
}

// Route knows one sandbox.
func (p previews) Route(id nacre.SandboxID) (nacre.Route, bool) { return p.route(), id == previewBox }

// Routes lists it.
func (p previews) Routes(fn func(nacre.Route) bool) { fn(p.route()) }

// Dial leads to the server, whatever the port.
func (p previews) Dial(ctx context.Context, _ nacre.SandboxID, _ int) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", p.addr)
}

// Agent is not asked for.
func (p previews) Agent(context.Context, nacre.SandboxID) (nacre.Agent, error) {
	return nil, errors.New("there is no agent")
}

// hop is a way to the server.
type hop struct{ name, url string }

// benchProxy: a request to a server directly, through the edge, and through
// peers: Go's plain reverse proxy, and Caddy where it can be had. Latency one at a
// time, in turns; then requests of 64 connections, and one large download.
func benchProxy(ctx context.Context, b *bench) error {
	zeros := make([]byte, 256<<10)
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/bulk" {
			_, _ = io.WriteString(w, "hello")
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(previewBulk))
		for range previewBulk / len(zeros) {
			if _, err := w.Write(zeros); err != nil {
				return
			}
		}
	}))
	defer target.Close()
	e := httptest.NewUnstartedServer(edge.New(edge.Config{Traffic: previews{target.Listener.Addr().String()}, Domain: previewDomain,
		Logger: slog.New(slog.DiscardHandler)}))
	edge.Harden(e.Config)
	e.Start()
	defer e.Close()
	to, err := url.Parse(target.URL)
	if err != nil {
		return err
	}
	plain := httputil.NewSingleHostReverseProxy(to)
	plain.Transport = &http.Transport{MaxIdleConnsPerHost: 64}
	g := httptest.NewServer(plain)
	defer g.Close()
	hops := []hop{{"direct", target.URL}, {"edge", e.URL}, {"Go's reverse proxy", g.URL}}
	if peer, stop, err := b.caddy(ctx, to.Host); err == nil {
		defer stop()
		hops = append(hops, hop{"Caddy", peer})
	} else {
		b.report.Versions["caddy"] = "not measured: " + err.Error()
	}
	return b.measureHops(ctx, hops)
}

func (b *bench) measureHops(ctx context.Context, hops []hop) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}
	defer client.CloseIdleConnections()
	latency := make([]series, len(hops))
	for i := range b.samples(2000) + 10 {
		for j, h := range hops {
			begin := time.Now()
			if err := fetch(ctx, client, h.url); err != nil {
				return fmt.Errorf("%s: %w", h.name, err)
			}
			if i >= 10 {
				latency[j].since(begin)
			}
		}
	}
	r := b.report
	for j, h := range hops {
		r.add("small request, "+h.name, "ms", latency[j], "", "")
	}
	r.value("the edge adds to a small request", "ms", latency[1].at(50)-latency[0].at(50), "p50 <= 0.3", "difference of the medians")
	return b.loadHops(ctx, client, hops)
}

// loadHops has each way carry what it can, in turns, twice: the better round
// counts, for a peer that was disturbed must not look slow.
func (b *bench) loadHops(ctx context.Context, client *http.Client, hops []hop) error {
	r := b.report
	const callers = 64
	lasts := 2 * time.Second
	if b.quick {
		lasts /= 4
	}
	rates, bulk := make([]float64, len(hops)), make([]float64, len(hops))
	for range 2 {
		for j, h := range hops {
			_, rate, err := storm(ctx, callers, lasts, func() error { return fetch(ctx, client, h.url) })
			if err != nil {
				return fmt.Errorf("%s: %w", h.name, err)
			}
			rates[j] = max(rates[j], rate)
			begin := time.Now()
			for range 4 {
				if err := fetch(ctx, client, h.url+"/bulk"); err != nil {
					return fmt.Errorf("%s: %w", h.name, err)
				}
			}
			bulk[j] = max(bulk[j], perSecond(4*previewBulk, begin))
		}
	}
	for j, h := range hops {
		r.value(fmt.Sprintf("requests over %d connections, %s", callers, h.name), "1/s", rates[j], "", "client, proxy and server on one host")
		r.value("download, "+h.name, "MB/s", bulk[j], "", "")
	}
	for j, h := range hops[2:] {
		target := ""
		if h.name == "Caddy" {
			target = ">= 0.8"
		}
		r.value("requests, edge / "+h.name, "x", rates[1]/rates[j+2], target, "")
		r.value("download, edge / "+h.name, "x", bulk[1]/bulk[j+2], target, "")
	}
	return nil
}

func fetch(ctx context.Context, c *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return err
	}
	req.Host = fmt.Sprintf("%d-%s.%s", previewPort, previewBox, previewDomain)
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 64<<10)); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}
