package network_test

import (
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/nacretest/fakenet"
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
	if err := g.udp(fakenet.CloudFlare); err != nil {
		t.Errorf("UDP: %v", err)
	}
}
