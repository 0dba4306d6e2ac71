package edge

import (
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// BenchmarkTransfer reports the processor time that a gigabyte costs with and
// without the edge between, client and guest included: figures that a busy host
// does not spoil as it does throughput.
func BenchmarkTransfer(b *testing.B) {
	const size = 256 << 20
	w := newWorld(b)
	w.guest(idA, 3000, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 256<<10))
			return
		}
		_, _ = io.CopyBuffer(struct{ io.Writer }{rw}, io.LimitReader(zeros{}, size), make([]byte, 64<<10))
	}))
	direct := "http://" + w.traffic.ports[idA][3000]
	for _, c := range []struct{ name, method, url string }{
		{"upload/direct", "POST", direct}, {"upload/edge", "POST", w.url},
		{"download/direct", "GET", direct}, {"download/edge", "GET", w.url},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(size)
			before := cpu()
			for b.Loop() {
				var body io.Reader
				if c.method == "POST" {
					body = io.LimitReader(zeros{}, size)
				}
				req, _ := http.NewRequestWithContext(b.Context(), c.method, c.url, body)
				req.Host = host("3000", idA)
				resp, err := http.DefaultTransport.RoundTrip(req)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 256<<10))
				_ = resp.Body.Close()
			}
			b.ReportMetric((cpu()-before)/float64(b.N)*float64(1<<30)/size, "cpu-s/GiB")
		})
	}
}

// BenchmarkRoundTrip is a small request through the edge and without it.
func BenchmarkRoundTrip(b *testing.B) {
	w := newWorld(b)
	for _, c := range []struct{ name, url string }{{"direct", "http://" + w.traffic.ports[idA][8080]}, {"edge", w.url}} {
		b.Run(c.name, func(b *testing.B) {
			before := cpu()
			for b.Loop() {
				req, _ := http.NewRequestWithContext(b.Context(), "GET", c.url, strings.NewReader(""))
				req.Host = host("8080", idA)
				resp, err := http.DefaultTransport.RoundTrip(req)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
			b.ReportMetric((cpu()-before)/float64(b.N)*1e6, "cpu-us/op")
		})
	}
}

func cpu() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

// BenchmarkIdleWebSockets reports what a silent WebSocket costs the edge: memory
// in use with the edge between, less what client and guest cost without it.
func BenchmarkIdleWebSockets(b *testing.B) {
	const n = 1000
	w := newWorld(b)
	w.guest(idA, 3000, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		_, _ = conn.Read(make([]byte, 1)) // until the other end is gone
		_ = conn.Close()
	}))
	cost := func(addr string) float64 {
		before := inUse()
		var conns []net.Conn
		for range n {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				b.Fatal(err)
			}
			conns = append(conns, c)
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host("3000", idA)+"\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			if _, err := io.ReadFull(c, make([]byte, 12)); err != nil {
				b.Fatal(err)
			}
		}
		after := inUse()
		for _, c := range conns {
			_ = c.Close()
		}
		w.waitNoConns()
		return float64(after-before) / n
	}
	for b.Loop() {
		direct := cost(w.traffic.ports[idA][3000])
		b.ReportMetric((cost(strings.TrimPrefix(w.url, "http://"))-direct)/1024, "KiB/socket")
	}
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
