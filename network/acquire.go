package network

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/nacrehq/nacre"
)

// holding is a machine's slot. Its lock makes one machine's calls follow each
// other; different machines do not wait for each other here.
type holding struct {
	mu     sync.Mutex
	slot   slot
	policy policy
	gone   bool // released, or never came to be
}

// Acquire implements nacre.Network.
func (n *Network) Acquire(ctx context.Context, id nacre.MachineID, p nacre.EgressPolicy) (nacre.Slot, error) {
	compiled, err := compile(p)
	if err != nil {
		return nacre.Slot{}, err
	}
	h := &holding{policy: compiled}
	h.mu.Lock()
	defer h.mu.Unlock()
	n.mu.Lock()
	switch {
	case !n.recovered:
		err = nacre.Errorf(nacre.CodeUnavailable, "the network has not taken back the slots of the last run yet")
	case n.ctx.Err() != nil:
		err = nacre.Errorf(nacre.CodeUnavailable, "the network is shutting down")
	case n.held[id] != nil:
		err = nacre.Errorf(nacre.CodeConflict, "machine %s has a network slot already", id)
	default:
		n.held[id] = h
	}
	n.mu.Unlock()
	if err != nil {
		return nacre.Slot{}, err
	}
	if err := n.acquire(ctx, h); err != nil {
		h.gone = true
		n.mu.Lock()
		delete(n.held, id)
		n.mu.Unlock()
		return nacre.Slot{}, err
	}
	return h.slot.Slot, nil
}

func (n *Network) acquire(ctx context.Context, h *holding) error {
	s, ok := n.takeReady()
	if !ok {
		var err error
		if s, err = n.makeNext(ctx); err != nil {
			return err
		}
	}
	n.dns.admit(s.Guest.Addr(), !h.policy.closed())
	if err := n.rules.set(s.index, h.policy); err != nil {
		return nacre.Wrap(nacre.CodeInternal, errors.Join(err, n.discard(s)), "the sandbox's network rules could not be set")
	}
	h.slot = s
	return nil
}

// SetEgress implements nacre.Network.
func (n *Network) SetEgress(ctx context.Context, id nacre.MachineID, p nacre.EgressPolicy) error {
	compiled, err := compile(p)
	if err != nil {
		return err
	}
	h, err := n.lock(id)
	if err != nil {
		return err
	}
	defer h.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nacre.Wrap(nacre.CodeDeadline, err, "there was no time to change the network policy")
	}
	if err := n.rules.set(h.slot.index, compiled); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the sandbox's network rules could not be changed; the old ones are in force")
	}
	h.policy = compiled
	n.dns.admit(h.slot.Guest.Addr(), !compiled.closed())
	return nil
}

// Release implements nacre.Network. It goes on to the end when ctx ends: half a
// slot is of no use to anyone.
func (n *Network) Release(_ context.Context, id nacre.MachineID) error {
	h, err := n.lock(id)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.mu.Unlock()
	if err := n.rules.clear(h.slot.index); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the sandbox's network rules could not be removed")
	}
	n.dns.forget(h.slot.Guest.Addr())
	if err := n.discard(h.slot); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the sandbox's network slot could not be removed")
	}
	h.gone = true
	n.mu.Lock()
	delete(n.held, id)
	n.mu.Unlock()
	return nil
}

// lock returns the machine's holding, locked.
func (n *Network) lock(id nacre.MachineID) (*holding, error) {
	n.mu.Lock()
	h := n.held[id]
	n.mu.Unlock()
	if h != nil {
		h.mu.Lock()
		if !h.gone {
			return h, nil
		}
		h.mu.Unlock()
	}
	return nil, nacre.Errorf(nacre.CodeNotFound, "machine %s has no network slot", id)
}

// discard destroys slots and makes their addresses free. When it fails the
// addresses stay taken and the slots are found by name at the next start.
func (n *Network) discard(slots ...slot) error {
	if err := n.destroySlots(slots...); err != nil {
		return err
	}
	for _, s := range slots {
		if err := flushConntrack(s.Guest.Addr()); err != nil {
			return err
		}
		n.mu.Lock()
		n.index.free(s.index)
		n.mu.Unlock()
	}
	return nil
}

// makeNext makes a slot at a free address.
func (n *Network) makeNext(ctx context.Context) (slot, error) {
	if err := ctx.Err(); err != nil {
		return slot{}, nacre.Wrap(nacre.CodeDeadline, err, "there was no time to make a network slot")
	}
	n.mu.Lock()
	i, ok := n.index.pick()
	n.mu.Unlock()
	if !ok {
		return slot{}, nacre.Errorf(nacre.CodeExhausted, "all addresses of the network pool %s are in use", n.host.pool)
	}
	s, err := n.makeSlot(ctx, i)
	if err != nil {
		n.mu.Lock()
		n.index.free(i)
		n.mu.Unlock()
		if ctx.Err() != nil {
			return slot{}, nacre.Wrap(nacre.CodeDeadline, err, "there was no time to make a network slot")
		}
		return slot{}, nacre.Wrap(nacre.CodeInternal, err, "a network slot could not be made")
	}
	return s, nil
}

func (n *Network) takeReady() (slot, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.ready) == 0 {
		return slot{}, false
	}
	s := n.ready[0]
	n.ready = n.ready[1:]
	select {
	case n.refill <- struct{}{}:
	default:
	}
	return s, true
}

// keepReady makes slots ahead, one at a time: the kernel has one lock for all
// link changes, and a create that needs one now must not queue behind many.
func (n *Network) keepReady() {
	for {
		for n.wantsMore() {
			s, err := n.makeNext(n.ctx)
			if err != nil {
				if n.ctx.Err() == nil {
					n.log.Error("network: no slot could be made ahead", "error", err)
				}
				break // until the next one is taken
			}
			n.mu.Lock()
			n.ready = append(n.ready, s)
			n.mu.Unlock()
		}
		select {
		case <-n.ctx.Done():
			return
		case <-n.refill:
		}
	}
}

func (n *Network) wantsMore() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ctx.Err() == nil && len(n.ready) < n.cfg.Ready
}

// Ready tells how many slots are made ahead now.
func (n *Network) Ready() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.ready)
}

// Recover implements nacre.Network. A machine whose namespace or link is gone
// (the host was started again) is left out; it is not an error here, for the
// runtime will not find the machine either.
func (n *Network) Recover(ctx context.Context, machines map[nacre.MachineID]nacre.RecoveredSlot) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.recovered {
		return nacre.Errorf(nacre.CodeConflict, "the network has recovered already")
	}
	left, err := n.leftovers()
	if err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the network slots of the last run could not be listed")
	}
	orphans := make(map[int]bool, len(left))
	for _, i := range left {
		orphans[i] = true
	}
	policies := make(map[int]policy, len(machines))
	held := make(map[nacre.MachineID]*holding, len(machines))
	for id, m := range machines {
		i, ok := n.names.index(m.Slot.Name)
		if !ok || !orphans[i] {
			n.log.Warn("network: the machine's slot is gone", "machine", id, "slot", m.Slot.Name)
			continue
		}
		p, err := compile(m.Policy)
		if err != nil { // was accepted once; closed is the safe reading
			n.log.Error("network: the machine's policy is not usable, it gets no egress", "machine", id, "error", err)
			p = policy{denyAll: true}
		}
		delete(orphans, i)
		policies[i] = p
		held[id] = &holding{slot: slot{index: i, Slot: m.Slot}, policy: p}
	}
	if err := n.rules.install(policies); err != nil {
		return nacre.Wrap(nacre.CodeInternal, err, "the network rules could not be set")
	}
	for _, h := range held {
		n.dns.admit(h.slot.Guest.Addr(), !h.policy.closed())
	}
	n.held, n.recovered = held, true
	if n.cfg.Ready > 0 {
		n.done.Go(n.keepReady)
	}
	if len(orphans) > 0 {
		n.done.Go(func() { n.reclaim(orphans) })
	}
	return nil
}

// reclaim takes away what earlier runs left, while machines are already being
// made. Their addresses are taken until they are gone, so nothing collides.
func (n *Network) reclaim(orphans map[int]bool) {
	n.log.Info("network: reclaiming slots of an earlier run", "count", len(orphans))
	// The kernel clears dying namespaces in batches, far cheaper than links one
	// by one, so let go of all the namespaces first.
	for i := range orphans {
		if n.ctx.Err() != nil {
			return
		}
		if err := removeNetns(n.names.path(i)); err != nil {
			n.log.Error("network: reclaim", "error", err)
		}
	}
	failed := 0
	for batch := range slices.Chunk(slices.Collect(maps.Keys(orphans)), maxLinkBatch) {
		if n.ctx.Err() != nil {
			return
		}
		slots := make([]slot, len(batch))
		for k, i := range batch {
			slots[k] = n.slotAt(i)
		}
		if err := n.discard(slots...); err != nil {
			failed += len(slots)
			n.log.Error("network: reclaim", "error", err)
		}
	}
	n.log.Info("network: reclaimed", "count", len(orphans)-failed, "failed", failed)
}
