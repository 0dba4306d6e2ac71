package network

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// watchRules puts our table back as soon as somebody removes it: without it
// guests would reach the host and its neighbours. Every change of any table is an
// event; only the disappearance of one is looked into.
func (n *Network) watchRules() {
	const nftablesGroup = 7 // NFNLGRP_NFTABLES
	for n.ctx.Err() == nil {
		c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err == nil {
			err = c.JoinGroup(nftablesGroup)
		}
		if err != nil {
			n.log.Error("network: removal of the rules would not be noticed", "error", err)
			return
		}
		stop := context.AfterFunc(n.ctx, func() { _ = c.Close() })
		// What happened while nobody listened, or was too much to be told.
		for n.repairRules(); err == nil; {
			var msgs []netlink.Message
			if msgs, err = c.Receive(); slices.ContainsFunc(msgs, tableGone) {
				n.repairRules()
			}
		}
		stop()
		_ = c.Close()
	}
}

func tableGone(m netlink.Message) bool {
	return m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE
}

func (n *Network) repairRules() {
	repaired, err := n.rules.repair()
	switch {
	case n.ctx.Err() != nil:
	case err != nil:
		n.log.Error("network: the rules may be gone and could not be put back", "error", err)
	case repaired:
		n.note("flushed", Finding{"firewall", false, "something removed nacre's nftables rules (a restart of the host's firewall flushes all); they were put back"})
	}
}

// checkFirewalls looks for other tables that drop by default, as Docker's does
// for forwarded packets and ufw's for incoming ones. An accept of ours does not
// overrule them: a packet must pass every table.
func (n *Network) checkFirewalls() {
	c, err := nftables.New()
	if err != nil {
		return
	}
	chains, err := c.ListChains()
	if err != nil {
		return
	}
	prefix := n.names.linkPrefix()
	n.note("forward", dropFinding(chains, *nftables.ChainHookForward, "guests may have no way out",
		fmt.Sprintf("iptables -I %%s -i %s+ -j ACCEPT && iptables -I %%s -o %s+ -j ACCEPT", prefix, prefix)))
	n.note("input", dropFinding(chains, *nftables.ChainHookInput, "guests may have no DNS",
		fmt.Sprintf("iptables -I %%s -i %s+ -j ACCEPT", prefix)))
	n.note("legacy", legacyFinding())
}

// dropFinding reports the first chain at the hook whose policy is to drop.
func dropFinding(chains []*nftables.Chain, hook nftables.ChainHook, effect, command string) Finding {
	for _, ch := range chains {
		if ch.Hooknum == nil || *ch.Hooknum != hook || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop {
			continue
		}
		if f := ch.Table.Family; f != nftables.TableFamilyIPv4 && f != nftables.TableFamilyINet {
			continue
		}
		target := ch.Name
		if ch.Name == "FORWARD" && hasChain(chains, "DOCKER-USER") {
			target = "DOCKER-USER" // Docker puts its own rules before what others insert
		}
		fix := "accept the slots' links there (nacre's own rules still apply)"
		if ch.Table.Name == "filter" && strings.ToUpper(ch.Name) == ch.Name { // as iptables names them
			fix = "run: " + strings.ReplaceAll(command, "%s", target)
		}
		return Finding{"firewall", true, fmt.Sprintf("the firewall table %q, chain %q, drops what it does not know, so %s; %s", ch.Table.Name, ch.Name, effect, fix)}
	}
	return Finding{}
}

func hasChain(chains []*nftables.Chain, name string) bool {
	for _, ch := range chains {
		if ch.Name == name {
			return true
		}
	}
	return false
}

// legacyFinding: the old iptables keeps its rules where nftables does not see them.
func legacyFinding() Finding {
	b, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	if err != nil || !strings.Contains(string(b), "filter") {
		return Finding{}
	}
	return Finding{"firewall", false, "the host has iptables-legacy rules, which cannot be checked from here; if guests have no network, look at iptables-legacy -L FORWARD and INPUT"}
}
