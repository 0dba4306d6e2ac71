package edge

import (
	"net/http"
	"time"
)

// Harden sets the limits of a server that strangers reach. Headers must come in
// time and be small; bodies and answers may take for ever, for streams do. Idle
// connections outlive the five minutes for which the clients keep theirs: they
// do not repeat a call that crossed our hang-up.
func Harden(s *http.Server) {
	s.ReadHeaderTimeout = 15 * time.Second
	s.IdleTimeout = 10 * time.Minute
	s.MaxHeaderBytes = 64 << 10
	s.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams:          250,
		MaxReceiveBufferPerStream:     1 << 20,
		MaxReceiveBufferPerConnection: 4 << 20,
		SendPingTimeout:               time.Minute,
		PingTimeout:                   30 * time.Second,
	}
}
