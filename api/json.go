package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/nacrehq/nacre"
)

// MaxBody is the most that a JSON request may hold.
const MaxBody = 1 << 20

// Read decodes the body into v. Unknown fields are ignored. A body that is not
// one JSON value of v's shape is CodeInvalid with the field named; one beyond
// MaxBody carries ErrTooLarge; none at all, or null, leaves v as it is and reports false.
func (c *Call) Read(v any) (present bool, err error) { return c.ReadUpTo(MaxBody, v) }

// ReadUpTo is Read with a limit of the caller's.
func (c *Call) ReadUpTo(limit int64, v any) (present bool, err error) {
	body, err := io.ReadAll(http.MaxBytesReader(c.W, c.R.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return true, nacre.Wrap(nacre.CodeInvalid, ErrTooLarge,
			fmt.Sprintf("the request body is larger than %d bytes", limit))
	case err != nil:
		return true, nacre.Wrap(nacre.CodeInvalid, err, "the request body could not be read to its end")
	}
	if said := bytes.TrimSpace(body); len(said) == 0 || string(said) == "null" {
		return false, nil
	}
	return true, DecodeJSON(body, v)
}

// DecodeJSON is Read for bytes at hand.
func DecodeJSON(body []byte, v any) error {
	err := json.Unmarshal(body, v)
	var wrongType *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	var ours *nacre.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ours): // of a type that decodes itself
		return ours
	case errors.As(err, &wrongType) && wrongType.Field != "":
		return nacre.Invalidf(wrongType.Field, "%s: a JSON %s does not fit here", wrongType.Field, wrongType.Value)
	case errors.As(err, &wrongType):
		return nacre.Errorf(nacre.CodeInvalid, "the request body must be a JSON object, not %s", strings.Replace("a "+wrongType.Value, "a a", "an a", 1))
	case errors.As(err, &syntax):
		return nacre.Errorf(nacre.CodeInvalid, "the request body is not valid JSON at byte %d: %v", syntax.Offset, syntax)
	default:
		return nacre.Wrap(nacre.CodeInvalid, err, "the request body is not valid JSON")
	}
}

// JSON answers with v.
func (c *Call) JSON(status int, v any) error { return WriteJSON(c.W, status, v) }

// NoContent answers 204.
func (c *Call) NoContent() error {
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

// WriteJSON encodes v whole before the first byte goes out. An error means that
// nothing was answered yet.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the answer could not be encoded")
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(buf.Bytes()) // a client that went away is not an error of ours
	return nil
}
