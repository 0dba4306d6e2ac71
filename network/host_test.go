package network_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestForwardingIsTold: only the uplink is made to forward, and the operator is told.
func TestForwardingIsTold(t *testing.T) {
	n := start(t, nil)
	for key, want := range map[string]string{"all": "0", "default": "0", fakenet.Uplink: "1"} {
		b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + key + "/forwarding")
		if err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("net.ipv4.conf.%s.forwarding = %q, %v; want %s", key, b, err, want)
		}
	}
	if !told(n, "forwarding", fakenet.Uplink, false) {
		t.Errorf("findings: %+v", n.Findings())
	}
}

// TestNoUplink: a host without a way out says so, and works when it gets one.
func TestNoUplink(t *testing.T) {
	_ = prepare(t)
	eth, err := netlink.LinkByName(fakenet.Uplink)
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: netip.MustParseAddr(fakenet.Neighbour).AsSlice()}
	if err := netlink.RouteDel(route); err != nil {
		t.Fatal(err)
	}
	n := reopen(t, nil)
	if err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	g := acquire(t, n, nacre.EgressPolicy{})
	if err := g.tcp(fakenet.Example); err == nil {
		t.Error("there is a way out that should not be")
	}
	if !told(n, "uplink", "default route", true) {
		t.Errorf("findings: %+v", n.Findings())
	}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	await(t, "the new uplink to work", func() bool { return g.tcp(fakenet.Example) == nil })
	await(t, "the finding to go", func() bool { return !told(n, "uplink", "", true) })
}

// TestPoolOfABusyHost: where every usual pool is taken another is found, and where
// there is none that is said with the setting that helps.
func TestPoolOfABusyHost(t *testing.T) {
	_ = prepare(t)
	taken := func(nets ...string) {
		t.Helper()
		for _, s := range nets {
			route := &netlink.Route{Dst: ipNet(t, s), Type: unix.RTN_UNREACHABLE}
			if err := netlink.RouteAdd(route); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = netlink.RouteDel(route) })
		}
	}
	taken("10.231.0.0/16", "10.229.0.0/16", "172.29.0.0/16", "10.163.0.0/16", "172.22.0.0/16", "192.168.192.0/18", "10.255.255.0/24")
	n := reopen(t, nil)
	if err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	g := acquire(t, n, nacre.EgressPolicy{})
	if got := g.Guest.Masked(); got != netip.MustParsePrefix("10.254.0.0/16") {
		t.Errorf("the pool is %s", got)
	}
	if err := g.tcp(fakenet.Example); err != nil {
		t.Errorf("no way out: %v", err)
	}
	if err := n.Release(t.Context(), g.id); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.Close(t.Context()), network.Destroy(instance)); err != nil {
		t.Fatal(err)
	}
	taken("10.0.0.0/8")
	_, err := network.New(network.Config{Instance: instance})
	if !nacre.IsCode(err, nacre.CodeInvalid) || !strings.Contains(err.Error(), "--network-pool") {
		t.Errorf("without a free network: %v", err)
	}
}

// TestDockerFirewall: a table that drops by default is named, with the command
// that helps: it does.
func TestDockerFirewall(t *testing.T) {
	_ = prepare(t)
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	filter := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	t.Cleanup(func() {
		c.DelTable(filter)
		_ = c.Flush()
	})
	drop := nftables.ChainPolicyDrop
	user := c.AddChain(&nftables.Chain{Table: filter, Name: "DOCKER-USER"})
	forward := c.AddChain(&nftables.Chain{Table: filter, Name: "FORWARD", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	c.AddRule(&nftables.Rule{Table: filter, Chain: forward, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: user.Name}}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	n := reopen(t, nil)
	if err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	g := acquire(t, n, nacre.EgressPolicy{})
	if g.tcp(fakenet.Example) == nil {
		t.Error("Docker's policy does not drop: the test proves nothing")
	}
	in, out := "iptables -I DOCKER-USER -i nv"+instance+"-+ -j ACCEPT", "iptables -I DOCKER-USER -o nv"+instance+"-+ -j ACCEPT"
	if !told(n, "firewall", in+" && "+out, true) {
		t.Errorf("findings: %+v", n.Findings())
	}
	// What those commands add.
	links := []byte("nv" + instance + "-")
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		c.InsertRule(&nftables.Rule{Table: filter, Chain: user, Exprs: []expr.Any{
			&expr.Meta{Key: key, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: links},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}})
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := g.tcp(fakenet.Example); err != nil {
		t.Errorf("the advice does not help: %v", err)
	}
	if err := g.tcp(fakenet.Metadata); err == nil {
		t.Error("the advice opens what is closed")
	}
}

// TestRulesFlushed: a restart of the host's firewall flushes all rules. Ours come
// back by themselves, with every policy.
func TestRulesFlushed(t *testing.T) {
	n := start(t, nil)
	open, list, none := acquire(t, n, nacre.EgressPolicy{}), acquire(t, n, nacre.EgressPolicy{DenyAll: true, Allow: prefixes("1.1.1.1/32")}), acquire(t, n, nacre.EgressPolicy{DenyAll: true})
	for range 5 {
		c, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		c.FlushRuleset()
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		// Whatever comes first: a change of a policy, or the repair.
		if err := n.SetEgress(t.Context(), none.id, nacre.EgressPolicy{DenyAll: true}); err != nil {
			t.Fatalf("SetEgress without a table: %v", err)
		}
		await(t, "the rules to come back", func() bool { return len(tables(t)) > 0 })
		for what, wrong := range map[string]bool{
			"the open guest has no internet":           open.tcp(fakenet.Example) != nil,
			"metadata is open":                         open.tcp(fakenet.Metadata) == nil,
			"the allow-list is closed":                 list.tcp(fakenet.CloudFlare) != nil,
			"the allow-list is no longer one":          list.tcp(fakenet.Example) == nil,
			"the guest without egress has some":        none.tcp(fakenet.Example) == nil,
			"the host is open to the guest without it": none.tcp(fakenet.HostAddr) == nil,
		} {
			if wrong {
				t.Error(what)
			}
		}
	}
	// Without any help.
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	await(t, "the rules to come back", func() bool { return len(tables(t)) > 0 })
	await(t, "the operator to be told", func() bool { return told(n, "firewall", "removed", false) })
}

func told(n *network.Network, subject, text string, problem bool) bool {
	for _, f := range n.Findings() {
		if f.Subject == subject && f.Problem == problem && strings.Contains(f.Message, text) {
			return true
		}
	}
	return false
}

func ipNet(t *testing.T, s string) *net.IPNet {
	t.Helper()
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
