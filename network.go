package nacre

import (
	"context"
	"net/netip"
)

// Slot is one machine's place on the network: a namespace of its own with one
// interface "eth0" and a route out. The addresses are configured in the
// namespace when the slot is handed out.
type Slot struct {
	Name     string       // of the namespace under /run/netns
	Path     string       // of the namespace
	HostLink string       // the host's end of the pair
	Guest    netip.Prefix // the guest's address with its prefix length
	Gateway  netip.Addr   // the host's end; also the guest's DNS server
	MAC      string
	MTU      int
}

// Network makes slots. All methods may run at once.
//
// What every slot is held to, whatever its policy: its own source address only;
// no way to the host (but DNS at the gateway), to other slots, to private,
// link-local, multicast and metadata addresses; no IPv6.
type Network interface {
	// Acquire hands out a slot for the machine, from the pool when one is ready,
	// with the policy in force before it returns. A second Acquire for one machine
	// is CodeConflict; no free address is CodeExhausted.
	Acquire(ctx context.Context, id MachineID, p EgressPolicy) (Slot, error)

	// SetEgress replaces the machine's policy in one step: there is no moment
	// without one. Established connections that the new policy forbids are cut.
	SetEgress(ctx context.Context, id MachineID, p EgressPolicy) error

	// Release takes the slot away and leaves nothing of it. A repeat is no error.
	Release(ctx context.Context, id MachineID) error

	// Recover takes back the slots of machines that an earlier process started,
	// with the policies given, and reclaims every other one of this installation
	// in the background. It is called once, before the first Acquire; until then
	// what the earlier process left is in force.
	Recover(ctx context.Context, machines map[MachineID]RecoveredSlot) error
}

// RecoveredSlot is what the node kept on disk about a slot.
type RecoveredSlot struct {
	Slot   Slot
	Policy EgressPolicy
}

// EgressPolicy is NetworkPolicy's outbound half, parsed. Allow wins over Deny;
// what neither names is allowed, unless DenyAll.
type EgressPolicy struct {
	DenyAll bool
	Allow   []netip.Prefix
	Deny    []netip.Prefix
}
