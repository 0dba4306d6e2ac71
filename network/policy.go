package network

import (
	"maps"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/nacrehq/nacre"
)

// policy is an EgressPolicy made ready for the table.
type policy struct {
	allow, deny []span
	denyAll     bool
}

// maxRanges bounds one list of a policy, after merging: the list must fit into
// one netlink attribute.
const maxRanges = 512

func compile(p nacre.EgressPolicy) (policy, error) {
	out := policy{allow: spans(p.Allow), deny: spans(p.Deny), denyAll: p.DenyAll}
	if everything(out.deny) {
		out.denyAll = true
	}
	if out.denyAll {
		out.deny = nil
	}
	if everything(out.allow) {
		return policy{}, nil
	}
	if len(out.allow) > maxRanges {
		return policy{}, nacre.Invalidf("allowOut", "%d separate networks are too many; at most %d", len(out.allow), maxRanges)
	}
	if len(out.deny) > maxRanges {
		return policy{}, nacre.Invalidf("denyOut", "%d separate networks are too many; at most %d", len(out.deny), maxRanges)
	}
	if !out.denyAll && len(out.deny) == 0 {
		out.allow = nil // nothing is denied that it could open
	}
	return out, nil
}

// closed means that no packet leaves; then names are not resolved either, for
// questions are a way out.
func (p policy) closed() bool { return p.denyAll && len(p.allow) == 0 }

// open means that the closed networks are all there is to hold back.
func (p policy) open() bool { return !p.denyAll && len(p.deny) == 0 }

// simple means that the map's element says it all.
func (p policy) simple() bool { return p.open() || p.closed() }

func slotChain(i int) string { return "slot_" + strconv.Itoa(i) }

func (r *rules) element(i int, p policy) nftables.SetElement {
	e := nftables.SetElement{Key: padded(r.names.link(i))}
	switch {
	case p.open():
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictAccept}
	case p.closed():
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: refuse}
	default:
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: slotChain(i)}
	}
	return e
}

// set puts a slot's policy in force, in place of the one that it may have. A
// transaction is seen by packets whole or not at all.
func (r *rules) set(i int, p policy) error {
	return r.change(i, func(c *nftables.Conn) error {
		if err := r.addChain(c, i, p); err != nil {
			return err
		}
		return c.SetAddElements(r.policySet(), []nftables.SetElement{r.element(i, p)})
	}, func(next map[int]policy) { next[i] = p })
}

// clear cuts the slot off; one that has no policy is cut off already.
func (r *rules) clear(i int) error {
	return r.change(i, func(*nftables.Conn) error { return nil }, func(next map[int]policy) { delete(next, i) })
}

// change takes the slot's old policy away and does add, in one transaction. When
// the table is gone it puts all of it back, with what record makes of the policies.
func (r *rules) change(i int, add func(*nftables.Conn) error, record func(map[int]policy)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.transaction(func(c *nftables.Conn) error {
		if old, ok := r.policies[i]; ok {
			if err := r.dropPolicy(c, i, old); err != nil {
				return err
			}
		}
		return add(c)
	})
	if err == nil {
		record(r.policies)
		return nil
	}
	if exists, listErr := r.exist(); listErr != nil || exists {
		return err
	}
	next := maps.Clone(r.policies)
	record(next)
	return r.replace(next)
}

func (r *rules) dropPolicy(c *nftables.Conn, i int, old policy) error {
	if err := c.SetDeleteElements(r.policySet(), []nftables.SetElement{r.element(i, old)}); err != nil {
		return err
	}
	if !old.simple() {
		c.DelChain(r.chain(slotChain(i)))
	}
	return nil
}

// addChain adds the chain of a policy with lists. Packets of both directions come
// through it: the far end's address is judged.
func (r *rules) addChain(c *nftables.Conn, i int, p policy) error {
	if p.simple() {
		return nil
	}
	name := slotChain(i)
	c.AddChain(r.chain(name))
	if err := r.matchList(c, name, p.allow, accepted()); err != nil {
		return err
	}
	if p.denyAll {
		r.rule(c, name, goTo(refuse))
		return nil
	}
	if err := r.matchList(c, name, p.deny, goTo(refuse)); err != nil {
		return err
	}
	r.rule(c, name, accepted())
	return nil
}

// matchList adds the rules for one list, a set for each: an anonymous set goes
// with its rule and cannot be in two.
func (r *rules) matchList(c *nftables.Conn, chain string, list []span, then []expr.Any) error {
	if len(list) == 0 {
		return nil
	}
	for _, far := range [][]expr.Any{
		append(r.slotLink(expr.MetaKeyIIFNAME), daddr()...),
		append(r.slotLink(expr.MetaKeyOIFNAME), saddr()...),
	} {
		set := &nftables.Set{Table: r.table(), Anonymous: true, Constant: true, Interval: true, KeyType: nftables.TypeIPAddr}
		if err := c.AddSet(set, elements(list)); err != nil {
			return err
		}
		r.rule(c, chain, far, one(&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}), then)
	}
	return nil
}
