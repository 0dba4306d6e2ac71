package network

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The vocabulary of rules.go: each returns the expressions of one match or
// statement, in nft's own words.

func one(e expr.Any) []expr.Any { return []expr.Any{e} }

func drop() []expr.Any     { return one(&expr.Verdict{Kind: expr.VerdictDrop}) }
func accepted() []expr.Any { return one(&expr.Verdict{Kind: expr.VerdictAccept}) }
func goTo(chain string) []expr.Any {
	return one(&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain})
}

func equal(data ...byte) expr.Any   { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
func unequal(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data} }

func ifname(key expr.MetaKey) []expr.Any { return one(&expr.Meta{Key: key, Register: 1}) }

// slotLink: iifname "nv<instance>-*".
func (r *rules) slotLink(key expr.MetaKey) []expr.Any {
	return append(ifname(key), equal([]byte(r.names.linkPrefix())...))
}

func notLoopback() []expr.Any {
	return append(ifname(expr.MetaKeyIIFNAME), unequal(padded("lo")...))
}

func padded(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func notIPv4() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, unequal(unix.NFPROTO_IPV4)}
}

func ipv4() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(unix.NFPROTO_IPV4)}
}

// spoofed: fib saddr . iif oif missing. The only source with a route back through
// a slot's link is the slot's guest.
func spoofed() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true}, equal(0, 0, 0, 0)}
}

func ipField(offset uint32) []expr.Any {
	return append(ipv4(), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4})
}

func saddr() []expr.Any { return ipField(12) }
func daddr() []expr.Any { return ipField(16) }

func daddrIs(a netip.Addr) []expr.Any { return append(daddr(), equal(a.AsSlice()...)) }

func saddrIn(p netip.Prefix) []expr.Any {
	mask := be32(^uint32(0) << (32 - p.Bits()))
	return append(saddr(),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		equal(p.Masked().Addr().AsSlice()...))
}

func l4proto(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal(p)}
}

func dport(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equal(binary.BigEndian.AppendUint16(nil, p)...),
	}
}

// udpOver matches a datagram of more than n bytes.
func udpOver(n uint16) []expr.Any {
	return append(l4proto(unix.IPPROTO_UDP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 4, Len: 2},
		&expr.Cmp{Op: expr.CmpOpGt, Register: 1, Data: binary.BigEndian.AppendUint16(nil, n+8)}) // with its header
}

// dnat: dnat ip to a:p. Not "redirect": that takes the incoming link's address,
// and a slot's link has none.
func dnat(a netip.Addr, p uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: a.AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, p)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}
}

func stateIs(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		unequal(0, 0, 0, 0),
	}
}

func ctReply() []expr.Any {
	const reply = 1 // IP_CT_DIR_REPLY
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, equal(reply)}
}

func inSet(name string) []expr.Any {
	return one(&expr.Lookup{SourceRegister: 1, SetName: name})
}

func vmap(name string) []expr.Any {
	return one(&expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: name})
}

// overLimit makes a set that keeps one limit for each slot's link, and the match
// for a packet beyond it. The kernel forgets a link that is idle for a minute.
func (r *rules) overLimit(c *nftables.Conn, name string, key expr.MetaKey, limit expr.Limit) ([]expr.Any, error) {
	const idle = time.Minute
	set := &nftables.Set{
		Table: r.table(), Name: name, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian,
		Dynamic: true, HasTimeout: true, Timeout: idle, Size: 1 << 20,
	}
	if err := c.AddSet(set, nil); err != nil {
		return nil, err
	}
	limit.Unit, limit.Over = expr.LimitTimeSecond, true
	return append(ifname(key), &expr.Dynset{
		SrcRegKey: 1, SetName: name, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: idle,
		Exprs: []expr.Any{&limit},
	}), nil
}
