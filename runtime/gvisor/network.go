package gvisor

import (
	"fmt"
	"net"
	"os"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/config"

	"github.com/nacrehq/nacre"
)

// guestLink is the interface's name in a slot's namespace and in the guest.
const guestLink = "eth0"

// takeLink opens the slot's interface for the guest's own network stack and
// describes it. It runs on a thread that is in the slot's namespace. The host's
// kernel must not answer for the guest's address, so it loses its addresses;
// what the guest gets is what the slot says, and a slot may be used again.
func takeLink(s nacre.Slot, conf *config.Config) (*boot.CreateLinksAndRoutesArgs, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := h.LinkByName(guestLink)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", guestLink, err)
	}
	addrs, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if err := h.AddrDel(link, &a); err != nil && err != unix.EADDRNOTAVAIL {
			return nil, fmt.Errorf("address %s: %w", a.IPNet, err)
		}
	}
	sock, gso, err := packetSocket(link.Attrs().Index)
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", guestLink, err)
	}
	l := boot.FDBasedLink{
		Name:              guestLink,
		MTU:               link.Attrs().MTU,
		LinkAddress:       link.Attrs().HardwareAddr,
		Addresses:         []boot.IPWithPrefix{{Address: s.Guest.Addr().AsSlice(), PrefixLen: s.Guest.Bits()}},
		Routes:            []boot.Route{{Destination: ipNet(s)}},
		NumChannels:       1,
		RXChecksumOffload: conf.RXChecksumOffload,
		TXChecksumOffload: conf.TXChecksumOffload,
		QDisc:             conf.QDisc,
		GVisorGRO:         conf.GVisorGRO,
	}
	if gso {
		l.GSOMaxSize = link.Attrs().GSOMaxSize
	}
	if l.GSOMaxSize == 0 {
		l.GSOMaxSize, l.GVisorGSOEnabled = stack.GVisorGSOMaxSize, true
	}
	args := &boot.CreateLinksAndRoutesArgs{
		LoopbackLinks: []boot.LoopbackLink{boot.DefaultLoopbackLink},
		FDBasedLinks:  []boot.FDBasedLink{l},
	}
	args.FilePayload.Files = []*os.File{sock}
	if s.Gateway.IsValid() {
		args.Defaultv4Gateway = boot.DefaultRoute{Name: guestLink, Route: boot.Route{
			Destination: net.IPNet{IP: net.IPv4zero, Mask: net.IPMask(net.IPv4zero)},
			Gateway:     s.Gateway.AsSlice(),
		}}
	}
	return args, nil
}

// ipNet is the slot's network.
func ipNet(s nacre.Slot) net.IPNet {
	return net.IPNet{IP: s.Guest.Masked().Addr().AsSlice(), Mask: net.CIDRMask(s.Guest.Bits(), s.Guest.Addr().BitLen())}
}

// packetSocket opens a raw socket on an interface, and tells whether it takes
// segments larger than a packet.
func packetSocket(index int) (f *os.File, gso bool, err error) {
	// No protocol yet: a socket without one binds at once, while one that receives
	// already would have to wait for the other processors.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, false, err
	}
	f = os.NewFile(uintptr(fd), "packet socket")
	const all = 0x0300 // ETH_P_ALL in network order
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		f.Close()
		return nil, false, err
	}
	if gso = offersGSO(fd); gso {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			f.Close()
			return nil, false, err
		}
	}
	const buffer = 4 << 20 // the default drops packets at high rates
	for _, opt := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, buffer); err != nil {
			f.Close()
			return nil, false, err
		}
	}
	return f, gso, nil
}

// offersGSO asks ETHTOOL_GGSO.
func offersGSO(fd int) bool {
	value := struct{ cmd, data uint32 }{cmd: 0x23}
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(req.name[:], guestLink)
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	return e == 0 && value.data != 0
}
