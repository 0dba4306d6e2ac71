package agent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
	"github.com/nacrehq/nacre/agent/envd/filesystempb/filesystempbconnect"
	"github.com/nacrehq/nacre/agent/envd/processpb/processpbconnect"
)

// maxMessage bounds one RPC message; file content does not travel in them.
const maxMessage = 64 << 20

// routes builds the agent's handler: who may is decided here, once.
func (a *Agent) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+envd.PathHealth, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST "+envd.PathInit, a.handleInit)
	mux.Handle("GET "+envd.PathMetrics, a.hostOnly(a.handleMetrics))
	mux.Handle("GET "+envd.PathLogs, a.hostOnly(a.handleLogs))
	mux.Handle("GET "+envd.PathEnvs, a.hostOnly(a.handleEnvs))
	mux.Handle("GET "+envd.PathTunnel, a.hostOnly(a.handleTunnel))
	for _, p := range []string{envd.PathInit, envd.PathMetrics, envd.PathLogs, envd.PathEnvs, envd.PathTunnel} {
		mux.Handle(p, a.hostOnly(methodNotAllowed))
	}
	mux.HandleFunc("GET "+envd.PathFiles, a.handleDownload) // HEAD too
	mux.HandleFunc("POST "+envd.PathFiles, a.handleUpload)
	mux.HandleFunc(envd.PathFiles, methodNotAllowed)

	// Streams are never compressed: some clients cannot read them then.
	opts := []connect.HandlerOption{
		connect.WithReadMaxBytes(maxMessage),
		connect.WithCompression("gzip", nil, nil),
		connect.WithRecover(a.recovered),
	}
	known := knownCalls()
	path, h := processpbconnect.NewProcessHandler(&processService{a}, opts...)
	mux.Handle(path, a.rpc(known, h))
	path, h = filesystempbconnect.NewFilesystemHandler(&filesystemService{a}, opts...)
	mux.Handle(path, a.rpc(known, h))

	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, http.StatusNotFound, "no such route")
	})
	return a.recovering(mux)
}

// recovering turns a panic of a handler into a 500: PID 1 must go on.
func (a *Agent) recovering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p) // net/http's own way to cut a connection
			}
			a.log.Error("a request made the agent panic", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			writeError(w, http.StatusInternalServerError, "the guest agent failed on this request")
		}()
		next.ServeHTTP(w, r)
	})
}

func (a *Agent) recovered(_ context.Context, spec connect.Spec, _ http.Header, p any) error {
	a.log.Error("a call made the agent panic", "procedure", spec.Procedure, "panic", p, "stack", string(debug.Stack()))
	return connect.NewError(connect.CodeInternal, errors.New("the guest agent failed on this request"))
}

// hostOnly admits the host. Without its header the route does not exist, so that
// a guest that is reached by somebody else shows nothing of it.
func (a *Agent) hostOnly(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := a.id.get()
		given := r.Header.Get(envd.HeaderHostToken)
		switch {
		case !id.inited:
			writeError(w, http.StatusUnauthorized, "the guest was not initialised yet")
		case given == "":
			writeError(w, http.StatusNotFound, "no such route")
		case !sameToken(given, id.hostToken):
			writeError(w, http.StatusUnauthorized, "invalid host token")
		default:
			next(w, r)
		}
	})
}

// rpc admits the holder of the access token and prepares a call for connect.
func (a *Agent) rpc(known calls, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := a.id.get()
		if !id.inited {
			writeRPCError(w, "the guest was not initialised yet")
			return
		}
		if id.accessToken != "" && !sameToken(r.Header.Get(envd.HeaderAccessToken), id.accessToken) {
			writeRPCError(w, "invalid access token")
			return
		}
		if id.hostToken == "" || !sameToken(r.Header.Get(envd.HeaderHostToken), id.hostToken) {
			for _, h := range []string{envd.HeaderUnlogged, envd.HeaderKept, envd.HeaderSeen} {
				r.Header.Del(h) // the host's alone
			}
		}
		if known.refuse(w, r) {
			return
		}
		a.watchers.sync()
		if ownTimeout(r.URL.Path) {
			w, r = withLast(w, r)
		}
		next.ServeHTTP(w, withTimeout(r))
	})
}

// timeoutKey carries Connect-Timeout-Ms past connect.
type timeoutKey struct{}

// ownTimeout are the calls that treat Connect-Timeout-Ms themselves: their
// context must end with the connection only, because a deadline and a client
// that went away mean different things to a process.
func ownTimeout(path string) bool {
	return path == processpbconnect.ProcessStartProcedure || path == processpbconnect.ProcessConnectProcedure ||
		path == filesystempbconnect.FilesystemWatchDirProcedure
}

// withTimeout makes Connect-Timeout-Ms an integer, which is all that connect
// reads; clients send "500.0" too.
func withTimeout(r *http.Request) *http.Request {
	text := r.Header.Get(envd.HeaderTimeout)
	if text == "" {
		return r
	}
	timeout, ok := parseTimeout(text)
	if ownTimeout(r.URL.Path) {
		r.Header.Del(envd.HeaderTimeout)
		if ok && timeout > 0 {
			return r.WithContext(context.WithValue(r.Context(), timeoutKey{}, timeout))
		}
		return r
	}
	if !ok || timeout <= 0 {
		r.Header.Del(envd.HeaderTimeout)
		return r
	}
	r.Header.Set(envd.HeaderTimeout, strconv.FormatInt(timeout.Milliseconds(), 10))
	return r
}

// parseTimeout reads milliseconds, rounded up to whole ones and at most 100 days.
func parseTimeout(text string) (time.Duration, bool) {
	ms, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil || math.IsNaN(ms) || ms < 0 {
		return 0, false
	}
	const most = 100 * 24 * time.Hour
	if ms >= float64(most.Milliseconds()) {
		return most, true
	}
	return time.Duration(math.Ceil(ms)) * time.Millisecond, true
}

func requestTimeout(ctx context.Context) time.Duration {
	d, _ := ctx.Value(timeoutKey{}).(time.Duration)
	return d
}

// keepaliveInterval is how long a stream may be silent.
func keepaliveInterval(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get(envd.HeaderKeepalive))
	if err != nil || n <= 0 || n > 3600 {
		n = 90
	}
	return time.Duration(n) * time.Second
}

// rpcUser is the account that a call acts as: the name of its Basic credential,
// else the default user.
func (a *Agent) rpcUser(h http.Header) (account, error) {
	name := ""
	if h.Get("Authorization") != "" {
		r := http.Request{Header: h}
		n, _, ok := r.BasicAuth()
		if !ok {
			return account{}, rpcError(nacre.Errorf(nacre.CodeUnauthenticated, "invalid Authorization header: only Basic with a user name is understood"))
		}
		name = n
	}
	acc, err := a.user(name)
	return acc, rpcError(err)
}

// user looks a name up; "" is the default user.
func (a *Agent) user(name string) (account, error) {
	if name == "" {
		name = a.id.get().defaultUser
	}
	return a.users.lookup(name)
}

// rpcError puts an error on the RPC wire.
func rpcError(err error) error {
	if err == nil {
		return nil
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		return err
	}
	code := connect.CodeInternal
	switch nacre.ErrorCode(err) {
	case nacre.CodeInvalid:
		code = connect.CodeInvalidArgument
	case nacre.CodeUnauthenticated:
		code = connect.CodeUnauthenticated
	case nacre.CodeForbidden:
		code = connect.CodePermissionDenied
	case nacre.CodeNotFound:
		code = connect.CodeNotFound
	case nacre.CodeConflict:
		code = connect.CodeAlreadyExists
	case nacre.CodeExhausted, nacre.CodeNoSpace:
		code = connect.CodeResourceExhausted
	case nacre.CodeUnavailable:
		code = connect.CodeUnavailable
	case nacre.CodeUnsupported:
		code = connect.CodeUnimplemented
	case nacre.CodeDeadline:
		code = connect.CodeDeadlineExceeded
	}
	msg := nacre.ErrorMessage(err)
	if nacre.ErrorCode(err) == nacre.CodeInternal && !errors.As(err, new(*nacre.Error)) {
		msg = "the guest agent failed: " + validText(err.Error())
	}
	return connect.NewError(code, errors.New(msg))
}

// writeRPCError refuses a call before connect sees it. Clients read the status
// and, where they can, the body.
func writeRPCError(w http.ResponseWriter, message string) {
	writeJSON(w, http.StatusUnauthorized, map[string]string{"code": "unauthenticated", "message": message})
}

func methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	writeError(w, http.StatusMethodNotAllowed, "the method "+validText(r.Method)+" is not allowed here")
}

func writeError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, envd.ErrorBody{Code: status, Message: validText(message)})
}

// fail writes any error of a file or host route.
func (a *Agent) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := codeStatus(nacre.ErrorCode(err))
	if status >= 500 && status != http.StatusInsufficientStorage {
		a.log.LogAttrs(r.Context(), slog.LevelWarn, "request failed", slog.String("path", r.URL.Path), slog.Any("error", err))
	}
	writeError(w, status, nacre.ErrorMessage(err))
}

// writeJSON answers without a trailing newline: clients compare bodies byte by byte.
func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"code":500,"message":"the answer could not be encoded"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
