package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"time"

	"github.com/nacrehq/nacre"
)

// A request with an Idempotency-Key happens once in a day, however often it is sent.
const (
	keepRequests = 24 * time.Hour
	requestLease = 30 * time.Second // renewed while the request runs
	requestTime  = 5 * time.Minute
	joinEvery    = 100 * time.Millisecond
	joinMost     = 2 * time.Minute
	purgeEvery   = time.Hour
)

// HeaderKey names a request that a client may send again; HeaderReplay marks the
// answer to a repeat.
const (
	HeaderKey    = "Idempotency-Key"
	HeaderReplay = "Idempotent-Replay"
)

// Causes that an error table may ask for, see ErrMethod.
var (
	ErrKeyReused = errors.New("idempotency key used for another request")
	ErrKeyBusy   = errors.New("the first request with the idempotency key has not ended")
)

// Once makes requests with an Idempotency-Key happen once, per team and path: while
// the first runs the others wait for it, and then they get its answer, for a day and
// over restarts. A failure is no answer: it did nothing, and the key is free again.
//
// A request that was lost in a crash is run again by the next that sends its key, a
// moment later; Mark lets its handler find what it had made.
type Once struct {
	Requests nacre.RequestStore
	Logger   *slog.Logger // nil means none
	Clock    nacre.Clock  // nil means time.Now
}

// Mark names one request with a key for ever. Put it into what the request makes.
type Mark struct {
	ID    string
	Taken bool // somebody ran the request before and was lost: it may have made that
}

type markKey struct{}

// MarkOf returns the mark of the request that is run, the zero one when it has no key.
func MarkOf(ctx context.Context) Mark {
	m, _ := ctx.Value(markKey{}).(Mark)
	return m
}

// Handler makes a handler one that obeys the header. A nil Once changes nothing. The
// handler's context goes on when the client goes away.
func (o *Once) Handler(handle func(*Call) error) func(*Call) error {
	if o == nil || o.Requests == nil {
		return handle
	}
	return func(c *Call) error {
		key := c.R.Header.Get(HeaderKey)
		if key == "" {
			return handle(c)
		}
		body, err := io.ReadAll(http.MaxBytesReader(c.W, c.R.Body, MaxBody))
		if err != nil {
			return nacre.Wrap(nacre.CodeInvalid, ErrTooLarge, "the request body is too large, or could not be read to its end")
		}
		var b [12]byte
		_, _ = rand.Read(b[:])
		r := nacre.KeptRequest{
			RequestKey: nacre.RequestKey{TeamID: c.Team, Route: c.R.Method + " " + c.R.URL.Path, Key: key},
			Body:       sha256.Sum256(body), Holder: hex.EncodeToString(b[:]),
		}
		return o.claim(c, r, body, handle)
	}
}

// claim runs the request, or waits for who runs it and answers as they did.
func (o *Once) claim(c *Call, r nacre.KeptRequest, body []byte, handle func(*Call) error) error {
	ctx, cancel := context.WithTimeout(c.R.Context(), joinMost)
	defer cancel()
	for {
		now := o.now()
		r.CreatedAt, r.Lease = now, now.Add(requestLease)
		kept, claimed, err := o.Requests.ClaimRequest(ctx, r, now, now.Add(-keepRequests))
		switch {
		case nacre.IsCode(err, nacre.CodeConflict):
			return &nacre.Error{Code: nacre.CodeInvalid, Field: HeaderKey, Err: ErrKeyReused,
				Message: "this Idempotency-Key was used for another request; take a fresh one"}
		case err != nil:
			return err
		case claimed:
			r.Taken, r.CreatedAt = kept.Taken, kept.CreatedAt
			return o.run(c, r, body, handle)
		case kept.Status != 0:
			h := c.W.Header()
			h.Set("Content-Type", kept.ContentType)
			h.Set("Cache-Control", "no-store")
			h.Set(HeaderReplay, "true")
			c.W.WriteHeader(kept.Status)
			_, _ = c.W.Write(kept.Answer) // the client may have gone
			return nil
		}
		select {
		case <-ctx.Done():
			return nacre.Wrap(nacre.CodeConflict, ErrKeyBusy, "the first request with this Idempotency-Key has not ended yet; ask again")
		case <-time.After(joinEvery):
		}
	}
}

// run runs the request though its client goes away, and keeps its answer before
// anybody sees it. One that failed did nothing, and may be tried again.
func (o *Once) run(c *Call, r nacre.KeptRequest, body []byte, handle func(*Call) error) error {
	// A key that is used again on another day names another request.
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%d", r.TeamID, r.Route, r.Key, r.CreatedAt.UnixMicro()))
	ctx := context.WithValue(context.WithoutCancel(c.R.Context()), markKey{}, Mark{hex.EncodeToString(sum[:16]), r.Taken > 0})
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	renewed := make(chan struct{})
	rctx, stop := context.WithCancel(ctx)
	go func() {
		defer close(renewed)
		o.renew(rctx, r, cancel)
	}()
	defer func() { stop(); <-renewed }()

	answer := &kept{header: c.W.Header()}
	call := *c
	call.W, call.R = answer, c.R.WithContext(ctx)
	call.R.Body = io.NopCloser(bytes.NewReader(body))
	if err := handle(&call); err != nil || answer.status >= 300 {
		if ferr := o.Requests.ForgetRequest(context.WithoutCancel(ctx), r.RequestKey, r.Holder); ferr != nil {
			o.log().Warn("a failed request is kept until its lease ends", "err", ferr)
		}
		if err == nil {
			answer.send(c.W)
		}
		return err
	}
	done := r
	done.Status, done.ContentType, done.Answer = answer.status, answer.header.Get("Content-Type"), answer.body.Bytes()
	if err := o.Requests.AnswerRequest(ctx, done); err != nil {
		o.log().Warn("the answer of a request could not be kept", "err", err)
	}
	answer.send(c.W)
	return nil
}

// renew holds the request until ctx ends; lost is called when another has it.
func (o *Once) renew(ctx context.Context, r nacre.KeptRequest, lost func()) {
	tick := time.NewTicker(requestLease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := o.Requests.RenewRequest(ctx, r.RequestKey, r.Holder, o.now().Add(requestLease))
		if nacre.IsCode(err, nacre.CodeConflict) {
			lost()
			return
		}
	}
}

// kept is an answer that is not sent yet.
type kept struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (k *kept) Header() http.Header { return k.header }

func (k *kept) WriteHeader(status int) {
	if k.status == 0 {
		k.status = status
	}
}

func (k *kept) Write(p []byte) (int, error) {
	k.WriteHeader(http.StatusOK)
	return k.body.Write(p)
}

func (k *kept) send(w http.ResponseWriter) {
	w.WriteHeader(k.status)
	_, _ = w.Write(k.body.Bytes()) // the client may have gone
}

// MadeBefore finds the sandbox that the request made before whoever ran it was lost.
func MadeBefore(c *Call, service nacre.Service) (s nacre.Sandbox, found bool, err error) {
	m := MarkOf(c.R.Context())
	if !m.Taken {
		return s, false, nil
	}
	page, err := service.List(c.R.Context(), c.Team, nacre.SandboxFilter{Metadata: map[string]string{nacre.LabelRequest: m.ID}, Limit: 1})
	if err != nil || len(page.Sandboxes) == 0 {
		return s, false, err
	}
	s = page.Sandboxes[0]
	// One that failed to start was not made.
	return s, s.State != nacre.StateCreating && s.EndReason != nacre.EndFailed, nil
}

// NotAgain is CodeConflict for a request that was lost in a crash and whose outcome
// its handler cannot tell. The client learns of it, and may send the key once more.
func NotAgain(c *Call) error {
	if !MarkOf(c.R.Context()).Taken {
		return nil
	}
	return nacre.Errorf(nacre.CodeConflict, "the server stopped while this request was run; look what became of it, then send it again to run it anew")
}

// Note returns the metadata of what a request makes, with its mark.
func Note(ctx context.Context, meta map[string]string) map[string]string {
	id := MarkOf(ctx).ID
	if _, foreign := meta[nacre.LabelRequest]; id == "" && !foreign {
		return meta
	}
	out := maps.Clone(meta)
	if out == nil {
		out = map[string]string{}
	}
	delete(out, nacre.LabelRequest)
	if id != "" {
		out[nacre.LabelRequest] = id
	}
	return out
}

// Run forgets requests that are older than a day, until ctx ends.
func (o *Once) Run(ctx context.Context) error {
	tick := time.NewTicker(purgeEvery)
	defer tick.Stop()
	for {
		if _, err := o.Requests.PurgeRequests(ctx, o.now().Add(-keepRequests), 10000); err != nil && ctx.Err() == nil {
			o.log().Warn("old requests could not be purged; it is tried again", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (o *Once) now() time.Time {
	if o.Clock == nil {
		return time.Now().UTC()
	}
	return o.Clock().UTC()
}

func (o *Once) log() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}
