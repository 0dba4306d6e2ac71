package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// From linux/netfilter/nfnetlink_conntrack.h; no library has them.
const (
	ctaFilter          = 25
	ctaFilterOrigFlags = 1
)

// flushConntrack forgets every connection from and to a guest, so that the next
// user of the address inherits none.
func flushConntrack(guest netip.Addr) error {
	for _, attr := range []int{nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST} {
		err := flushSelected(guest, attr)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
			return flushByDump(guest)
		}
		if err != nil {
			return fmt.Errorf("network: forget connections of %s: %w", guest, err)
		}
	}
	return nil
}

// flushSelected lets the kernel select by one address of the original direction.
// One that cannot (before 6.8 or so) refuses: the tuple alone is incomplete.
func flushSelected(guest netip.Addr, attr int) error {
	req := nl.NewNetlinkRequest(int(netlink.ConntrackTable)<<8|nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	tuple := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	ip := tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
	ip.AddRtAttr(attr, guest.AsSlice())
	req.AddData(tuple)
	filter := nl.NewRtAttr(unix.NLA_F_NESTED|ctaFilter, nil)
	flag := uint32(1) << (attr - nl.CTA_IP_V4_SRC) // CTA_FILTER_F_CTA_IP_SRC, .._DST
	filter.AddRtAttr(ctaFilterOrigFlags, nl.Uint32Attr(flag))
	req.AddData(filter)
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

// flushByDump reads the whole table and deletes what matches.
func flushByDump(guest netip.Addr) error {
	filters := make([]netlink.CustomConntrackFilter, 0, 2)
	for _, side := range []netlink.ConntrackFilterType{netlink.ConntrackOrigSrcIP, netlink.ConntrackOrigDstIP} {
		f := &netlink.ConntrackFilter{}
		if err := f.AddIP(side, guest.AsSlice()); err != nil {
			return fmt.Errorf("network: %w", err)
		}
		filters = append(filters, f)
	}
	// A dump that was interrupted by changes has deleted what it saw.
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filters...)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("network: forget connections of %s: %w", guest, err)
	}
	return nil
}
