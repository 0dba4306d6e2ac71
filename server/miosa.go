package server

import (
	"time"

	"github.com/nacrehq/nacre/api"
	"github.com/nacrehq/nacre/api/miosa"
)

// miosaAPI makes the second dialect, over the same service and keys.
func (s *Server) miosaAPI(p *parts, sec secrets, auth *api.Auth) *miosa.API {
	a := miosa.New(miosa.Config{
		Service: p.control, Snapshots: p.control, Traffic: p.node, Activity: p.control, Auth: auth, TokenKey: sec.tokens,
		Nouns:  miosa.Nouns{Editor: p.control, Events: p.db},
		Domain: s.publicDomain(), Logger: s.log, Clock: time.Now,
	})
	p.onClose(a.Close)
	return a
}
