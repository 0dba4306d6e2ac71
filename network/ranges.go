package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
)

// span is an inclusive range of IPv4 addresses.
type span struct{ from, to uint32 }

// spans merges IPv4 prefixes into sorted ranges that neither overlap nor touch,
// which is what an nftables interval set takes. IPv6 is left out: guests have none.
func spans(ps []netip.Prefix) []span {
	var all []span
	for _, p := range ps {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if !p.IsValid() || !p.Addr().Is4() {
			continue
		}
		b := p.Masked().Addr().As4()
		from := binary.BigEndian.Uint32(b[:])
		all = append(all, span{from, from | uint32(1<<(32-p.Bits())-1)})
	}
	slices.SortFunc(all, func(a, b span) int {
		if a.from < b.from {
			return -1
		} else if a.from > b.from {
			return 1
		}
		return 0
	})
	var out []span
	for _, s := range all {
		if k := len(out) - 1; k >= 0 && (out[k].to == ^uint32(0) || s.from <= out[k].to+1) {
			out[k].to = max(out[k].to, s.to)
			continue
		}
		out = append(out, s)
	}
	return out
}

// subtract takes holes out of ss; both are as spans returns them.
func subtract(ss, holes []span) []span {
	var out []span
	for _, s := range ss {
		rest, alive := s, true
		for _, h := range holes {
			if h.to < rest.from || h.from > rest.to {
				continue
			}
			if h.from > rest.from {
				out = append(out, span{rest.from, h.from - 1})
			}
			if h.to >= rest.to {
				alive = false
				break
			}
			rest.from = h.to + 1
		}
		if alive {
			out = append(out, rest)
		}
	}
	return out
}

func everything(ss []span) bool { return len(ss) == 1 && ss[0] == span{0, ^uint32(0)} }

// elements are the ranges as nftables wants them: where each starts, and the
// first address after it.
func elements(ss []span) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, 2*len(ss))
	for _, s := range ss {
		out = append(out, nftables.SetElement{Key: be32(s.from)})
		if s.to != ^uint32(0) {
			out = append(out, nftables.SetElement{Key: be32(s.to + 1), IntervalEnd: true})
		}
	}
	return out
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok || !a.Unmap().Is4() {
		return netip.Prefix{}, false
	}
	bits, size := n.Mask.Size()
	if size == 128 {
		bits -= 96
	}
	p := netip.PrefixFrom(a.Unmap(), bits)
	return p.Masked(), p.IsValid()
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
