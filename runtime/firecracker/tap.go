package firecracker

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/thread"
	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// A guest's network is the same in every slot, so that a snapshot fits each: one
// tap interface with fixed addresses, in the slot's namespace, where what the guest
// sends gets the slot's address. To the host a microVM is then what a gVisor
// sandbox is, and all rules about slots hold for both.
const (
	tapLink  = "tap0"
	slotLink = "eth0"
	natTable = "firecracker"
)

// connectTap makes the tap interface, which uid may open, and the way out. A slot
// that was used before gets them anew.
func connectTap(s nacre.Slot, uid int) error {
	return thread.InNetwork(s.Path, func() error {
		if err := removeTap(); err != nil {
			return err
		}
		if err := makeTap(uid, s.MTU); err != nil {
			return fmt.Errorf("%s: %w", tapLink, err)
		}
		// Files in /proc/sys/net are the namespace's of the thread that opens them.
		for key, value := range map[string]string{"ip_forward": "1", "conf/" + tapLink + "/rp_filter": "1"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+key, []byte(value), 0); err != nil {
				return err
			}
		}
		return setNAT(s.Guest.Addr())
	})
}

// disconnectTap takes away what connectTap made. A namespace that is gone is no error.
func disconnectTap(s nacre.Slot) error {
	err := thread.InNetwork(s.Path, removeTap)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, thread.ErrNoNamespace) { // or the name alone is left
		return nil
	}
	return err
}

func makeTap(uid, mtu int) error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	ifr, err := unix.NewIfreq(tapLink)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETOWNER, uid); err != nil {
		return fmt.Errorf("TUNSETOWNER: %w", err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("TUNSETPERSIST: %w", err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(tapLink)
	if err != nil {
		return err
	}
	mac, _ := net.ParseMAC(wire.HostMAC)
	guest, _ := net.ParseMAC(wire.GuestMAC)
	if err := h.LinkSetHardwareAddr(link, mac); err != nil {
		return err
	}
	if mtu > 0 {
		if err := h.LinkSetMTU(link, mtu); err != nil {
			return err
		}
	}
	// The namespace says nothing of its own on the link.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+tapLink+"/disable_ipv6", []byte("1"), 0)
	addr := &net.IPNet{IP: net.ParseIP(wire.HostAddr).To4(), Mask: net.CIDRMask(wire.Bits, 32)}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: addr}); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	return h.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP(wire.GuestAddr).To4(), HardwareAddr: guest, State: netlink.NUD_PERMANENT})
}

// removeTap works on the calling thread's namespace.
func removeTap() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if link, err := h.LinkByName(tapLink); err == nil {
		if err := h.LinkDel(link); err != nil {
			return fmt.Errorf("%s: %w", tapLink, err)
		}
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.Name == natTable {
			c.DelTable(t)
			return c.Flush()
		}
	}
	return nil
}

// setNAT: from the guest to the slot's link and back, and nothing to the namespace
// itself.
func setNAT(slot netip.Addr) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: natTable})
	drop, accept := nftables.ChainPolicyDrop, nftables.ChainPolicyAccept
	forward := c.AddChain(&nftables.Chain{Table: t, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	input := c.AddChain(&nftables.Chain{Table: t, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &accept})
	nat := c.AddChain(&nftables.Chain{Table: t, Name: "nat", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Policy: &accept})
	add := func(ch *nftables.Chain, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: all})
	}
	verdict := func(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }
	guest := netip.MustParseAddr(wire.GuestAddr)
	add(forward, link(expr.MetaKeyIIFNAME, tapLink), link(expr.MetaKeyOIFNAME, slotLink), source(guest), verdict(expr.VerdictAccept))
	add(forward, link(expr.MetaKeyIIFNAME, slotLink), link(expr.MetaKeyOIFNAME, tapLink), established(), verdict(expr.VerdictAccept))
	// The driver's own connections come from the namespace (dialPort); answers pass.
	add(input, link(expr.MetaKeyIIFNAME, tapLink), established(), verdict(expr.VerdictAccept))
	add(input, link(expr.MetaKeyIIFNAME, tapLink), verdict(expr.VerdictDrop))
	add(nat, link(expr.MetaKeyOIFNAME, slotLink), source(guest), []expr.Any{
		&expr.Immediate{Register: 1, Data: slot.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	})
	return c.Flush()
}

func link(key expr.MetaKey, name string) []expr.Any {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b}}
}

func source(a netip.Addr) []expr.Any {
	const offset = 12 // of the source in an IPv4 header
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	}
}

func established() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4),
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
