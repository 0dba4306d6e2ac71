package nacre

import (
	"context"
	"time"
)

// RequestKey names a request that a client may send more than once though it is
// to happen once.
type RequestKey struct {
	TeamID TeamID
	Route  string // method and path, as sent
	Key    string // the client's own, 1 to 255 bytes
}

// KeptRequest is what is known of such a request.
type KeptRequest struct {
	RequestKey
	Body [32]byte // hash of what it asks for

	// Holder is who runs the request, until Lease unless it renews; "" when the
	// answer is known. Taken counts the holders that it lost.
	Holder string
	Lease  time.Time
	Taken  int

	Status      int // of the answer; 0 while there is none
	ContentType string
	Answer      []byte // secret: an answer may hold tokens

	CreatedAt time.Time
}

// RequestStore keeps requests, so that a repeat is answered and not done again,
// after a restart too. Errors and concurrency as in SandboxStore.
type RequestStore interface {
	// ClaimRequest makes r.Holder the one who runs the request and tells whether it
	// is. It is when the key is new, when its record is older than keepSince, and when
	// the lease of the holder before has passed at the time now: then Taken has grown.
	// Otherwise it returns what is kept: a request
	// that somebody runs, or an answer. Another Body under the key is CodeConflict.
	ClaimRequest(ctx context.Context, r KeptRequest, now, keepSince time.Time) (kept KeptRequest, claimed bool, err error)

	// RenewRequest moves the lease. When somebody else holds
	// the request, or it was answered, that is CodeConflict.
	RenewRequest(ctx context.Context, k RequestKey, holder string, until time.Time) error

	// AnswerRequest keeps the answer (Status, ContentType, Answer of r) for good. A
	// holder that lost the request is CodeConflict.
	AnswerRequest(ctx context.Context, r KeptRequest) error

	// ForgetRequest gives the key up, for a request that did nothing. One that the
	// holder does not hold stays, without an error.
	ForgetRequest(ctx context.Context, k RequestKey, holder string) error

	// PurgeRequests forgets those made before the time, at most limit, and returns how many.
	PurgeRequests(ctx context.Context, before time.Time, limit int) (int, error)
}
