package fakenet

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// serve listens in the internet's namespace.
func (n *Internet) serve() error {
	web, err := net.Listen("tcp4", fmt.Sprintf(":%d", HTTPPort))
	if err != nil {
		return err
	}
	s := &http.Server{Handler: http.HandlerFunc(tell)}
	go func() { _ = s.Serve(web) }()
	n.closers = append(n.closers, func() { _ = s.Close() })

	echo, err := net.Listen("tcp4", fmt.Sprintf(":%d", EchoPort))
	if err != nil {
		return err
	}
	n.closers = append(n.closers, func() { _ = echo.Close() })
	go Echo(echo)

	for _, a := range UDPAddrs() {
		u, err := net.ListenPacket("udp4", udpAddr(a, EchoPort))
		if err != nil {
			return err
		}
		n.closers = append(n.closers, func() { _ = u.Close() })
		go echoUDP(u)
		if err := n.serveDNS(a); err != nil {
			return err
		}
	}
	return nil
}

// Received tells what arrives at any address of the internet on a UDP port, until the
// test ends.
func (n *Internet) Received(t testing.TB, port int) (<-chan string, error) {
	out := make(chan string, 100)
	return out, n.Do(func() error {
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			buf := make([]byte, 2048)
			for {
				k, _, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				out <- string(buf[:k])
			}
		}()
		return nil
	})
}

func tell(w http.ResponseWriter, r *http.Request) {
	to, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	fmt.Fprintf(w, "%s -> %s %s\n", r.RemoteAddr, to, r.Host)
}

// Echo answers each connection with what it says, until the listener is closed.
func Echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func echoUDP(u net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		k, from, err := u.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = u.WriteTo(buf[:k], from)
	}
}

func (n *Internet) serveDNS(addr string) error {
	u, err := net.ListenPacket("udp4", udpAddr(addr, 53))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp4", udpAddr(addr, 53))
	if err != nil {
		_ = u.Close()
		return err
	}
	for _, s := range []*dns.Server{{PacketConn: u, Handler: dns.HandlerFunc(resolve)}, {Listener: l, Handler: dns.HandlerFunc(resolve)}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		n.closers = append(n.closers, func() { _ = s.Shutdown() })
	}
	return nil
}

// resolve knows example.com, metadata.test, "<a>-<b>-<c>-<d>.ip.test" for any
// address, and big.test with an answer too large for UDP. All else is NXDOMAIN.
func resolve(w dns.ResponseWriter, q *dns.Msg) {
	a := new(dns.Msg).SetReply(q)
	if len(q.Question) != 1 {
		a.Rcode = dns.RcodeFormatError
		_ = w.WriteMsg(a)
		return
	}
	name := strings.ToLower(q.Question[0].Name)
	add := func(ip string) {
		if q.Question[0].Qtype == dns.TypeA {
			a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.ParseIP(ip)})
		}
	}
	host, isIP := strings.CutSuffix(name, ".ip.test.")
	switch {
	case name == "example.com.":
		add(Example)
	case name == "metadata.test.":
		add(Metadata)
	case name == "big.test.":
		for i := range 200 {
			add(fmt.Sprintf("198.51.100.%d", i))
		}
	case isIP:
		add(strings.ReplaceAll(host, "-", "."))
	default:
		a.Rcode = dns.RcodeNameError
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		a.Truncate(dns.MinMsgSize)
	}
	_ = w.WriteMsg(a)
}
