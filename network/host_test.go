package network_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
	if err := g.reaches(fakenet.Example); err != nil {
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

// TestPoolBesideTheHostsServers: a DNS server of the host stays reachable, though it
// is behind a router whose route covers everything.
func TestPoolBesideTheHostsServers(t *testing.T) {
	_ = prepare(t)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 10.231.255.53\nnameserver 2001:db8::53\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := reopen(t, func(c *network.Config) { c.ResolvConf = conf })
	if err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	g := acquire(t, n, nacre.EgressPolicy{})
	if got := g.Guest.Masked(); got != netip.MustParsePrefix("10.229.0.0/16") {
		t.Errorf("the pool is %s", got)
	}
	if err := errors.Join(n.Close(t.Context()), network.Destroy(instance)); err != nil {
		t.Fatal(err)
	}
	_, err := network.New(network.Config{Instance: instance, ResolvConf: conf, Pool: netip.MustParsePrefix("10.231.0.0/16")})
	if !nacre.IsCode(err, nacre.CodeInvalid) || !strings.Contains(err.Error(), "DNS server 10.231.255.53") {
		t.Errorf("with a pool that the DNS server is in: %v", err)
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
	adviceHelps(t, g)
}

// adviceHelps: with what it says in force the guest reaches the internet, and no more.
func adviceHelps(t *testing.T, g guest) {
	t.Helper()
	if err := g.reaches(fakenet.Example); err != nil {
		t.Errorf("the advice does not help: %v", err)
	}
	if err := g.tcp(fakenet.Metadata); err == nil {
		t.Error("the advice opens what is closed")
	}
}

// TestUfw: where ufw drops by default the advice is in its own words, for what
// iptables inserts is gone with its next reload. What they add helps.
func TestUfw(t *testing.T) {
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
	users := map[string]*nftables.Chain{}
	for name, hook := range map[string]*nftables.ChainHook{"input": nftables.ChainHookInput, "forward": nftables.ChainHookForward} {
		before := c.AddChain(&nftables.Chain{Table: filter, Name: "ufw-before-" + name})
		users[name] = c.AddChain(&nftables.Chain{Table: filter, Name: "ufw-user-" + name})
		hooked := c.AddChain(&nftables.Chain{Table: filter, Name: strings.ToUpper(name), Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &drop})
		c.AddRule(&nftables.Rule{Table: filter, Chain: hooked, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: before.Name}}})
		c.AddRule(&nftables.Rule{Table: filter, Chain: before, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: users[name].Name}}})
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	inspected, err := network.Inspect(network.Config{})
	if err != nil || !strings.Contains(fmt.Sprint(inspected), "ufw route allow in on nv+ && ufw route allow out on nv+") {
		t.Errorf("before the first start: %+v %v", inspected, err)
	}
	n := reopen(t, nil)
	if err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	g := acquire(t, n, nacre.EgressPolicy{})
	if g.tcp(fakenet.Example) == nil {
		t.Error("ufw's policy does not drop: the test proves nothing")
	}
	links := "nv" + instance + "-"
	for _, advice := range []string{"ufw route allow in on " + links + "+ && ufw route allow out on " + links + "+", "run: ufw allow in on " + links + "+"} {
		if !told(n, "firewall", advice, true) {
			t.Errorf("%q is not among %+v", advice, n.Findings())
		}
	}
	accept := func(chain *nftables.Chain, key expr.MetaKey) { // what those commands add
		c.AddRule(&nftables.Rule{Table: filter, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: key, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(links)},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}})
	}
	accept(users["forward"], expr.MetaKeyIIFNAME)
	accept(users["forward"], expr.MetaKeyOIFNAME)
	accept(users["input"], expr.MetaKeyIIFNAME)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	adviceHelps(t, g)
}

// TestInspect: what would keep a server from starting, or would surprise it, is known
// without one, and looking changes nothing.
func TestInspect(t *testing.T) {
	_ = prepare(t)
	before := hostState(t)
	addHostAddress(t, "10.230.7.1/24")
	pool := func(cidr, id string) string {
		t.Helper()
		var p netip.Prefix
		if cidr != "" {
			p = netip.MustParsePrefix(cidr)
		}
		list, err := network.Inspect(network.Config{Instance: id, Pool: p})
		if err != nil {
			return nacre.ErrorMessage(err)
		}
		for _, f := range list {
			if f.Subject == "pool" {
				return fmt.Sprint(f.Problem, " ", f.Message)
			}
		}
		return ""
	}
	for _, c := range []struct{ pool, instance, want string }{
		{"10.230.0.0/16", "", "network pool 10.230.0.0/16 overlaps the address 10.230.7.0/24"},
		{"10.230.0.0/16", instance, "network pool 10.230.0.0/16 overlaps"},
		{"172.30.0.0/16", instance, "false sandboxes would have addresses of 172.30.0.0/16"},
		{"", instance, "false sandboxes would have addresses of 10.231.0.0/16"},
		{"10.0.0.0/8", instance, "must be an IPv4 network of /12 to /28"},
	} {
		if got := pool(c.pool, c.instance); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.pool, got, c.want)
		}
	}
	n := reopen(t, func(c *network.Config) { c.Pool = netip.MustParsePrefix("172.30.0.0/16") })
	if err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	g := acquire(t, n, nacre.EgressPolicy{})
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := pool("172.30.0.0/16", instance); !strings.HasPrefix(got, "false") {
		t.Errorf("its own pool, in use: %q", got)
	}
	if got := pool("172.29.0.0/16", instance); !strings.Contains(got, "slots of an earlier run are in 172.30.0.0/16") {
		t.Errorf("another while one is in use: %q", got)
	}
	if got := pool("172.30.0.0/16", "other"); !strings.Contains(got, "overlaps") {
		t.Errorf("another installation's: %q", got)
	}
	n = reopen(t, nil)
	if err := errors.Join(n.Recover(t.Context(), nil), n.Release(t.Context(), g.id), n.Close(t.Context()), network.Destroy(instance)); err != nil {
		t.Fatal(err)
	}
	if _, err := network.Inspect(network.Config{Instance: instance}); err != nil {
		t.Fatal(err)
	}
	if after := hostState(t); strings.Contains(after, "172.30") || len(after) < len(before)/2 {
		t.Errorf("left behind:\n%s", after)
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
			"the open guest has no internet":           open.reaches(fakenet.Example) != nil,
			"metadata is open":                         open.tcp(fakenet.Metadata) == nil,
			"the allow-list is closed":                 list.reaches(fakenet.CloudFlare) != nil,
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

// TestHostThatChangesMeanwhile: addresses of others that come and go while the host is
// looked at neither fail that nor hide what stays.
func TestHostThatChangesMeanwhile(t *testing.T) {
	fakenet.Start(t)
	link, err := netlink.LinkByName(fakenet.Uplink)
	if err != nil {
		t.Fatal(err)
	}
	at := func(s string) *netlink.Addr { return &netlink.Addr{IPNet: ipNet(t, s)} }
	for i := range 100 { // so that the kernel needs a while to list them
		if err := netlink.AddrAdd(link, at(fmt.Sprintf("198.18.%d.1/32", i))); err != nil {
			t.Fatal(err)
		}
	}
	var changes sync.WaitGroup
	over := make(chan struct{})
	changes.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				_ = netlink.AddrAdd(link, at("198.19.0.1/32"))
				_ = netlink.AddrDel(link, at("198.19.0.1/32"))
			}
		}
	})
	defer changes.Wait()
	defer close(over)
	for range 300 {
		if _, err := network.Inspect(network.Config{Pool: netip.MustParsePrefix("198.18.0.0/20")}); err == nil || !strings.Contains(err.Error(), "overlaps the address") {
			t.Fatalf("a pool that the host is in: %v", err)
		}
	}
}
