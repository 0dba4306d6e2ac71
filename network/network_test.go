package network_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/network"
)

func tables(t testing.TB) []string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	ts, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, x := range ts {
		out = append(out, "table "+x.Name)
	}
	return out
}

func TestContract(t *testing.T) {
	nacretest.TestNetwork(t, func(t *testing.T) nacre.Network { return open(t, nil) })
}

// TestInternet: a guest without restrictions reaches the internet, and is seen
// there as the host.
func TestInternet(t *testing.T) {
	n := start(t, nil)
	g := acquire(t, n, nacre.EgressPolicy{})
	body, err := g.get(fakenet.Example)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(body, fakenet.HostAddr+":") {
		t.Errorf("the internet saw %q, want the host's address %s", body, fakenet.HostAddr)
	}
	if err := g.reachesUDP(fakenet.CloudFlare); err != nil {
		t.Errorf("UDP: %v", err)
	}
}

// TestNftList: other tools of the host read all rules with nft, which ends
// itself over expressions that it does not write.
func TestNftList(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed")
	}
	n := start(t, func(c *network.Config) { c.DNSPort, c.BytesPerSecond = 5300, 1<<20 })
	g := acquire(t, n, nacre.EgressPolicy{})
	acquire(t, n, nacre.EgressPolicy{DenyAll: true})
	acquire(t, n, nacre.EgressPolicy{Deny: prefixes("8.8.8.8/32", "1.1.1.0/24"), Allow: prefixes("1.1.1.1/32")})
	if err := g.reaches(fakenet.Example); err != nil { // an element in each dynamic set
		t.Error(err)
	}
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v\n%s", err, out)
	}
	for _, want := range []string{`"` + g.HostLink + `" : accept`, "ip daddr { 1.1.1.1 } accept", "ct count over 4096"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the list does not say %q:\n%s", want, out)
		}
	}
}
