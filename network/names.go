package network

import (
	"encoding/binary"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// netnsDir is where ip(8) keeps named namespaces, so that it can list ours.
const netnsDir = "/run/netns"

// names derives every name on the host from the instance, so that what a crash
// leaves is found by its name alone.
type names struct{ instance string }

func (n names) netnsPrefix() string { return "nacre-" + n.instance + "-" }
func (n names) netns(i int) string  { return n.netnsPrefix() + strconv.Itoa(i) }
func (n names) path(i int) string   { return filepath.Join(netnsDir, n.netns(i)) }

// The '-' ends the instance: "nvab-" is no prefix of another instance's links.
// At most 2+6+1+6 = 15 characters, which is what Linux takes.
func (n names) linkPrefix() string {
	if n.instance == "" { // before the first start: of all
		return "nv"
	}
	return "nv" + n.instance + "-"
}
func (n names) link(i int) string { return n.linkPrefix() + strconv.FormatInt(int64(i), 36) }
func (n names) table() string     { return "nacre_" + n.instance }
func (n names) label() string     { return "lo:nv" + n.instance } // of the gateway's address

// index is the inverse of netns and link.
func (n names) index(name string) (int, bool) {
	base := 10
	s, ok := strings.CutPrefix(name, n.netnsPrefix())
	if !ok {
		base = 36
		if s, ok = strings.CutPrefix(name, n.linkPrefix()); !ok {
			return 0, false
		}
	}
	i, err := strconv.ParseInt(s, base, 32)
	if err != nil || i < firstIndex || strconv.FormatInt(i, base) != s {
		return 0, false
	}
	return int(i), true
}

// A slot's index is its address's distance from the pool's own. 0 is the
// network, 1 the gateway.
const firstIndex = 2

// indexes hands out addresses round and round, so that one is used again as late
// as possible: nobody outside should still be sending to its last user.
type indexes struct {
	end  int // first index beyond the pool's hosts
	next int
	busy map[int]bool
}

func newIndexes(pool netip.Prefix) indexes {
	return indexes{end: 1<<(32-pool.Bits()) - 1, next: firstIndex, busy: map[int]bool{}}
}

func (x *indexes) take(i int) { x.busy[i] = true }
func (x *indexes) free(i int) { delete(x.busy, i) }

// pick takes the next free index; ok is false when there is none.
func (x *indexes) pick() (i int, ok bool) {
	for range x.end - firstIndex {
		i = x.next
		if x.next++; x.next >= x.end {
			x.next = firstIndex
		}
		if !x.busy[i] {
			x.busy[i] = true
			return i, true
		}
	}
	return 0, false
}

// addrAt is the address at a distance from the pool's first.
func addrAt(pool netip.Prefix, i int) netip.Addr {
	a := pool.Addr().As4()
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(a[:])+uint32(i))
	return netip.AddrFrom4(b)
}
