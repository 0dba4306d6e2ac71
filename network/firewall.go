package network

import (
	"fmt"

	"github.com/google/nftables"
)

// checkForwardDrop looks for another table that drops forwarded packets by
// default, as Docker's does. An accept of ours does not overrule it.
func (n *Network) checkForwardDrop() {
	const key = "forward drop"
	c, err := nftables.New()
	if err != nil {
		return
	}
	chains, err := c.ListChains()
	if err != nil {
		return
	}
	for _, ch := range chains {
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop {
			continue
		}
		if f := ch.Table.Family; f != nftables.TableFamilyIPv4 && f != nftables.TableFamilyINet {
			continue
		}
		prefix := n.names.linkPrefix()
		where, fix := fmt.Sprintf("table %s chain %s", ch.Table.Name, ch.Name), fmt.Sprintf("accept iifname and oifname %q there", prefix+"*")
		if ch.Table.Name == "filter" && ch.Name == "FORWARD" {
			fix = fmt.Sprintf("run: iptables -I FORWARD -i %s+ -j ACCEPT && iptables -I FORWARD -o %s+ -j ACCEPT (with Docker, in DOCKER-USER instead of FORWARD)", prefix, prefix)
		}
		n.note(key, Finding{"firewall", true, fmt.Sprintf("%s drops forwarded packets unless told otherwise, so guests may have no way out; %s", where, fix)})
		return
	}
	n.note(key, Finding{})
}
