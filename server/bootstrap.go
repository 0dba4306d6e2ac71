package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/image/base"
	"github.com/nacrehq/nacre/internal/clientfile"
	"github.com/nacrehq/nacre/node"
	"github.com/nacrehq/nacre/runtime/firecracker"
)

// defaultTeam owns the key that `nacre env` prints.
const defaultTeam = "default"

// defaultKey returns the key of the default team and makes it on the first
// start. The store has its hash only; the key itself is in the client file.
func (s *Server) defaultKey(ctx context.Context, teams nacre.TeamStore) (string, error) {
	team, err := teams.EnsureTeam(ctx, defaultTeam)
	if err != nil {
		return "", fmt.Errorf("default team: %w", err)
	}
	kept := clientfile.Key(s.cfg.DataDir)
	if hash, ok := nacre.HashKey(kept); ok {
		_, err := teams.KeyByHash(ctx, hash)
		if err == nil {
			return kept, nil
		}
		if !nacre.IsCode(err, nacre.CodeNotFound) {
			return "", fmt.Errorf("default key: %w", err)
		}
	}
	// Into the file first: what the store alone has can never be found again, and each
	// start that ends before it is ready would leave one more.
	secret, key := nacre.NewKey(team.ID, "made by nacre up", time.Now())
	if err := clientfile.WriteKey(s.cfg.DataDir, secret); err != nil {
		return "", fmt.Errorf("client file: %w", err)
	}
	if err := teams.InsertKey(ctx, key); err != nil {
		return "", fmt.Errorf("default key: %w", err)
	}
	return secret, nil
}

// builtin is a template that every installation has. One without a size has that of
// the configuration.
type builtin struct {
	id    nacre.TemplateID
	names []string
	size  nacre.Resources
	// start is run before its warm snapshot is taken, which is when ready succeeds.
	start, ready string
}

// runtime returns what was said of one of the template's names.
func (b builtin) runtime(said map[string]nacre.RuntimeName) (on nacre.RuntimeName) {
	for _, name := range b.names {
		on = cmp.Or(on, said[name])
	}
	return on
}

// resources are those of the template's sandboxes.
func (b builtin) resources(c Config) nacre.Resources {
	res := nacre.Resources{CPUs: c.CPUs, MemoryMiB: c.MemoryMiB, DiskMiB: c.DiskMiB}
	if b.size != (nacre.Resources{}) {
		res = b.size
	}
	res.MaxPIDs = c.MaxPIDs
	templates, _ := parseTemplatePages(c.TemplatePages) // validated by Load
	res.HugePages = b.pages(templates)
	return res
}

// builtins are all on the base image.
var builtins = [...]builtin{
	{id: "tnacrebase0000000000", names: []string{"base", "moru-ai/base", "e2bdev/base"}},
	{id: "tnacrepython00000000", names: []string{"python"}, start: startPython(), ready: "test -S /tmp/.python/sock"},
	{id: "tnacrenode0000000000", names: []string{"node"}},
	{id: "tnacremiosa000000000", names: []string{"miosa-sandbox"}, size: nacre.Resources{CPUs: 1, MemoryMiB: 1024, DiskMiB: 3072}},
}

// baseMissing tells whether the base image would have to be built.
func (s *Server) baseMissing() bool {
	return s.cfg.BaseImage == "" && !base.Cached(s.cfg.CacheDir)
}

// baseTemplate makes the built-in templates resolve: it builds the image unless
// the cache has it, brings it into the image store, and keeps standbys of it.
func (s *Server) baseTemplate(ctx context.Context, p *parts, adm *admin) error {
	path, build, err := s.baseImage(ctx, adm)
	if err != nil {
		return err
	}
	if err := p.images.Import(ctx, build, path); err != nil {
		return err
	}
	runtimes, err := parseTemplateRuntimes(s.cfg.TemplateRuntime)
	if err != nil {
		return err
	}
	now := time.Now()
	for _, b := range builtins {
		on, res := b.runtime(runtimes), b.resources(s.cfg)
		can, err := p.runtime.Capabilities().Offers(on)
		if err != nil {
			return fmt.Errorf("--template-runtime %s=%s: %s", b.names[0], on, nacre.ErrorMessage(err))
		}
		if err := mayHavePages(b.names[0], res, can); err != nil {
			return err
		}
		t := nacre.Template{ID: b.id, Names: b.names, Public: true, Build: build, Resources: res, Runtime: on, Start: b.start, Ready: b.ready, CreatedAt: now, UpdatedAt: now}
		if old, err := p.db.ResolveTemplate(ctx, "", string(b.id)); err == nil {
			t.CreatedAt = old.CreatedAt
			if old.Build == build && old.Resources == res && old.Runtime == on && old.Start == b.start && old.Ready == b.ready {
				continue
			}
		} else if !nacre.IsCode(err, nacre.CodeNotFound) {
			return err
		}
		if err := p.db.PutTemplate(ctx, t); err != nil {
			return err
		}
	}
	for _, f := range pageFindings(s.cfg, firecracker.HugePages) {
		if f.Level != "ok" {
			s.log.Warn(f.What, "advice", f.Advice)
		}
	}
	p.node.KeepReady(node.Shape{Build: build, Runtime: builtins[0].runtime(runtimes), Resources: builtins[0].resources(s.cfg)})
	return nil
}

// baseImage returns the image and the name of its build.
func (s *Server) baseImage(ctx context.Context, adm *admin) (string, nacre.BuildID, error) {
	if s.cfg.BaseImage == "" {
		r, err := base.Build(ctx, base.Options{CacheDir: s.cfg.CacheDir, Logger: s.log, Progress: func(step string, done, total int64) {
			adm.step("base template: " + step)
			s.opts.Progress(step, done, total)
		}})
		if err != nil {
			return "", "", err
		}
		return r.Path, r.Build(), nil
	}
	st, err := os.Stat(s.cfg.BaseImage)
	if err != nil {
		return "", "", fmt.Errorf("--base-image: %w", err)
	}
	if !st.Mode().IsRegular() {
		return "", "", errors.New("--base-image: want a regular file")
	}
	// Hashing the whole would cost a second at every start; a changed file has
	// another size or time.
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %d", s.cfg.BaseImage, st.Size(), st.ModTime().UnixNano()))
	return s.cfg.BaseImage, nacre.BuildID("b" + hex.EncodeToString(sum[:])[:19]), nil
}
