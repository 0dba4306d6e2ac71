package agent

import (
	"context"
	"net/http"
)

// lastWriter sends each message of a stream at once, but for the last: that goes out
// with the end of the stream and of the body, which follow at once. Three writes cost a
// guest, the edge and the client as much as three messages.
type lastWriter struct {
	http.ResponseWriter
	last bool
}

type lastKey struct{}

// withLast makes the answer to a request one that lastMessage knows.
func withLast(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request) {
	l := &lastWriter{ResponseWriter: w}
	return l, r.WithContext(context.WithValue(r.Context(), lastKey{}, l))
}

// lastMessage says that the stream's handler sends one more message and returns.
func lastMessage(ctx context.Context) {
	if l, ok := ctx.Value(lastKey{}).(*lastWriter); ok {
		l.last = true
	}
}

// Flush implements http.Flusher; the server flushes after the handler.
func (w *lastWriter) Flush() {
	if !w.last {
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
}

// Unwrap is for http.ResponseController.
func (w *lastWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
