package main

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// network configures lo and eth0 with the ioctls that need no library.
func network(boot wire.Boot) error {
	// As under gVisor, and as in the slot, there is no IPv6.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	do := func(link string, req uint, set func(*unix.Ifreq) error) {
		if err != nil {
			return
		}
		var ifr *unix.Ifreq
		if ifr, err = unix.NewIfreq(link); err == nil {
			if err = set(ifr); err == nil {
				err = unix.IoctlIfreq(fd, req, ifr)
			}
		}
		if err != nil {
			err = fmt.Errorf("%s, request %#x: %w", link, req, err)
		}
	}
	up := func(i *unix.Ifreq) error { i.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }
	const mask = 1<<32 - 1<<(32-wire.Bits)
	do("lo", unix.SIOCSIFFLAGS, up)
	do("eth0", unix.SIOCSIFADDR, func(i *unix.Ifreq) error { return i.SetInet4Addr(addr4(wire.GuestAddr)) })
	do("eth0", unix.SIOCSIFNETMASK, func(i *unix.Ifreq) error {
		return i.SetInet4Addr([]byte{mask >> 24, mask >> 16 & 255, mask >> 8 & 255, mask & 255})
	})
	if boot.MTU > 0 {
		do("eth0", unix.SIOCSIFMTU, func(i *unix.Ifreq) error { i.SetUint32(uint32(boot.MTU)); return nil })
	}
	do("eth0", unix.SIOCSIFFLAGS, up)
	if err != nil {
		return err
	}
	return defaultRoute(fd)
}

func addr4(s string) []byte {
	var a, b, c, d byte
	if _, err := fmt.Sscanf(s, "%d.%d.%d.%d", &a, &b, &c, &d); err != nil {
		panic(err) // a constant
	}
	return []byte{a, b, c, d}
}

// defaultRoute adds struct rtentry of linux/route.h.
func defaultRoute(fd int) error {
	var rt struct {
		pad1              uint64
		dst, gateway, msk unix.RawSockaddrInet4
		flags             uint16
		_                 [6]byte
		_                 [64]byte
	}
	rt.dst.Family, rt.msk.Family, rt.gateway.Family = unix.AF_INET, unix.AF_INET, unix.AF_INET
	copy(rt.gateway.Addr[:], addr4(wire.HostAddr))
	const upAndGateway = 1 | 2
	rt.flags = upAndGateway
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&rt))); e != 0 {
		return fmt.Errorf("default route: %w", e)
	}
	return nil
}
