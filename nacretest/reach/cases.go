// Package reach says what a guest reaches of the fake internet and what it never
// does. The tests of the network hold a slot to it; Test holds real machines to it,
// of any runtime, from inside.
package reach

import (
	"net/netip"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/fakenet"
)

// Everywhere is a policy that tries to open what no policy opens.
func Everywhere() nacre.EgressPolicy {
	return nacre.EgressPolicy{Allow: prefixes("0.0.0.0/0", "10.0.0.0/8", "169.254.169.254/32")}
}

// Never is an address that no guest reaches, whatever its policy.
type Never struct {
	Name, Addr string
	// Refused tells that it answers the host, and that a guest's attempt is refused at
	// once. The others lead nowhere.
	Refused bool
}

// Closed are such addresses.
func Closed() []Never {
	return []Never{
		{"metadata", fakenet.Metadata, true},
		{"link-local", "169.254.1.1", true},
		{"Alibaba metadata", "100.100.100.200", true},
		{"Azure host agent", "168.63.129.16", true},
		{"10/8", "10.99.0.1", true},
		{"172.16/12", "172.16.5.5", true},
		{"172.31, the end of it", "172.31.255.254", true},
		{"192.168/16", "192.168.77.1", true},
		{"carrier-grade NAT", "100.64.0.1", true},
		{"benchmark network", "198.18.0.1", true},
		{"protocol assignments", "192.0.0.1", true},
		{"the router next to the host", fakenet.Neighbour, true},
		{"reserved", "240.0.0.1", false},
		{"zero network", "0.1.2.3", false},
		{"a pool address, not used", "10.231.200.200", false},
	}
}

// ClosedUDP are those of Closed that would answer over UDP.
func ClosedUDP() []string {
	return []string{fakenet.Metadata, "10.99.0.1", "192.168.77.1", fakenet.Neighbour}
}

// MetadataForms are spellings of the metadata address, and its address in IPv6.
func MetadataForms() []string {
	return []string{"169.254.169.254", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "fd00:ec2::254"}
}

// Policy is one with addresses that it opens and closes.
type Policy struct {
	nacre.EgressPolicy
	Open, Closed []string
}

// Policies say which addresses each one lets a guest reach.
func Policies() map[string]Policy {
	type p = nacre.EgressPolicy
	return map[string]Policy{
		"none": {p{},
			[]string{"1.1.1.1", "8.8.8.8", fakenet.Example, "223.255.255.254"}, nil},
		"deny all": {p{DenyAll: true},
			nil, []string{"1.1.1.1", "8.8.8.8", fakenet.Example}},
		"deny 0.0.0.0/0": {p{Deny: prefixes("0.0.0.0/0")},
			nil, []string{"1.1.1.1", "8.8.8.8"}},
		"deny everything in two halves": {p{Deny: prefixes("0.0.0.0/1", "128.0.0.0/1")},
			nil, []string{"1.1.1.1", "203.0.113.1"}},
		"an allow-list": {p{Deny: prefixes("0.0.0.0/0"), Allow: prefixes("1.1.1.1/32")},
			[]string{"1.1.1.1"}, []string{"1.1.1.0", "1.1.1.2", "8.8.8.8"}},
		"an allow-list by DenyAll": {p{DenyAll: true, Allow: prefixes("1.1.1.0/31", "8.8.0.0/16")},
			[]string{"1.1.1.0", "1.1.1.1", "8.8.8.8", "8.8.255.255"}, []string{"1.1.1.2", "8.9.0.0", "8.7.255.255"}},
		"a deny-list": {p{Deny: prefixes("1.1.1.1/32", "93.184.216.0/24")},
			[]string{"1.1.1.2", "8.8.8.8", "93.184.217.0"}, []string{"1.1.1.1", fakenet.Example}},
		"a hole in a deny-list": {p{Deny: prefixes("1.0.0.0/8"), Allow: prefixes("1.1.1.1/32")},
			[]string{"1.1.1.1", "8.8.8.8"}, []string{"1.1.1.2", "1.0.0.1"}},
		"the same in both": {p{Deny: prefixes("1.1.1.1/32"), Allow: prefixes("1.1.1.1/32")},
			[]string{"1.1.1.1", "8.8.8.8"}, nil},
		"allow without deny": {p{Allow: prefixes("1.1.1.1/32")},
			[]string{"1.1.1.1", "8.8.8.8"}, nil},
		"overlapping and touching entries": {p{Deny: prefixes("8.8.8.8/32", "8.8.8.0/24", "8.8.9.0/24", "8.8.8.8/32")},
			[]string{"8.8.7.255", "8.8.10.0"}, []string{"8.8.8.0", "8.8.8.8", "8.8.9.255"}},
		"the last address": {p{DenyAll: true, Allow: prefixes("223.255.255.254/31")},
			[]string{"223.255.255.254"}, []string{"223.255.255.253"}},
		"an allow-list of private networks opens none": {p{DenyAll: true, Allow: prefixes("10.0.0.0/8", "169.254.169.254/32")},
			nil, []string{"10.99.0.1", fakenet.Metadata, "1.1.1.1"}},
		"IPv6 entries mean nothing": {p{DenyAll: true, Allow: prefixes("::/0", "2606:4700::/32")},
			nil, []string{"1.1.1.1"}},
		"IPv4 in IPv6 clothes": {p{DenyAll: true, Allow: prefixes("::ffff:1.1.1.1/128")},
			[]string{"1.1.1.1"}, []string{"1.1.1.2"}},
	}
}

// FalseSources are addresses that a guest in the slot must not send from.
func FalseSources(slot, other nacre.Slot) map[string]string {
	return map[string]string{
		"another slot":    other.Guest.Addr().String(),
		"the gateway":     slot.Gateway.String(),
		"the host":        fakenet.HostAddr,
		"its neighbour":   fakenet.Neighbour,
		"the internet":    fakenet.CloudFlare,
		"the loopback":    "127.0.0.1",
		"nobody":          "0.0.0.0",
		"broadcast":       "255.255.255.255",
		"a free slot":     "10.231.99.99",
		"a multicast one": "224.0.0.5",
	}
}

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
