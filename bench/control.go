package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
	"github.com/nacrehq/nacre/api"
	"github.com/nacrehq/nacre/api/moru"
	"github.com/nacrehq/nacre/control"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/node"
	"github.com/nacrehq/nacre/sqlstore"
)

// plane is the control plane on machines that cost nothing: the service, the node
// and the store, which is on a real disk and syncs.
type plane struct {
	db      *sqlstore.DB
	node    *node.Node
	service *control.Service
	team    nacre.TeamID
	key     string
	api     *httptest.Server

	dirs []string
}

const fakeBuild = nacre.BuildID("b0000000000000000001")

func newPlane(ctx context.Context) (_ *plane, err error) {
	p := &plane{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	dir, err := p.tempDir("")
	if err != nil {
		return nil, err
	}
	if err := p.openStore(ctx, dir); err != nil {
		return nil, err
	}
	handles, err := p.tempDir("/run") // where the server has them
	if err != nil {
		return nil, err
	}
	fake := nacretest.NewFakeHost(fakeBuild).Daemon()
	p.node, err = node.New(node.Config{
		Dir: filepath.Join(dir, "node"), HandleDir: handles, AgentPath: "/agent",
		Runtime: fake.Runtime(), Network: fake.Network(), Images: fake.Images(), NewAgent: fake.NewAgent,
		Admission: node.Admission{MaxSandboxes: 1 << 20, Overcommit: 1e6, MaxBoots: 1024, MaxQueue: 1 << 20},
		Host: func() (node.HostStats, error) {
			return node.HostStats{MemoryTotal: 64 << 30, MemoryAvailable: 60 << 30, DiskTotal: 1 << 40, DiskFree: 1 << 39}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	if err := p.node.Recover(ctx); err != nil {
		return nil, err
	}
	p.service, err = control.New(control.Config{Store: p.db, Templates: p.db, Node: p.node, Telemetry: p.node})
	if err != nil {
		return nil, err
	}
	p.api = httptest.NewServer(moru.New(moru.Config{
		Service: p.service, Auth: api.NewAuth(p.db, time.Now), Teams: p.db, EnvdVersion: envd.Version,
	}))
	return p, nil
}

func (p *plane) tempDir(parent string) (string, error) {
	dir, err := os.MkdirTemp(parent, "nacre-bench-")
	if err == nil {
		p.dirs = append(p.dirs, dir)
	}
	return dir, err
}

// openStore makes the records with a template and a team.
func (p *plane) openStore(ctx context.Context, dir string) (err error) {
	if p.db, err = sqlstore.Open(ctx, filepath.Join(dir, "nacre.db"), sqlstore.Options{}); err != nil {
		return err
	}
	err = p.db.PutTemplate(ctx, nacre.Template{ID: "t0000000000000000001", Names: []string{"base"}, Public: true, Build: fakeBuild,
		Resources: nacre.Resources{CPUs: 1, MemoryMiB: 64}})
	if err != nil {
		return err
	}
	team, err := p.db.EnsureTeam(ctx, "bench")
	if err != nil {
		return err
	}
	secret, key := nacre.NewKey(team.ID, "bench", time.Now())
	p.team, p.key = team.ID, secret
	return p.db.InsertKey(ctx, key)
}

func (p *plane) close() {
	if p.api != nil {
		p.api.Close()
	}
	if p.node != nil {
		_ = p.node.Close()
	}
	if p.db != nil {
		_ = p.db.Close()
	}
	for _, dir := range p.dirs {
		_ = os.RemoveAll(dir)
	}
}

// benchControl: creates a second of the control plane alone, by 64 callers: the
// record and its events written and synced twice, the node's handle, the fake
// machine told who it is; and the same through HTTP, authentication and JSON.
func benchControl(ctx context.Context, b *bench) error {
	const callers = 64
	lasts := 5 * time.Second
	if b.quick {
		lasts = time.Second
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	defer client.CloseIdleConnections()
	for _, c := range []struct {
		name   string
		target string
		create func(context.Context, *plane) error
	}{
		{"control plane alone", ">= 2000", func(ctx context.Context, p *plane) error {
			_, err := p.service.Create(ctx, p.team, nacre.CreateRequest{Metadata: map[string]string{"user": "u"}})
			return err
		}},
		{"control plane over HTTP", "", func(ctx context.Context, p *plane) error { return p.post(ctx, client) }},
	} {
		p, err := newPlane(ctx)
		if err != nil {
			return err
		}
		took, rate, err := storm(ctx, callers, lasts, func() error { return c.create(ctx, p) })
		p.close()
		if err != nil {
			return err
		}
		b.report.value(fmt.Sprintf("%s, %d callers, creates", c.name, callers), "1/s", rate, c.target, "no machines; the client is in the same process")
		b.report.add(fmt.Sprintf("%s, %d callers, one create", c.name, callers), "ms", took, "", "")
	}
	return nil
}

func (p *plane) post(ctx context.Context, client *http.Client) error {
	body := bytes.NewReader([]byte(`{"templateID":"base","timeout":300,"metadata":{"user":"u"}}`))
	req, err := http.NewRequestWithContext(ctx, "POST", p.api.URL+"/sandboxes", body)
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", p.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusCreated {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return err
}

// storm has callers call do again and again for a while, and returns how long each
// call took and how many a second there were.
func storm(ctx context.Context, callers int, lasts time.Duration, do func() error) (series, float64, error) {
	var mu sync.Mutex
	var all series
	var failed []error
	var wg sync.WaitGroup
	begin := time.Now()
	for range callers {
		wg.Go(func() {
			var mine series
			var err error
			for err == nil && time.Since(begin) < lasts && ctx.Err() == nil {
				at := time.Now()
				err = do()
				mine.since(at)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
			if err != nil {
				failed = append(failed, err)
			}
		})
	}
	wg.Wait()
	return all, float64(len(all)) / time.Since(begin).Seconds(), errors.Join(append(failed, ctx.Err())...)
}
