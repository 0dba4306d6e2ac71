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
	n.note("forward", dropFinding(chains, forwarded, n.names.linkPrefix()))
	n.note("input", dropFinding(chains, incoming, n.names.linkPrefix()))
	n.note("legacy", legacyFinding())
}

// way is a hook that guests' packets pass, and what lets them through where iptables
// or ufw names the chains; %c is the chain, %l the slots' links.
type way struct {
	hook          nftables.ChainHook
	effect        string
	iptables, ufw string
	ufwChain      string // that ufw has where it guards this hook
}

var (
	forwarded = way{*nftables.ChainHookForward, "guests may have no way out",
		"iptables -I %c -i %l+ -j ACCEPT && iptables -I %c -o %l+ -j ACCEPT",
		"ufw route allow in on %l+ && ufw route allow out on %l+", "ufw-user-forward"}
	incoming = way{*nftables.ChainHookInput, "guests may have no DNS",
		"iptables -I %c -i %l+ -j ACCEPT", "ufw allow in on %l+", "ufw-user-input"}
)

// dropFinding reports the first chain on the way whose policy is to drop.
func dropFinding(chains []*nftables.Chain, w way, links string) Finding {
	for _, ch := range chains {
		if ch.Hooknum == nil || *ch.Hooknum != w.hook || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop {
			continue
		}
		if f := ch.Table.Family; f != nftables.TableFamilyIPv4 && f != nftables.TableFamilyINet {
			continue
		}
		command, target := w.iptables, ch.Name
		switch {
		case ch.Name == "FORWARD" && hasChain(chains, "DOCKER-USER"):
			target = "DOCKER-USER" // Docker puts its own rules before what others insert
		case hasChain(chains, w.ufwChain):
			command = w.ufw // which outlasts its next reload, as iptables's would not
		}
		fix := "accept the slots' links there (nacre's own rules still apply)"
		if ch.Table.Name == "filter" && strings.ToUpper(ch.Name) == ch.Name { // as iptables names them
			fix = "run: " + strings.NewReplacer("%c", target, "%l", links).Replace(command)
		}
		return Finding{"firewall", true, fmt.Sprintf("the firewall table %q, chain %q, drops what it does not know, so %s; %s", ch.Table.Name, ch.Name, w.effect, fix)}
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
