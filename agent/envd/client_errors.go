package envd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"github.com/nacrehq/nacre"
)

func badAnswer(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return transportError(ctx, err)
	}
	return nacre.Wrap(nacre.CodeUnavailable, err, "the guest's answer broke off or cannot be read")
}

func statusError(resp *http.Response) error {
	var body ErrorBody
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorText))
	msg := fmt.Sprintf("the guest answered with status %d", resp.StatusCode)
	if json.Unmarshal(text, &body) == nil && body.Message != "" {
		msg = body.Message
	}
	code := nacre.CodeInternal
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusMethodNotAllowed, http.StatusUpgradeRequired:
		code = nacre.CodeInvalid
	case http.StatusUnauthorized:
		code = nacre.CodeUnauthenticated
	case http.StatusForbidden:
		code = nacre.CodeForbidden
	case http.StatusNotFound:
		code = nacre.CodeNotFound
	case http.StatusConflict:
		code = nacre.CodeConflict
	case http.StatusTooManyRequests:
		code = nacre.CodeExhausted
	case http.StatusInsufficientStorage:
		code = nacre.CodeNoSpace
	case http.StatusGatewayTimeout:
		code = nacre.CodeDeadline
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		code = nacre.CodeUnavailable
	}
	return &nacre.Error{Code: code, Message: msg}
}

func transportError(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nacre.Wrap(nacre.CodeDeadline, errors.Join(context.DeadlineExceeded, err), "the guest did not answer in time")
	case ctx.Err() != nil:
		return nacre.Wrap(nacre.CodeUnavailable, errors.Join(ctx.Err(), err), "the call to the guest was given up")
	}
	var known *nacre.Error
	if errors.As(err, &known) {
		return known // from Dial
	}
	return nacre.Wrap(nacre.CodeUnavailable, err, "the guest does not answer")
}

func rpcError(ctx context.Context, err error) error {
	var ce *connect.Error
	if err == nil {
		return nil
	}
	if !errors.As(err, &ce) || ctx.Err() != nil {
		return transportError(ctx, err)
	}
	var known *nacre.Error
	if errors.As(err, &known) {
		return known // from Dial
	}
	code := nacre.CodeInternal
	switch ce.Code() {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		code = nacre.CodeInvalid
	case connect.CodeUnauthenticated:
		code = nacre.CodeUnauthenticated
	case connect.CodePermissionDenied:
		code = nacre.CodeForbidden
	case connect.CodeNotFound:
		code = nacre.CodeNotFound
	case connect.CodeAlreadyExists, connect.CodeFailedPrecondition, connect.CodeAborted:
		code = nacre.CodeConflict
	case connect.CodeResourceExhausted:
		code = nacre.CodeExhausted
	case connect.CodeUnavailable, connect.CodeCanceled:
		code = nacre.CodeUnavailable
	case connect.CodeDeadlineExceeded:
		code = nacre.CodeDeadline
	case connect.CodeUnimplemented:
		code = nacre.CodeUnsupported
	case connect.CodeUnknown, connect.CodeInternal, connect.CodeDataLoss:
		if !connect.IsWireError(err) { // the guest said nothing: the connection broke
			return transportError(ctx, err)
		}
	}
	if code == nacre.CodeUnavailable && !connect.IsWireError(err) {
		return transportError(ctx, err)
	}
	msg := ce.Message()
	if len(msg) > maxErrorText {
		msg = strings.ToValidUTF8(msg[:maxErrorText], "") + "..."
	}
	return &nacre.Error{Code: code, Message: msg}
}
