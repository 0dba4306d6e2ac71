package nacre

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Egress parses the outbound half of the policy. An entry that is neither an
// address nor a CIDR is CodeInvalid and names its list. A domain name in AllowOut
// is accepted where nothing is denied, for there it has nothing to open; anywhere
// else it would have to be enforced by name, which is not offered.
func (p NetworkPolicy) Egress() (EgressPolicy, error) {
	out := EgressPolicy{DenyAll: p.DenyInternet}
	allow := p.AllowOut
	if !p.DenyInternet && len(p.DenyOut) == 0 {
		allow = slices.DeleteFunc(slices.Clone(allow), isDomain)
	}
	var err error
	if out.Allow, err = parsePrefixes("AllowOut", allow); err != nil {
		return EgressPolicy{}, err
	}
	if out.Deny, err = parsePrefixes("DenyOut", p.DenyOut); err != nil {
		return EgressPolicy{}, err
	}
	return out, nil
}

// domainForm is a host name with at least one dot, "*." before it perhaps; the
// last label is no number, or it would be a mistyped address.
var domainForm = regexp.MustCompile(`^(\*\.)?([a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?\.)+[a-zA-Z]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.?$`)

func isDomain(s string) bool { return len(s) <= 253 && domainForm.MatchString(s) }

func parsePrefixes(field string, entries []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, e := range entries {
		prefix, ok := parsePrefix(e)
		if !ok {
			return nil, Invalidf(field, "%s: %q is not an IP address or a CIDR; traffic cannot be denied or opened by domain name here, give addresses", field, e)
		}
		out = append(out, prefix)
	}
	return out, nil
}

// parsePrefix takes "1.2.3.4", "1.2.3.0/24" and their IPv6 forms. IPv4-mapped
// IPv6 stands for the IPv4 address; a zone names an interface of the host and is
// refused.
func parsePrefix(s string) (netip.Prefix, bool) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, false
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	if a := p.Addr(); a.Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, false // half of it would be IPv6
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

// ValidHostMask tells whether s may stand in a Host header, "${PORT}" in it for a
// port, as NetworkPolicy.MaskRequestHost does; "" may.
func ValidHostMask(s string) bool {
	host := strings.ReplaceAll(s, "${PORT}", "0")
	return len(host) <= 253 && !strings.ContainsFunc(host, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-._:[]", c))
	})
}
