package nacre_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/nacrehq/nacre"
)

func TestEgressForms(t *testing.T) {
	for entry, want := range map[string]string{
		"1.1.1.1":              "1.1.1.1/32",
		"10.1.2.3/8":           "10.0.0.0/8",
		"0.0.0.0/0":            "0.0.0.0/0",
		"::ffff:192.0.2.1":     "192.0.2.1/32",
		"::ffff:192.0.2.0/120": "192.0.2.0/24",
		"2001:db8::1":          "2001:db8::1/128",
		"":                     "", "example.com": "", "*.example.com": "", "1.1.1": "", "1.1.1.1/33": "", "1.1.1.1/": "",
		"01.1.1.1": "", "0x7f.1": "", "2130706433": "", "fe80::1%eth0": "", "fe80::1%eth0/64": "", "::ffff:0:0/64": "", " 1.1.1.1": "", "1.1.1.1:80": "",
	} {
		p, err := nacre.NetworkPolicy{DenyOut: []string{entry}}.Egress()
		if want == "" {
			if !nacre.IsCode(err, nacre.CodeInvalid) || nacre.ErrorField(err) != "DenyOut" {
				t.Errorf("%q: %v, %v", entry, p, err)
			}
			continue
		}
		if err != nil || fmt.Sprint(p.Deny) != "["+want+"]" {
			t.Errorf("%q: %v, %v", entry, p, err)
		}
	}
}

func FuzzEgress(f *testing.F) {
	f.Add("1.1.1.1")
	f.Add("::ffff:1.2.3.0/120")
	f.Fuzz(func(t *testing.T, entry string) {
		p, err := nacre.NetworkPolicy{DenyOut: []string{entry}}.Egress()
		if err != nil {
			return
		}
		a := p.Deny[0]
		if !a.IsValid() || a != a.Masked() || a.Addr().Is4In6() || a.Addr().Zone() != "" {
			t.Fatalf("%q gave %v", entry, a)
		}
		if again, err := netip.ParsePrefix(a.String()); err != nil || again != a {
			t.Fatalf("%q gave %v, which reads as %v", entry, a, again)
		}
	})
}
