package network

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// dumpTries is how often the kernel is asked for a list at most.
const dumpTries = 100

// dump asks the kernel for a list until it is whole. When addresses or routes come or
// go meanwhile, of whomever on the host, some may be missing, and the kernel says so.
func dump[T any](what string, list func() ([]T, error)) (out []T, err error) {
	for range dumpTries {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("network: list %s: %w", what, err)
	}
	return out, nil
}

// addresses are those of the host's links.
func addresses(h *netlink.Handle) ([]netlink.Addr, error) {
	return dump("addresses", func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_V4) })
}

// routes are those that are like the filter in the fields that mask names.
func routes(h *netlink.Handle, filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	return dump("routes", func() ([]netlink.Route, error) { return h.RouteListFiltered(netlink.FAMILY_V4, filter, mask) })
}
