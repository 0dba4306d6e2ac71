package network

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// linkRemover deletes links in batches. One deletion holds the kernel's lock for
// all link changes for 15 to 30 ms, most of it waiting; a batch takes no longer.
// Who comes while a batch is under way waits for the next.
type linkRemover struct {
	nl *netlink.Handle

	mu      sync.Mutex // held while a batch is under way
	queueMu sync.Mutex
	queue   *linkBatch
}

type linkBatch struct {
	names []string
	err   error
}

// maxLinkBatch keeps one batch from holding the lock too long.
const maxLinkBatch = 128

// remove deletes the links; those that do not exist are no error.
func (r *linkRemover) remove(names ...string) error {
	r.queueMu.Lock()
	if r.queue == nil || len(r.queue.names)+len(names) > maxLinkBatch {
		r.queue = &linkBatch{}
	}
	b := r.queue
	b.names = append(b.names, names...)
	r.queueMu.Unlock()

	r.mu.Lock()
	defer r.mu.Unlock()
	r.queueMu.Lock()
	if r.queue == b {
		r.queue = nil
	}
	names, b.names = b.names, nil // the first of a batch works for all
	r.queueMu.Unlock()
	if len(names) > 0 {
		b.err = r.removeAll(names)
	}
	return b.err
}

// removeAll puts the links into a group that nobody else has and deletes that.
func (r *linkRemover) removeAll(names []string) error {
	group := rand.Uint32()>>1 | 1<<30
	found := 0
	for _, name := range names {
		link, err := r.nl.LinkByName(name)
		if err == nil {
			err = r.nl.LinkSetGroup(link, int(group))
		}
		var none netlink.LinkNotFoundError
		switch {
		case err == nil:
			found++
		case errors.As(err, &none) || errors.Is(err, unix.ENODEV):
		default:
			return fmt.Errorf("network: delete link %s: %w", name, err)
		}
	}
	if found == 0 {
		return nil
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	// ENODEV: they went by themselves, with their namespaces.
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("network: delete %d links: %w", found, err)
	}
	return nil
}
