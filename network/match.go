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
// statement, in nft's own words. Register 1 is the only one in use.

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

func redirect(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, p)},
		&expr.Redir{RegisterProtoMin: 1, RegisterProtoMax: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
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

// ctTarget is the address that the guest dialled, seen from packets of both
// directions alike.
func ctTarget() []expr.Any {
	const original = 0 // IP_CT_DIR_ORIGINAL
	return one(&expr.Ct{Key: expr.CtKeyDST, Register: 1, Direction: original})
}

func inSet(name string) []expr.Any {
	return one(&expr.Lookup{SourceRegister: 1, SetName: name})
}

func vmap(name string) []expr.Any {
	return one(&expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: name})
}

// addBandwidth polices each slot in both directions. What is above the rate is
// dropped, which TCP adapts to.
func (r *rules) addBandwidth(c *nftables.Conn) error {
	if r.cfg.BytesPerSecond <= 0 {
		return nil
	}
	const idle = time.Minute
	for _, dir := range []struct {
		chain string
		key   expr.MetaKey
	}{{"from_slot", expr.MetaKeyIIFNAME}, {"to_slot", expr.MetaKeyOIFNAME}} {
		set := &nftables.Set{
			Table: r.table(), Name: "rate_" + dir.chain, KeyType: nftables.TypeIFName,
			Dynamic: true, HasTimeout: true, Timeout: idle, Size: 1 << 20,
		}
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
		over := &expr.Dynset{
			SrcRegKey: 1, SetName: set.Name, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: idle,
			Exprs: []expr.Any{&expr.Limit{
				Type: expr.LimitTypePktBytes, Unit: expr.LimitTimeSecond, Over: true,
				Rate: uint64(r.cfg.BytesPerSecond), Burst: uint32(max(r.cfg.BytesPerSecond/4, 64<<10)),
			}},
		}
		var es []expr.Any
		es = append(append(es, ifname(dir.key)...), over, &expr.Verdict{Kind: expr.VerdictDrop})
		c.InsertRule(&nftables.Rule{Table: r.table(), Chain: r.chain(dir.chain), Exprs: es})
	}
	return nil
}
