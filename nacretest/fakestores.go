package nacretest

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/nacrehq/nacre"
)

type fakeNetwork struct{ d *FakeDaemon }

func (n fakeNetwork) Acquire(_ context.Context, id nacre.MachineID, p nacre.EgressPolicy) (nacre.Slot, error) {
	if err := n.d.op("network.acquire", id); err != nil {
		return nacre.Slot{}, err
	}
	h := n.d.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.slots[id]; ok {
		return nacre.Slot{}, nacre.Errorf(nacre.CodeConflict, "machine %s has a slot", id)
	}
	h.slotNo++
	no := h.slotNo % (1 << 14)
	guest := netip.AddrFrom4([4]byte{10, 200 + byte(no>>12), byte(no >> 4), byte(no<<4) + 2})
	s := nacre.Slot{
		Name: "fake-" + string(id), Path: "/run/netns/fake-" + string(id), HostLink: fmt.Sprintf("fk%d", h.slotNo),
		Guest: netip.PrefixFrom(guest, 30), Gateway: guest.Prev(), MAC: "02:00:00:00:00:01", MTU: 1500,
	}
	h.slots[id] = nacre.RecoveredSlot{Slot: s, Policy: p}
	if err := n.d.Step(); err != nil {
		return nacre.Slot{}, err
	}
	return s, nil
}

func (n fakeNetwork) SetEgress(_ context.Context, id nacre.MachineID, p nacre.EgressPolicy) error {
	if err := n.d.op("network.egress", id); err != nil {
		return err
	}
	h := n.d.host
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.slots[id]
	if !ok {
		return nacre.Errorf(nacre.CodeNotFound, "machine %s has no slot", id)
	}
	s.Policy = p
	h.slots[id] = s
	return n.d.Step()
}

func (n fakeNetwork) Release(_ context.Context, id nacre.MachineID) error {
	if err := n.d.op("network.release", id); err != nil {
		return err
	}
	h := n.d.host
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.slots, id)
	return n.d.Step()
}

func (n fakeNetwork) Recover(_ context.Context, machines map[nacre.MachineID]nacre.RecoveredSlot) error {
	if err := n.d.op("network.recover", ""); err != nil {
		return err
	}
	h := n.d.host
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slots = map[nacre.MachineID]nacre.RecoveredSlot{}
	for id, s := range machines {
		h.slots[id] = s
	}
	return nil
}

type fakeImages struct{ d *FakeDaemon }

func (s fakeImages) Import(_ context.Context, b nacre.BuildID, _ string) error {
	if err := s.d.op("images.import", ""); err != nil {
		return err
	}
	s.d.host.mu.Lock()
	defer s.d.host.mu.Unlock()
	s.d.host.builds[b] = true
	return nil
}

func (s fakeImages) Prepare(_ context.Context, b nacre.BuildID, id nacre.MachineID, diskMiB int) (nacre.RootFS, error) {
	if err := s.d.op("images.prepare", id); err != nil {
		return nacre.RootFS{}, err
	}
	h := s.d.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.builds[b] {
		return nacre.RootFS{}, nacre.Errorf(nacre.CodeNotFound, "build %s is not on this host", b)
	}
	h.roots[id] = b
	if err := s.d.Step(); err != nil {
		return nacre.RootFS{}, err
	}
	return nacre.RootFS{Image: "/fake/" + string(b) + ".erofs", UpperDir: "/fake/upper/" + string(id), UpperMiB: diskMiB}, nil
}

func (s fakeImages) Release(_ context.Context, id nacre.MachineID) error {
	if err := s.d.op("images.release", id); err != nil {
		return err
	}
	s.d.host.mu.Lock()
	defer s.d.host.mu.Unlock()
	delete(s.d.host.roots, id)
	return s.d.Step()
}

func (s fakeImages) Sweep(_ context.Context, keep func(nacre.MachineID) bool) error {
	if err := s.d.op("images.sweep", ""); err != nil {
		return err
	}
	for _, id := range s.d.host.ids(func(h *FakeHost) []nacre.MachineID { return keys(h.roots) }) {
		if !keep(id) {
			s.d.host.mu.Lock()
			delete(s.d.host.roots, id)
			s.d.host.mu.Unlock()
		}
	}
	return nil
}
