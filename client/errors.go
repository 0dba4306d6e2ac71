package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"github.com/nacrehq/nacre"
)

// What an error can be asked about with errors.Is.
var (
	ErrInvalid         error = codeError(nacre.CodeInvalid)
	ErrUnauthenticated error = codeError(nacre.CodeUnauthenticated)
	ErrForbidden       error = codeError(nacre.CodeForbidden)
	ErrNotFound        error = codeError(nacre.CodeNotFound)
	ErrConflict        error = codeError(nacre.CodeConflict)
	ErrRateLimited     error = codeError(nacre.CodeExhausted) // a quota or the host is full; later may work
	ErrUnavailable     error = codeError(nacre.CodeUnavailable)
	ErrUnsupported     error = codeError(nacre.CodeUnsupported)
	ErrNoSpace         error = codeError(nacre.CodeNoSpace)
	ErrTimeout         error = codeError(nacre.CodeDeadline) // also when a context's deadline passed

	// ErrNotRunning is a guest call on a sandbox that has ended or is paused;
	// such an error is an ErrUnavailable too. Connect resumes a paused one.
	ErrNotRunning = errors.New("sandbox is not running")
)

// Error is what a server refused or failed at, or what kept a request from it.
type Error struct {
	Code    nacre.Code
	Status  int    // of the HTTP answer; 0 when there was none, or when a stream ended with the error
	Message string // for people

	gone  bool // the sandbox is not running
	file  bool // it is about a file
	cause error
}

func (e *Error) Error() string {
	if e.Message == "" {
		return string(e.Code)
	}
	return e.Message
}

// Unwrap returns the cause, such as a context's or the network's error.
func (e *Error) Unwrap() error { return e.cause }

// Is matches the package's sentinels, and fs.ErrNotExist for a missing file.
func (e *Error) Is(target error) bool {
	switch t := target.(type) {
	case codeError:
		return e.Code == nacre.Code(t)
	default:
		return target == ErrNotRunning && e.gone ||
			target == fs.ErrNotExist && e.file && e.Code == nacre.CodeNotFound
	}
}

// ExitError is a command that did not end with status 0.
type ExitError struct {
	*Result
	Status string // "exit status 3", "signal: killed"
}

// Error is the status with the end of what the command wrote to stderr.
func (e *ExitError) Error() string {
	const tail = 256
	text := strings.TrimSpace(e.Stderr)
	if text == "" {
		return e.Status
	}
	if len(text) > tail {
		text = "..." + strings.ToValidUTF8(text[len(text)-tail:], "")
	}
	return e.Status + ": " + text
}

type codeError nacre.Code

func (c codeError) Error() string { return strings.ReplaceAll(string(c), "_", " ") }

// codeOfStatus is the dialect's table read backwards.
func codeOfStatus(status int) nacre.Code {
	switch status {
	case http.StatusUnauthorized:
		return nacre.CodeUnauthenticated
	case http.StatusForbidden:
		return nacre.CodeForbidden
	case http.StatusNotFound:
		return nacre.CodeNotFound
	case http.StatusConflict:
		return nacre.CodeConflict
	case http.StatusTooManyRequests:
		return nacre.CodeExhausted
	case http.StatusNotImplemented:
		return nacre.CodeUnsupported
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return nacre.CodeUnavailable
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return nacre.CodeDeadline
	case http.StatusInsufficientStorage:
		return nacre.CodeNoSpace
	}
	if status >= 400 && status < 500 {
		return nacre.CodeInvalid
	}
	return nacre.CodeInternal
}

// maxErrorBody bounds what is read of an answer that is an error: a guest's
// words are a stranger's.
const maxErrorBody = 64 << 10

// errorOf turns an answer with an error status into an *Error.
func errorOf(resp *http.Response) *Error {
	e := &Error{Code: codeOfStatus(resp.StatusCode), Status: resp.StatusCode}
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var body struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(raw, &body) == nil && body.Message != "" {
		e.Message = body.Message
	} else {
		e.Message = fmt.Sprintf("the server answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	return e
}

// callError explains a request that got no answer.
func callError(ctx context.Context, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if ctx.Err() != nil {
		return contextError(context.Cause(ctx))
	}
	return &Error{Code: nacre.CodeUnavailable, Message: err.Error(), cause: err}
}

func contextError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return &Error{Code: nacre.CodeDeadline, Message: "the time given was not enough", cause: err}
	}
	return err
}

// guestError translates what the guest's client reports.
func guestError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if ctx.Err() != nil {
		return contextError(context.Cause(ctx))
	}
	var n *nacre.Error
	if errors.As(err, &n) {
		return &Error{Code: n.Code, Message: n.Message, cause: err}
	}
	return err // the caller's own, such as of a reader that it gave
}

// fileError is guestError for a call about a file, so that a missing one is
// fs.ErrNotExist.
func fileError(ctx context.Context, err error) error {
	err = guestError(ctx, err)
	var e *Error
	if errors.As(err, &e) && !e.gone {
		f := *e
		f.file = true
		return &f
	}
	return err
}
