package nacre

import (
	"strings"
	"testing"
)

func TestEgressPolicy(t *testing.T) {
	for _, c := range []struct {
		name        string
		p           NetworkPolicy
		allow, deny string
		bad         string // the field at fault
	}{
		{name: "nothing"},
		{name: "addresses and prefixes", p: NetworkPolicy{AllowOut: []string{"1.1.1.1", "8.8.8.8/24"}, DenyOut: []string{"0.0.0.0/0"}},
			allow: "1.1.1.1/32 8.8.8.0/24", deny: "0.0.0.0/0"},
		{name: "mapped", p: NetworkPolicy{DenyOut: []string{"::ffff:1.2.3.4"}}, deny: "1.2.3.4/32"},
		{name: "domain with nothing to open", p: NetworkPolicy{AllowOut: []string{"api.openai.com", "*.example.com", "8.8.8.8"}}, allow: "8.8.8.8/32"},
		{name: "domain beside a deny", p: NetworkPolicy{AllowOut: []string{"api.openai.com"}, DenyOut: []string{"1.1.1.1"}}, bad: "AllowOut"},
		{name: "domain without internet", p: NetworkPolicy{AllowOut: []string{"api.openai.com"}, DenyInternet: true}, bad: "AllowOut"},
		{name: "denied domain", p: NetworkPolicy{DenyOut: []string{"internal.company.com"}}, bad: "DenyOut"},
		{name: "mistyped address", p: NetworkPolicy{AllowOut: []string{"1.1.1.256"}}, bad: "AllowOut"},
		{name: "zone", p: NetworkPolicy{DenyOut: []string{"fe80::1%eth0"}}, bad: "DenyOut"},
		{name: "not a domain", p: NetworkPolicy{AllowOut: []string{"a b.com"}}, bad: "AllowOut"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.p.Egress()
			if c.bad != "" {
				if !IsCode(err, CodeInvalid) || ErrorField(err) != c.bad {
					t.Fatalf("error %v, want one that names %s", err, c.bad)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var allow, deny []string
			for _, p := range got.Allow {
				allow = append(allow, p.String())
			}
			for _, p := range got.Deny {
				deny = append(deny, p.String())
			}
			if strings.Join(allow, " ") != c.allow || strings.Join(deny, " ") != c.deny {
				t.Errorf("allow %v deny %v", allow, deny)
			}
		})
	}
}
