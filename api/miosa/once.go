package miosa

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// A request with an Idempotency-Key happens once in a day, however often it is sent.
const (
	keepRequests = 24 * time.Hour
	requestLease = 30 * time.Second // renewed while the request runs
	requestTime  = 5 * time.Minute
	joinEvery    = 100 * time.Millisecond
	joinMost     = 2 * time.Minute
)

// keyRequest marks what a request made, so that whoever takes the request over after
// a crash finds it instead of making it again.
const keyRequest = nacre.ReservedMetadata + "request"

// onceKey carries the mark of a request that happens once.
type onceKey struct{}

type onceMark struct {
	mark  string
	taken bool // somebody ran it before and was lost
}

// marked returns the mark of a request, "" for one without a key.
func marked(ctx context.Context) onceMark {
	m, _ := ctx.Value(onceKey{}).(onceMark)
	return m
}

// once makes a handler one that obeys the header.
func (a *API) once(handle func(*api.Call) error) func(*api.Call) error {
	return func(c *api.Call) error {
		key := c.R.Header.Get("Idempotency-Key")
		if key == "" || a.Requests == nil {
			return handle(c)
		}
		if len(key) > 255 {
			return nacre.Invalidf("Idempotency-Key", "Idempotency-Key must have at most 255 bytes")
		}
		body, err := io.ReadAll(http.MaxBytesReader(c.W, c.R.Body, api.MaxBody))
		if err != nil {
			return nacre.Wrap(nacre.CodeInvalid, api.ErrTooLarge, "the request body is too large, or could not be read to its end")
		}
		var b [12]byte
		_, _ = rand.Read(b[:])
		r := nacre.KeptRequest{
			RequestKey: nacre.RequestKey{TeamID: c.Team, Route: c.R.Method + " " + c.R.URL.Path, Key: key},
			Body:       sha256.Sum256(body), Holder: hex.EncodeToString(b[:]),
		}
		return a.claim(c, r, body, handle)
	}
}

// claim runs the request, or waits for who runs it and answers as they did.
func (a *API) claim(c *api.Call, r nacre.KeptRequest, body []byte, handle func(*api.Call) error) error {
	ctx, cancel := context.WithTimeout(c.R.Context(), joinMost)
	defer cancel()
	for {
		now := a.Clock().UTC()
		r.CreatedAt, r.Lease = now, now.Add(requestLease)
		kept, claimed, err := a.Requests.ClaimRequest(ctx, r, now, now.Add(-keepRequests))
		switch {
		case nacre.IsCode(err, nacre.CodeConflict):
			return &spelled{error: nacre.Invalidf("Idempotency-Key", "this Idempotency-Key was used for another request; take a fresh one"),
				code: "IDEMPOTENCY_KEY_REUSED"}
		case err != nil:
			return err
		case claimed:
			r.Taken = kept.Taken
			return a.runOnce(c, r, body, handle)
		case kept.Status != 0:
			h := c.W.Header()
			h.Set("Content-Type", kept.ContentType)
			h.Set("Cache-Control", "no-store")
			h.Set("Idempotent-Replay", "true")
			c.W.WriteHeader(kept.Status)
			_, _ = c.W.Write(kept.Answer) // the client may have gone
			return nil
		}
		select {
		case <-ctx.Done():
			return as("REQUEST_IN_PROGRESS", nacre.Errorf(nacre.CodeConflict, "the first request with this Idempotency-Key has not ended yet; ask again"))
		case <-time.After(joinEvery):
		}
	}
}

// runOnce runs the request though its client goes away, and keeps its answer before
// anybody sees it. One that failed did nothing, and may be tried again.
func (a *API) runOnce(c *api.Call, r nacre.KeptRequest, body []byte, handle func(*api.Call) error) error {
	sum := sha256.Sum256([]byte(string(r.TeamID) + "\x00" + r.Route + "\x00" + r.Key))
	ctx := context.WithValue(context.WithoutCancel(c.R.Context()), onceKey{}, onceMark{hex.EncodeToString(sum[:16]), r.Taken > 0})
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	renewed := make(chan struct{})
	rctx, stop := context.WithCancel(ctx)
	go func() {
		defer close(renewed)
		a.renew(rctx, r, cancel)
	}()
	defer func() { stop(); <-renewed }()

	answer := &kept{header: c.W.Header()}
	run := *c
	run.W, run.R = answer, c.R.WithContext(ctx)
	run.R.Body = io.NopCloser(bytes.NewReader(body))
	if err := handle(&run); err != nil || answer.status >= 300 {
		if ferr := a.Requests.ForgetRequest(context.WithoutCancel(ctx), r.RequestKey, r.Holder); ferr != nil {
			a.Logger.Warn("a failed request is kept until its lease ends", "err", ferr)
		}
		if err == nil {
			answer.send(c.W)
		}
		return err
	}
	r.Status, r.ContentType, r.Answer = answer.status, answer.header.Get("Content-Type"), answer.body.Bytes()
	if err := a.Requests.AnswerRequest(ctx, r); err != nil {
		a.Logger.Warn("the answer of a request could not be kept", "err", err)
	}
	answer.send(c.W)
	return nil
}

// renew holds the request until ctx ends; lost is called when another has it.
func (a *API) renew(ctx context.Context, r nacre.KeptRequest, lost func()) {
	tick := time.NewTicker(requestLease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := a.Requests.RenewRequest(ctx, r.RequestKey, r.Holder, a.Clock().UTC().Add(requestLease), "")
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

// madeBefore finds the sandbox that the request made before whoever ran it was lost.
func (a *API) madeBefore(c *api.Call) (s nacre.Sandbox, found bool, err error) {
	m := marked(c.R.Context())
	if !m.taken {
		return s, false, nil
	}
	page, err := a.Service.List(c.R.Context(), c.Team, nacre.SandboxFilter{Metadata: map[string]string{keyRequest: m.mark}, Limit: 1})
	if err != nil || len(page.Sandboxes) == 0 {
		return s, false, err
	}
	s = page.Sandboxes[0]
	// One that failed to start was not made.
	return s, s.State != nacre.StateCreating && s.EndReason != nacre.EndFailed, nil
}

// mark notes the request in the metadata of what it makes.
func mark(ctx context.Context, meta map[string]string) {
	delete(meta, keyRequest)
	if m := marked(ctx); m.mark != "" {
		meta[keyRequest] = m.mark
	}
}
