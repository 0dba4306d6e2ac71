package api

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/nacrehq/nacre"
)

// recorder remembers what was answered. http.ResponseController reaches the
// real writer through Unwrap, so streams can be flushed.
type recorder struct {
	http.ResponseWriter
	status int // 0 until the answer begins
	bytes  int64
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

type logLine struct {
	id    string
	route string
	took  time.Duration
	err   error
}

// log writes one line a request. Headers and the query stay out of it: keys,
// tokens, signatures and metadata are in there.
func (h *handler) log(c *Call, rec *recorder, l logLine) {
	level := slog.LevelInfo
	attrs := []slog.Attr{
		slog.String("request_id", l.id),
		slog.String("method", clip(c.R.Method, 16)),
		slog.Int("status", rec.status),
		slog.Int64("bytes", rec.bytes),
		slog.Duration("took", l.took),
		slog.String("remote", c.R.RemoteAddr),
	}
	if l.route != "" {
		attrs = append(attrs, slog.String("route", l.route))
	} else {
		attrs = append(attrs, slog.String("path", clip(c.R.URL.Path, 100)))
	}
	if c.Team != "" {
		attrs = append(attrs, slog.String("team", string(c.Team)), slog.String("key", c.Key.ID))
	}
	if id := nacre.SandboxID(c.R.PathValue("id")); id.Valid() {
		attrs = append(attrs, slog.String("sandbox", string(id)))
	}
	if l.err != nil {
		attrs = append(attrs, slog.String("code", string(nacre.ErrorCode(l.err))))
		if rec.status >= 500 {
			if c.R.Context().Err() == nil { // else the client went away: no failure of ours
				level = slog.LevelError
			}
			attrs = append(attrs, slog.String("error", l.err.Error()))
		}
	}
	h.Logger.LogAttrs(c.R.Context(), level, "request", attrs...)
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
