package miosa

import (
	"errors"
	"net/http"
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// meaning is how a code of the domain is said here.
type meaning struct {
	status int
	code   string
}

// meanings is the one table from the domain's codes to this dialect's. The clients
// take only 422 for a validation error everywhere, and repeat what got a 500, 502,
// 503 or 504: those stand for requests that did nothing.
var meanings = map[nacre.Code]meaning{
	nacre.CodeInvalid:         {http.StatusUnprocessableEntity, "VALIDATION_FAILED"},
	nacre.CodeUnauthenticated: {http.StatusUnauthorized, "UNAUTHENTICATED"},
	nacre.CodeForbidden:       {http.StatusForbidden, "FORBIDDEN"},
	nacre.CodeNotFound:        {http.StatusNotFound, "NOT_FOUND"},
	nacre.CodeConflict:        {http.StatusConflict, "RESOURCE_STATE"},
	nacre.CodeExhausted:       {http.StatusTooManyRequests, "CAPACITY_EXHAUSTED"},
	nacre.CodeUnavailable:     {http.StatusServiceUnavailable, "UNAVAILABLE"},
	nacre.CodeUnsupported:     {http.StatusNotImplemented, "NOT_SUPPORTED"},
	nacre.CodeMismatch:        {http.StatusConflict, "SNAPSHOT_MISMATCH"},
	nacre.CodeNoSpace:         {http.StatusInsufficientStorage, "NO_SPACE"},
	nacre.CodeDeadline:        {http.StatusRequestTimeout, "TIMEOUT"},
	nacre.CodeInternal:        {http.StatusInternalServerError, "INTERNAL"},
}

// retryAfter is how long a client should wait, in seconds.
const retryAfter = "1"

// spelled is an error with a code of this dialect's own; the status remains that of
// the domain's code unless one is given.
type spelled struct {
	error
	code   string
	status int
}

func (s *spelled) Unwrap() error { return s.error }

// as gives an error a code of this dialect's; nil stays nil.
func as(code string, err error) error {
	if err == nil {
		return nil
	}
	return &spelled{error: err, code: code}
}

func meaningOf(err error) meaning {
	m, ok := meanings[nacre.ErrorCode(err)]
	if !ok {
		m = meanings[nacre.CodeInternal]
	}
	switch {
	case errors.Is(err, api.ErrMethod):
		m = meaning{http.StatusMethodNotAllowed, "METHOD_NOT_ALLOWED"}
	case errors.Is(err, api.ErrTooLarge):
		m = meaning{http.StatusRequestEntityTooLarge, "TOO_LARGE"}
	case errors.Is(err, api.ErrKeyReused):
		m.code = "IDEMPOTENCY_KEY_REUSED"
	case errors.Is(err, api.ErrKeyBusy):
		m.code = "REQUEST_IN_PROGRESS"
	}
	var s *spelled
	if errors.As(err, &s) {
		m.code = s.code
		if s.status != 0 {
			m.status = s.status
		}
	}
	return m
}

// fields turns the domain's names of fields into the wire's.
var fields = map[string]string{
	"Template": "template_id", "Timeout": "timeout_sec", "OnTimeout": "persistent", "Metadata": "metadata", "Env": "env",
	"Resources.CPUs": "cpu_count", "Resources.MemoryMiB": "memory_mb", "Resources.DiskMiB": "disk_size_mb",
	"Name": "name", "IdleTimeout": "idle_timeout_sec", "AlwaysOn": "always_on", "Count": "count",
	"process.cwd": "cwd", "process.cmd": "command", "process.args": "command", "envs": "env",
}

// errorBody is what every client finds its part of: one reads the object, another
// only strings at the top.
type errorBody struct {
	Error   errorDetail `json:"error"`
	Message string      `json:"message"`
	Code    string      `json:"code"`
	Errors  []problem   `json:"errors,omitempty"`
}

type errorDetail struct {
	Code      string         `json:"code"`
	Message   string         `json:"message"`
	Details   map[string]any `json:"details"`
	RequestID string         `json:"request_id"`
	Retryable bool           `json:"retryable"`
}

// problem is one thing wrong with a document.
type problem struct {
	Code    string `json:"code"`
	Field   string `json:"field"`
	Message string `json:"message"`
}

// problems is a CodeInvalid with everything that is wrong.
type problems struct {
	error
	list []problem
}

func (p *problems) Unwrap() error { return p.error }

func writeError(w http.ResponseWriter, r *http.Request, err error) {
	m := meaningOf(err)
	d := errorDetail{Code: m.code, Message: nacre.ErrorMessage(err), Details: map[string]any{}, RequestID: w.Header().Get("X-Request-Id")}
	if f := nacre.ErrorField(err); f != "" {
		if name, ok := fields[f]; ok {
			d.Message = strings.ReplaceAll(d.Message, f, name)
			f = name
		}
		d.Details["field"] = f
		if !strings.Contains(d.Message, f) {
			d.Message = f + ": " + d.Message
		}
	}
	d.Retryable = m.status == http.StatusTooManyRequests || m.status == http.StatusServiceUnavailable || m.code == codeStarting
	if d.Retryable {
		w.Header().Set("Retry-After", retryAfter)
	}
	out := errorBody{Error: d, Message: d.Message, Code: d.Code}
	var p *problems
	if errors.As(err, &p) {
		out.Errors = p.list
		d.Details["errors"] = p.list
	}
	if r.Method == http.MethodHead {
		w.WriteHeader(m.status)
		return
	}
	_ = api.WriteJSON(w, m.status, out)
}
