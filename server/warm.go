package server

import (
	"context"
	_ "embed" // preload.py
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

//go:embed preload.py
var preload string

// startPython is the command that leaves an interpreter running which has imported
// what most programs do.
func startPython() string {
	return "exec python3 -c '" + strings.ReplaceAll(preload, "'", `'\''`) + "'"
}

// warmTemplates keeps the state behind the start commands of the built-in templates,
// unless what is kept fits this host already. Until it is there, and where it cannot
// be made, sandboxes of these templates boot. A host that is full is asked again.
func (s *Server) warmTemplates(ctx context.Context, p *parts) {
	for s.warmOnce(ctx, p) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Minute):
		}
	}
}

// warmOnce tells whether some template waits for room.
func (s *Server) warmOnce(ctx context.Context, p *parts) (again bool) {
	for _, b := range builtins {
		if b.start == "" || ctx.Err() != nil {
			continue
		}
		t, err := p.db.ResolveTemplate(ctx, "", string(b.id))
		if err == nil {
			_, err = p.control.PrepareWarm(ctx, t)
		}
		switch {
		case err == nil || ctx.Err() != nil:
		case nacre.IsCode(err, nacre.CodeUnsupported):
			s.log.Info("templates are not made warm here", "reason", nacre.ErrorMessage(err))
			return false
		case nacre.IsCode(err, nacre.CodeExhausted):
			again = true
		default:
			s.log.Warn("a template could not be made warm; its sandboxes boot", "template", b.names[0], "err", err)
		}
	}
	return again
}
