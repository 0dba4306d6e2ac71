package moru

import (
	"cmp"
	"errors"
	"net/http"
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// statuses is the one table from the domain's codes to this dialect's statuses.
var statuses = map[nacre.Code]int{
	nacre.CodeInvalid:         http.StatusBadRequest,
	nacre.CodeUnauthenticated: http.StatusUnauthorized,
	nacre.CodeForbidden:       http.StatusForbidden,
	nacre.CodeNotFound:        http.StatusNotFound,
	nacre.CodeConflict:        http.StatusConflict,
	nacre.CodeExhausted:       http.StatusTooManyRequests,
	nacre.CodeUnavailable:     http.StatusServiceUnavailable,
	nacre.CodeUnsupported:     http.StatusNotImplemented,
	nacre.CodeMismatch:        http.StatusConflict,
	nacre.CodeNoSpace:         http.StatusInsufficientStorage,
	nacre.CodeDeadline:        http.StatusGatewayTimeout,
	nacre.CodeInternal:        http.StatusInternalServerError,
}

// fields turns the domain's names of fields into the wire's.
var fields = map[string]string{
	"Template": "templateID", "Timeout": "timeout", "OnTimeout": "autoPause", "AutoResume": "autoResume", "Metadata": "metadata", "Env": "envVars",
	"AllowOut": "allowOut", "DenyOut": "denyOut", "MaskRequestHost": "maskRequestHost",
	"Count": "count", "Name": "name", "Comment": "comment", "Keep": "expiresIn", "Cursor": "nextToken",
}

// messageOf is what went wrong, with the field by the name that the client gave it.
func messageOf(err error) string {
	message, field := nacre.ErrorMessage(err), nacre.ErrorField(err)
	if field == "" {
		return message
	}
	name := cmp.Or(fields[field], field)
	if field != "Timeout" { // whose words are those that users know
		message = strings.ReplaceAll(message, field, name)
	}
	if !strings.Contains(strings.ToLower(message), strings.ToLower(name)) {
		message = name + ": " + message
	}
	return message
}

// retryAfter is how long a client should wait, in seconds.
const retryAfter = "1"

func status(err error) int {
	switch {
	case errors.Is(err, api.ErrMethod):
		return http.StatusMethodNotAllowed
	case errors.Is(err, api.ErrTooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, api.ErrKeyReused):
		return http.StatusUnprocessableEntity
	}
	if s, ok := statuses[nacre.ErrorCode(err)]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// writeError answers with the status in the body too: the JavaScript clients
// decide on the body's code and the Python ones fail on an empty body.
func writeError(w http.ResponseWriter, _ *http.Request, err error) {
	s := status(err)
	if s == http.StatusTooManyRequests || s == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retryAfter)
	}
	_ = api.WriteJSON(w, s, errorBody{Code: s, Message: messageOf(err)})
}
