package server

import (
	"context"
	"net"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
	"github.com/nacrehq/nacre/api/miosa"
	"github.com/nacrehq/nacre/deploy"
	"github.com/nacrehq/nacre/event"
	"github.com/nacrehq/nacre/meter"
)

// nouns are the parts behind what only the MIOSA dialect offers.
type nouns struct {
	hub      *event.Hub
	recorder *event.Recorder
	meter    *meter.Meter
	once     *api.Once
	deployer *deploy.Deployer
}

func (s *Server) buildNouns(p *parts) nouns {
	n := nouns{
		hub:      event.New(event.Config{Log: p.db, Signal: p.db, Logger: s.log}),
		recorder: event.NewRecorder(p.db, time.Now, s.log),
		meter: meter.New(meter.Config{Events: p.db, Signal: p.db, Usage: p.db, Records: p.db, Logger: s.log, Clock: time.Now,
			Labels:  []string{nacre.LabelWorkspace, nacre.LabelProject, nacre.LabelExternalSpace, nacre.LabelExternalUser, nacre.LabelExternalProject},
			Prices:  meter.Prices{VCPU: s.cfg.PriceVCPU, Memory: s.cfg.PriceMemory, Disk: s.cfg.PriceDisk},
			Credits: s.cfg.Credits}),
		once: &api.Once{Requests: p.db, Logger: s.log, Clock: time.Now},
		deployer: deploy.New(deploy.Config{Service: p.control, Snapshots: p.control, Traffic: p.node, Previews: p.db, Store: p.db,
			Teams: p.db, Clock: time.Now, Logger: s.log}),
	}
	p.onClose(n.deployer.Close)
	return n
}

// loops are what must run for them.
func (n nouns) loops() map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"event streams": n.hub.Run, "event recorder": n.recorder.Run, "meter": n.meter.Run, "requests": n.once.Run,
		"deployments": n.deployer.Run,
	}
}

// miosaAPI makes the second dialect, over the same service and keys.
func (s *Server) miosaAPI(p *parts, sec secrets, auth *api.Auth) *miosa.API {
	c := miosa.Config{
		Service: p.control, Snapshots: p.control, Traffic: p.node, Activity: p.control, Auth: auth, TokenKey: sec.tokens,
		Nouns: miosa.Nouns{
			Editor: p.control, Events: p.db, Streams: p.nouns.hub, Previews: p.db, Domains: p.db, Resolver: net.DefaultResolver,
			Secrets: p.db, Once: p.nouns.once, Usage: p.nouns.meter, Emit: p.nouns.recorder.Record,
			Publisher: p.nouns.deployer, Deployments: p.db,
		},
		Domain: s.publicDomain(), Logger: s.log, Clock: time.Now,
	}
	if s.cfg.HTTPS == "" {
		c.Scheme = "http"
	}
	a := miosa.New(c)
	p.onClose(a.Close)
	return a
}
