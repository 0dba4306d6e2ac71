package network

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/miekg/dns"
	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// prefixGen makes IPv4 prefixes in a corner small enough for them to meet.
func prefixGen(t *rapid.T, label string) []netip.Prefix {
	one := rapid.Custom(func(t *rapid.T) netip.Prefix {
		corner := rapid.SampledFrom([]byte{0, 10, 255}).Draw(t, "a")
		fill := byte(0)
		if corner == 255 {
			fill = 255
		}
		a := netip.AddrFrom4([4]byte{corner, fill, fill, rapid.Byte().Draw(t, "d")})
		return netip.PrefixFrom(a, rapid.SampledFrom([]int{0, 8, 24, 25, 27, 30, 31, 32}).Draw(t, "bits"))
	})
	return rapid.SliceOfN(one, 0, 12).Draw(t, label)
}

// TestSpans: merged ranges hold exactly the addresses of the prefixes, in order,
// never touching; a subtraction takes exactly what it should.
func TestSpans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ps, holes := prefixGen(t, "prefixes"), prefixGen(t, "holes")
		ss, left := spans(ps), subtract(spans(ps), spans(holes))
		for _, list := range [][]span{ss, left} {
			for i, s := range list {
				if s.from > s.to || i > 0 && s.from <= list[i-1].to {
					t.Fatalf("%v is not in order", list)
				}
			}
		}
		for i := 1; i < len(ss); i++ {
			if ss[i].from == ss[i-1].to+1 {
				t.Fatalf("%v touch", ss)
			}
		}
		in := func(ps []netip.Prefix, a netip.Addr) bool {
			return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
		}
		has := func(ss []span, a netip.Addr) bool {
			v := be(a)
			return slices.ContainsFunc(ss, func(s span) bool { return s.from <= v && v <= s.to })
		}
		for _, corner := range []byte{0, 1, 10, 255} {
			for _, mid := range []byte{0, 1, 255} {
				for d := range 256 {
					a := netip.AddrFrom4([4]byte{corner, mid, mid, byte(d)})
					if has(ss, a) != in(ps, a) {
						t.Fatalf("%s in %v: %v, in %v: %v", a, ss, has(ss, a), ps, in(ps, a))
					}
					if want := in(ps, a) && !in(holes, a); has(left, a) != want {
						t.Fatalf("%s in %v less %v: %v", a, ps, holes, !want)
					}
				}
			}
		}
	})
}

func be(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// TestNames: every name leads back to its index, fits into the kernel's limits,
// and is not taken for another instance's.
func TestNames(t *testing.T) {
	for _, instance := range []string{"a", "ab", "a1b2c3"} {
		n := names{instance}
		for _, i := range []int{firstIndex, 35, 36, 65534, 1<<20 - 2} {
			for _, name := range []string{n.netns(i), n.link(i)} {
				if got, ok := n.index(name); !ok || got != i {
					t.Errorf("index(%q) = %d, %v; want %d", name, got, ok, i)
				}
				for _, other := range []string{"b", "a1", "a1b2c"} {
					if _, ok := (names{other}).index(name); ok {
						t.Errorf("%s takes %q for its own", other, name)
					}
				}
			}
			if len(n.link(i)) > unix.IFNAMSIZ-1 {
				t.Errorf("%q is too long for a link", n.link(i))
			}
		}
		if len(n.label()) > unix.IFNAMSIZ-1 {
			t.Errorf("%q is too long for a label", n.label())
		}
	}
	for _, bad := range []string{"", "nacre-a-", "nacre-a-0", "nacre-a-1", "nacre-a-02", "nacre-a-+5", "nacre-a-x", "nacre-a--5", "nva-", "nva-1", "nva-Z", "eth0", "nacre-a-99999999999999"} {
		if i, ok := (names{"a"}).index(bad); ok {
			t.Errorf("index(%q) = %d, want none", bad, i)
		}
	}
}

// TestIndexes: each is handed out once, and one that was given back comes last.
func TestIndexes(t *testing.T) {
	x := newIndexes(netip.MustParsePrefix("10.0.0.0/28"))
	seen := map[int]bool{}
	for range 13 {
		i, ok := x.pick()
		if !ok || seen[i] || i < firstIndex || i > 14 {
			t.Fatalf("pick = %d, %v after %v", i, ok, seen)
		}
		seen[i] = true
	}
	if i, ok := x.pick(); ok {
		t.Fatalf("a fourteenth: %d", i)
	}
	x.free(3)
	x.free(9)
	if i, _ := x.pick(); i != 3 {
		t.Errorf("pick = %d, want 3", i)
	}
	x.free(3)
	if i, _ := x.pick(); i != 9 {
		t.Errorf("pick = %d, want 9: 3 was used a moment ago", i)
	}
}

// TestForgetConnections: both ways to forget a guest's connections, the kernel's
// selection and the dump for older kernels, take these and no others.
func TestForgetConnections(t *testing.T) {
	for name, forget := range map[string]func(netip.Addr) error{"selected": flushConntrack, "by dump": flushByDump} {
		t.Run(name, func(t *testing.T) {
			fakenet.Start(t)
			n, err := New(Config{Instance: "u1", Ready: -1})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = n.Close(context.Background())
				_ = Destroy("u1")
			})
			if err := n.Recover(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			var addrs []netip.Addr
			for range 2 {
				s, err := n.Acquire(t.Context(), nacre.NewMachineID(), nacre.EgressPolicy{})
				if err != nil {
					t.Fatal(err)
				}
				addrs = append(addrs, s.Guest.Addr())
				err = fakenet.DoPath(s.Path, func() error {
					c, err := net.Dial("udp4", fakenet.CloudFlare+":7")
					if err != nil {
						return err
					}
					defer c.Close()
					_, err = c.Write([]byte("x"))
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				// And one from the host to the guest.
				c, err := net.Dial("udp4", s.Guest.Addr().String()+":9")
				if err != nil {
					t.Fatal(err)
				}
				_, _ = c.Write([]byte("x"))
				c.Close()
			}
			if err := forget(addrs[0]); err != nil {
				t.Fatal(err)
			}
			if a, b := flows(t, addrs[0]), flows(t, addrs[1]); a != 0 || b != 2 {
				t.Errorf("%d connections of the one are left, %d of the other; want 0 and 2", a, b)
			}
		})
	}
}

func flows(t *testing.T, a netip.Addr) (count int) {
	t.Helper()
	fs, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fs {
		if f.Forward.SrcIP.Equal(a.AsSlice()) || f.Forward.DstIP.Equal(a.AsSlice()) {
			count++
		}
	}
	return count
}

// recorder is a dns.ResponseWriter for one packet.
type recorder struct {
	dns.ResponseWriter
	from net.Addr
	out  *dns.Msg
}

func (r *recorder) RemoteAddr() net.Addr        { return r.from }
func (r *recorder) WriteMsg(m *dns.Msg) error   { r.out = m; return nil }
func (r *recorder) Write(b []byte) (int, error) { return len(b), nil }

// FuzzDNS: whatever a guest sends, an answer fits its question, packs, and goes
// to slots only.
func FuzzDNS(f *testing.F) {
	q, err := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).SetEdns0(1232, true).Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q)
	f.Add([]byte{0, 1, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	guest := netip.MustParseAddr("10.231.0.2")
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	cfg := Config{Instance: "fz", Upstreams: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}}
	if err := cfg.setDefaults(); err != nil {
		f.Fatal(err)
	}
	fw := &forwarder{
		log: cfg.Log, ctx: ended, inFlight: make(chan struct{}, dnsInFlight), clients: map[netip.Addr]*dnsClient{},
		upstreams: newUpstreams(cfg.Upstreams, "", netip.Addr{}),
	}
	fw.admit(guest, true)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		for _, from := range []string{guest.String(), "10.231.0.3"} {
			w := &recorder{from: &net.UDPAddr{IP: net.ParseIP(from), Port: 4000}}
			fw.ServeDNS(w, m.Copy())
			if w.out == nil {
				continue
			}
			if from != guest.String() {
				t.Fatalf("a stranger was answered: %v", w.out)
			}
			if w.out.Id != m.Id || !w.out.Response {
				t.Fatalf("the answer to %v is %v", m, w.out)
			}
		}
		if c := fw.clients[guest]; c.inFlight != 0 || len(fw.inFlight) != 0 {
			t.Fatalf("%d questions are still in flight", c.inFlight)
		}
	})
}
