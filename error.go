package nacre

import (
	"errors"
	"fmt"
)

// Code classes an error by what the caller can do about it. Each dialect has one
// table from codes to its statuses; nobody else knows an HTTP status.
type Code string

const (
	CodeInvalid         Code = "invalid"         // the request is wrong; Field says where
	CodeUnauthenticated Code = "unauthenticated" // no credential, or one that is not known
	CodeForbidden       Code = "forbidden"       // known, but not allowed
	CodeNotFound        Code = "not_found"       // does not exist, or belongs to another team
	CodeConflict        Code = "conflict"        // the state does not permit it now
	CodeExhausted       Code = "exhausted"       // a quota or the host's capacity is used up; may be tried again
	CodeUnavailable     Code = "unavailable"     // a part does not answer; may be tried again
	CodeUnsupported     Code = "unsupported"     // known, and not offered here
	CodeMismatch        Code = "mismatch"        // whole, but bound to a runtime, version or processor that is not here
	CodeNoSpace         Code = "no_space"        // a disk is full
	CodeDeadline        Code = "deadline"        // the time given was not enough
	CodeInternal        Code = "internal"        // ours; the cause is in the log, not in the message
)

// Error is what crosses the borders between rooms. Message is safe to show to
// any user: it says what happened, which field, and what to do next. Err is the
// cause, for logs only.
type Error struct {
	Code    Code
	Message string
	Field   string // of the request, in the domain's spelling; "" when none
	Err     error
}

func (e *Error) Error() string {
	s := string(e.Code) + ": " + e.Message
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an *Error. A %w verb's operand becomes the cause and is part of
// the message too, so use it only for causes that are safe to show; otherwise
// use Wrap.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Invalidf reports a bad field of a request.
func Invalidf(field, format string, args ...any) *Error {
	return &Error{Code: CodeInvalid, Field: field, Message: fmt.Sprintf(format, args...)}
}

// Wrap keeps cause for the log and shows message.
func Wrap(code Code, cause error, message string) *Error {
	return &Error{Code: code, Message: message, Err: cause}
}

// ErrorCode returns the code of the first *Error in err's chain, CodeInternal
// for any other error, "" for nil.
func ErrorCode(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// ErrorMessage returns the safe message of the first *Error in err's chain, and
// a fixed sentence for any other error.
func ErrorMessage(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "an internal error occurred; the server's log has the cause"
}

// ErrorField returns the field that the error names, or "".
func ErrorField(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Field
	}
	return ""
}

// IsCode tells whether err carries the code.
func IsCode(err error, code Code) bool { return err != nil && ErrorCode(err) == code }
