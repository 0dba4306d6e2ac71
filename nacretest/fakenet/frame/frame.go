// Package frame puts packets of any content on a link, as a hostile guest does.
package frame

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Send puts a packet of the protocol (unix.ETH_P_...) on the calling thread's eth0,
// for the neighbour with that hardware address.
func Send(to net.HardwareAddr, proto uint16, packet []byte) error {
	eth, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	addr := &unix.SockaddrLinklayer{Protocol: proto<<8 | proto>>8, Ifindex: eth.Index, Halen: 6}
	copy(addr.Addr[:], to)
	return unix.Sendto(s, packet, 0, addr)
}

// IPv4UDP is a datagram with a text, from an address of the caller's choice.
func IPv4UDP(src netip.Addr, dst netip.AddrPort, text string) []byte {
	s, d := src.As4(), dst.Addr().As4()
	p := make([]byte, 28, 28+len(text))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(text)))
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(p[20:], 5555)
	binary.BigEndian.PutUint16(p[22:], dst.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(text))) // checksum 0: none
	return append(p, text...)
}

// IPv6UDP is an empty datagram between two private addresses.
func IPv6UDP(port int) []byte {
	p := make([]byte, 48)
	p[0], p[6], p[7] = 0x60, unix.IPPROTO_UDP, 64
	binary.BigEndian.PutUint16(p[4:], 8)
	p[8], p[23], p[24], p[39] = 0xfd, 1, 0xfd, 2
	binary.BigEndian.PutUint16(p[42:], uint16(port))
	binary.BigEndian.PutUint16(p[44:], 8)
	return p
}
