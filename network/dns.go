package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/nacrehq/nacre"
	"golang.org/x/sys/unix"
)

const (
	dnsPerSlot    = 64              // of one slot at once
	dnsInFlight   = 1024            // of all slots at once
	dnsTimeout    = 2 * time.Second // for one upstream
	dnsMaxUDP     = 1232            // the size that passes everywhere (DNS flag day 2020)
	dnsIdle       = 10 * time.Second
	dnsMaxTCPConn = 256 // questions on one TCP connection
	// What waits to be read, of all slots together: at least 2 KiB of the kernel's for
	// each question of up to dnsMaxUDP, so what twenty slots may ask at once (inputBurst).
	// The kernel's own 208 KiB are full with less than what one may.
	dnsBuffer = 16 << 20
)

// forwarder answers the guests' DNS questions from the host's resolvers; the
// rules hold each slot to a rate before it sees them. It keeps nothing and changes nothing: a name that leads to a private address is
// harmless, for the packet to it is dropped.
type forwarder struct {
	log       *slog.Logger
	upstreams *upstreams
	servers   []*dns.Server
	running   sync.WaitGroup
	ctx       context.Context
	inFlight  chan struct{}

	mu      sync.Mutex
	clients map[netip.Addr]*dnsClient
}

// dnsClient is one slot as the forwarder knows it.
type dnsClient struct {
	allowed  bool
	inFlight int
}

// startForwarder listens on the gateway's address, UDP and TCP.
func startForwarder(ctx context.Context, gateway netip.Addr, up *upstreams, cfg Config) (*forwarder, error) {
	f := &forwarder{
		log: cfg.Log, ctx: ctx,
		upstreams: up,
		inFlight:  make(chan struct{}, dnsInFlight),
		clients:   map[netip.Addr]*dnsClient{},
	}
	addr := netip.AddrPortFrom(gateway, uint16(cfg.DNSPort)).String()
	wide := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		ctl := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, dnsBuffer/2) // the kernel doubles it, socket(7)
		})
		return errors.Join(ctl, err)
	}}
	udp, err := wide.ListenPacket(ctx, "udp4", addr)
	if err != nil {
		return nil, listenError(err, addr)
	}
	tcp, err := net.Listen("tcp4", addr)
	if err != nil {
		_ = udp.Close()
		return nil, listenError(err, addr)
	}
	f.servers = []*dns.Server{
		{PacketConn: udp, Handler: f, UDPSize: 4096},
		{Listener: tcp, Handler: f, MaxTCPQueries: dnsMaxTCPConn, ReadTimeout: dnsIdle, WriteTimeout: dnsIdle,
			IdleTimeout: func() time.Duration { return dnsIdle }},
	}
	for _, s := range f.servers {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		f.running.Go(func() {
			if err := s.ActivateAndServe(); err != nil && ctx.Err() == nil {
				f.log.Error("network: the DNS forwarder ended", "error", err)
			}
		})
		<-started
	}
	return f, nil
}

func listenError(err error, addr string) error {
	return nacre.Wrap(nacre.CodeUnavailable, err, fmt.Sprintf(
		"the DNS forwarder cannot listen on %s; if a DNS server of this host takes port 53 on every address, set network.dns_port to a free port", addr))
}

func (f *forwarder) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, s := range f.servers {
		_ = s.ShutdownContext(ctx)
	}
	f.running.Wait()
}

// admit tells the forwarder of a slot; one whose policy lets nothing out is
// refused, for questions can carry data out.
func (f *forwarder) admit(guest netip.Addr, allowed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.clients[guest]
	if c == nil {
		c = &dnsClient{}
		f.clients[guest] = c
	}
	c.allowed = allowed
}

func (f *forwarder) forget(guest netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.clients, guest)
}

type verdict int

const (
	answer verdict = iota
	refused
	ignored
)

// begin judges a question by its source, which the rules have verified. The
// returned func ends what it began.
func (f *forwarder) begin(guest netip.Addr) (verdict, func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.clients[guest]
	if c == nil {
		return ignored, nil // not recovered yet: the guest asks again
	}
	if !c.allowed {
		return refused, nil
	}
	if c.inFlight >= dnsPerSlot {
		return ignored, nil
	}
	select {
	case f.inFlight <- struct{}{}:
	default:
		return ignored, nil
	}
	c.inFlight++
	return answer, func() {
		<-f.inFlight
		f.mu.Lock()
		c.inFlight--
		f.mu.Unlock()
	}
}

// ServeDNS implements dns.Handler.
func (f *forwarder) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	from, err := netip.ParseAddrPort(w.RemoteAddr().String())
	if err != nil || q.Response {
		return
	}
	v, end := f.begin(from.Addr().Unmap())
	switch {
	case v == ignored:
		return
	case v == refused:
		f.reply(w, q, dns.RcodeRefused)
		return
	}
	defer end()
	switch {
	case q.Opcode != dns.OpcodeQuery:
		f.reply(w, q, dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		f.reply(w, q, dns.RcodeFormatError)
	case q.Question[0].Qtype == dns.TypeAXFR || q.Question[0].Qtype == dns.TypeIXFR:
		f.reply(w, q, dns.RcodeRefused)
	default:
		f.forward(w, q)
	}
}

func (f *forwarder) reply(w dns.ResponseWriter, q *dns.Msg, rcode int) {
	_ = w.WriteMsg(new(dns.Msg).SetRcode(q, rcode))
}

func (f *forwarder) forward(w dns.ResponseWriter, q *dns.Msg) {
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	a, err := f.exchange(q)
	if err != nil {
		f.log.Debug("network: no upstream answered", "error", err)
		f.reply(w, q, dns.RcodeServerFailure)
		return
	}
	a.Id = q.Id
	if !tcp {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = min(max(int(o.UDPSize()), dns.MinMsgSize), dnsMaxUDP)
		}
		a.Truncate(size)
	}
	_ = w.WriteMsg(a)
}

// exchange asks the upstreams in turn, each over UDP and, when the answer does
// not fit, over TCP.
func (f *forwarder) exchange(q *dns.Msg) (*dns.Msg, error) {
	ask := q.Copy()
	ask.Id = dns.Id() // the guest's number is no secret from other guests
	var errs []error
	for _, up := range f.upstreams.list() {
		a, err := f.ask(ask, "udp", up)
		if err == nil && a.Truncated {
			if full, tcpErr := f.ask(ask, "tcp", up); tcpErr == nil {
				a = full
			}
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if a.Rcode == dns.RcodeServerFailure && len(errs) == 0 {
			errs = append(errs, errors.New(up+": SERVFAIL"))
			continue
		}
		return a, nil
	}
	return nil, errors.Join(append(errs, errors.New("no upstream left"))...)
}

func (f *forwarder) ask(q *dns.Msg, proto, upstream string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(f.ctx, dnsTimeout)
	defer cancel()
	c := dns.Client{Net: proto, Timeout: dnsTimeout, UDPSize: 4096}
	a, _, err := c.ExchangeContext(ctx, q, upstream)
	return a, err
}

// upstreams are the host's resolvers.
type upstreams struct {
	fixed   []string
	path    string
	gateway netip.Addr

	mu      sync.Mutex
	checked time.Time
	stamp   time.Time
	found   []string
}

func newUpstreams(fixed []netip.AddrPort, path string, gateway netip.Addr) *upstreams {
	u := &upstreams{path: path, gateway: gateway}
	for _, a := range fixed {
		u.fixed = append(u.fixed, a.String())
	}
	return u
}

// list returns the resolvers to ask, reading the file again when it has changed.
func (u *upstreams) list() []string {
	if len(u.fixed) > 0 {
		return u.fixed
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if now := time.Now(); now.Sub(u.checked) > time.Second {
		u.checked = now
		u.read()
	}
	return u.found
}

func (u *upstreams) read() {
	stamp, err := fileStamp(u.path)
	if err != nil || stamp.Equal(u.stamp) {
		return // keep what is known while the file is being replaced
	}
	conf, err := dns.ClientConfigFromFile(u.path)
	if err != nil {
		return
	}
	u.stamp, u.found = stamp, nil
	port := conf.Port
	if port == "" {
		port = strconv.Itoa(53)
	}
	for _, s := range conf.Servers {
		a, err := netip.ParseAddr(s)
		if err != nil || a == u.gateway { // asking ourselves would go round for ever
			continue
		}
		u.found = append(u.found, net.JoinHostPort(s, port))
	}
}

func fileStamp(path string) (time.Time, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return time.Time{}, err
	}
	return fi.ModTime(), nil
}
