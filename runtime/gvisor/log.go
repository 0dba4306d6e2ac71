package gvisor

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"gvisor.dev/gvisor/pkg/log"
)

// redirectLog sends what gVisor's code says in this process to the logger. Its
// log is one variable for the whole process; by default it writes to stderr.
func redirectLog(to *slog.Logger) {
	log.SetTarget(emitter{to})
	log.SetLevel(log.Warning)
}

type emitter struct{ to *slog.Logger }

// Emit implements log.Emitter.
func (e emitter) Emit(_ int, level log.Level, _ time.Time, format string, args ...any) {
	l := slog.LevelDebug
	if level == log.Warning {
		l = slog.LevelWarn
	}
	e.to.Log(context.Background(), l, "gvisor: "+fmt.Sprintf(format, args...))
}
