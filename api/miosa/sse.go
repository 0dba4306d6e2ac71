package miosa

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/nacrehq/nacre/api"
)

// heartbeat is how often a silent stream shows that it is alive. Clients' time-outs
// count between two bytes.
const heartbeat = 10 * time.Second

// sse writes a stream of events. One goroutine at a time may use it.
type sse struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

// startSSE begins the answer; from now on errors can only end it.
func startSSE(c *api.Call) (*sse, error) {
	h := c.W.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-cache, no-transform")
	h.Set("X-Accel-Buffering", "no")
	c.W.WriteHeader(http.StatusOK)
	s := &sse{w: c.W, rc: http.NewResponseController(c.W)}
	return s, s.rc.Flush()
}

// send writes one event. data encodes as an object whose "type" is the name, which
// some clients read instead of it. seq 0 means no id.
func (s *sse) send(name string, seq int64, data any) error {
	line := make([]byte, 0, 256)
	if seq > 0 {
		line = append(line, "id: "...)
		line = strconv.AppendInt(line, seq, 10)
		line = append(line, '\n')
	}
	line = append(line, "event: "...)
	line = append(line, name...)
	line = append(line, "\ndata: "...)
	line = append(line, encode(data)...)
	line = append(line, "\n\n"...)
	if _, err := s.w.Write(line); err != nil {
		return err
	}
	return s.rc.Flush()
}

// beat writes a comment.
func (s *sse) beat() error {
	if _, err := s.w.Write([]byte(": heartbeat\n\n")); err != nil {
		return err
	}
	return s.rc.Flush()
}

// follow sends what produce gives until it returns, with heartbeats between. When the
// client goes away produce's context ends, and follow returns after produce has.
func follow[T any](ctx context.Context, s *sse, produce func(ctx context.Context, give func(T) error) error, send func(T) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	items := make(chan T)
	result := make(chan error, 1)
	go func() {
		defer close(items)
		result <- produce(ctx, func(v T) error {
			select {
			case items <- v:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	err := pass(s, items, send)
	cancel()
	for range items { // until produce has returned
	}
	if err != nil {
		return err
	}
	return <-result
}

// pass sends items until there are no more.
func pass[T any](s *sse, items <-chan T, send func(T) error) error {
	silence := time.NewTicker(heartbeat)
	defer silence.Stop()
	for {
		select {
		case v, ok := <-items:
			if !ok {
				return nil
			}
			if err := send(v); err != nil {
				return err
			}
		case <-silence.C:
			if err := s.beat(); err != nil {
				return err
			}
		}
	}
}

// quiet drops the error of a stream whose client has gone.
func quiet(c *api.Call, err error) error {
	if c.R.Context().Err() != nil {
		return nil
	}
	return err
}
