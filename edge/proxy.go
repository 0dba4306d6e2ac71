package edge

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// How long a connection to a guest waits for the next request. Our agent never
// hangs up first; other servers do, after five seconds in the case of Node's, and
// a request that crosses such a hang-up cannot be sent again safely.
const (
	agentIdle  = 90 * time.Second
	serverIdle = 3 * time.Second
)

// healthTimeout is how long an agent has to say that it is well. Clients ask with
// limits of five seconds and more; of those who set none, no one waits for ever.
const healthTimeout = 4 * time.Second

const (
	copyBuffer     = 64 << 10
	writeBuffer    = 33 << 10 // a chunk of an upload as the transport makes it, in one write
	maxIdlePerPort = 64
	maxGuestHeader = 256 << 10
)

// newProxy returns the handler that passes requests with a hop on. It streams in
// both directions, copies no more than a buffer, and sets no time limit: an
// answer may take for ever, but for that of an agent that is asked whether it is well.
func (e *Edge) newProxy(idle time.Duration) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport: uploads{&http.Transport{
			DialContext:            e.conns.dial,
			DisableCompression:     true,
			WriteBufferSize:        writeBuffer,
			IdleConnTimeout:        idle,
			MaxIdleConns:           4096,
			MaxIdleConnsPerHost:    maxIdlePerPort,
			MaxResponseHeaderBytes: maxGuestHeader,
			ExpectContinueTimeout:  time.Second,
		}},
		Rewrite:        rewrite,
		ModifyResponse: modifyResponse,
		ErrorHandler:   e.proxyError,
		FlushInterval:  -1,
		BufferPool:     &bufferPool{},
		ErrorLog:       slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
	}
}

// rewrite makes the request that the guest sees.
func rewrite(pr *httputil.ProxyRequest) {
	h := hopOf(pr.In.Context())
	out := pr.Out
	out.URL.Scheme = "http"
	out.URL.Host = poolKey(h.route, h.target.port) // of the pool; the guest sees out.Host
	out.URL.RawQuery = pr.In.URL.RawQuery          // as it stands, for it is the guest's to read
	out.Host = pr.In.Host
	if mask := h.route.Network.MaskRequestHost; mask != "" && h.target.port != nacre.AgentPort {
		out.Host = strings.ReplaceAll(mask, "${PORT}", strconv.Itoa(h.target.port))
	}
	dropCredentials(out.Header, h.target.port)
	for _, name := range forwardedHeaders {
		out.Header.Del(name)
	}
	pr.SetXForwarded()
	if h.target.port == nacre.AgentPort {
		out.Header.Del("Upgrade")
		out.Header.Del("Connection")
	}
}

// forwardedHeaders are those that only a proxy may set. The usual three are
// replaced by the proxy; these are strangers' in any case.
var forwardedHeaders = [...]string{
	"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto",
	"X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Scheme", "X-Forwarded-Server", "X-Forwarded-Ssl",
	"X-Real-Ip", "X-Original-Url", "X-Original-Host", "X-Rewrite-Url",
}

// dropCredentials keeps what opens the API and the edge from the guest, which
// may run anybody's code. An X-API-Key that is not one of ours is the guest's own
// business.
func dropCredentials(h http.Header, port int) {
	h.Del("X-Host-Token")
	for _, names := range headersRouting {
		h.Del(names.id)
		h.Del(names.port)
	}
	for _, name := range headersTraffic {
		h.Del(name)
	}
	if _, ours := nacre.HashKey(h.Get("X-Api-Key")); ours || port == nacre.AgentPort {
		h.Del("X-Api-Key")
	}
	scheme, bearer, _ := strings.Cut(h.Get("Authorization"), " ")
	if _, ours := nacre.HashKey(strings.TrimSpace(bearer)); ours && strings.EqualFold(scheme, "Bearer") {
		h.Del("Authorization")
	}
	if port != nacre.AgentPort {
		h.Del(headerAccessToken)
	}
}

func modifyResponse(resp *http.Response) error {
	if hopOf(resp.Request.Context()).target.port == nacre.AgentPort {
		for name := range resp.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				resp.Header.Del(name) // ours are there already
			}
		}
		endBrokenStreams(resp)
		return nil
	}
	confineCookies(resp.Header)
	allowEmbedding(resp.Header, hopOf(resp.Request.Context()).target.ancestors)
	return nil
}

// confineCookies makes every cookie its own host's: one with a Domain would be
// sent to all other sandboxes and to the API.
func confineCookies(h http.Header) {
	cookies := h["Set-Cookie"]
	for i, c := range cookies {
		parts := strings.Split(c, ";")
		kept := parts[:1]
		for _, p := range parts[1:] {
			name, _, _ := strings.Cut(p, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "domain") {
				kept = append(kept, p)
			}
		}
		cookies[i] = strings.Join(kept, ";")
	}
}

// proxyError answers when the guest could not be reached or did not answer.
func (e *Edge) proxyError(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // nobody waits for an answer
	}
	closeStalled(w, r, err)
	h := hopOf(r.Context())
	now, running := e.traffic.Route(h.route.Sandbox)
	switch {
	case !running || now.Machine != h.route.Machine || nacre.IsCode(err, nacre.CodeNotFound):
		h.target.notFound(w, r)
	case errors.Is(err, context.DeadlineExceeded) && h.target.port == nacre.AgentPort && r.URL.Path == "/health":
		h.target.gatewayError(w, r, sandboxError{Port: h.target.port, Message: messageNoAnswer, Code: http.StatusGatewayTimeout})
	case errors.Is(err, errDial):
		h.target.notOpen(w, r)
	default:
		e.log.Debug("a guest's server gave no answer", "sandbox", h.route.Sandbox, "port", h.target.port, "error", err)
		h.target.badGateway(w, r, sandboxError{Port: h.target.port,
			Message: "The server in the sandbox closed the connection without a whole answer"})
	}
}

// bufferPool shares copy buffers between requests.
type bufferPool struct{ pool sync.Pool }

func (p *bufferPool) Get() []byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, copyBuffer)
}

func (p *bufferPool) Put(b []byte) { p.pool.Put(&b) }
