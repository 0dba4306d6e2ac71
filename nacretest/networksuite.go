package nacretest

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/nacrehq/nacre"
)

// TestNetwork holds a nacre.Network to its contract. open returns one that has
// no slots, on which Recover has not been called, with room for 40 machines.
func TestNetwork(t *testing.T, open func(t *testing.T) nacre.Network) {
	ctx := context.Background()
	start := func(t *testing.T) nacre.Network {
		n := open(t)
		if err := n.Recover(ctx, nil); err != nil {
			t.Fatalf("Recover: %v", err)
		}
		return n
	}
	acquire := func(t *testing.T, n nacre.Network, p nacre.EgressPolicy) (nacre.MachineID, nacre.Slot) {
		t.Helper()
		id := nacre.NewMachineID()
		s, err := n.Acquire(ctx, id, p)
		if err != nil {
			t.Fatalf("Acquire: %v", err)
		}
		t.Cleanup(func() { _ = n.Release(context.WithoutCancel(ctx), id) })
		return id, s
	}
	allowList := nacre.EgressPolicy{DenyAll: true, Allow: []netip.Prefix{netip.MustParsePrefix("1.1.1.1/32")}}

	t.Run("a slot is complete", func(t *testing.T) {
		n := start(t)
		_, s := acquire(t, n, nacre.EgressPolicy{})
		if s.Name == "" || s.Path == "" || s.HostLink == "" || s.MAC == "" || s.MTU < 576 {
			t.Errorf("slot has empty fields: %+v", s)
		}
		if !s.Guest.IsValid() || !s.Gateway.IsValid() || !s.Guest.Contains(s.Gateway) || s.Guest.Addr() == s.Gateway {
			t.Errorf("guest %s and gateway %s do not fit", s.Guest, s.Gateway)
		}
	})

	t.Run("no two machines share anything", func(t *testing.T) {
		n := start(t)
		var mu sync.Mutex
		seen := map[string]bool{}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				id := nacre.NewMachineID()
				s, err := n.Acquire(ctx, id, nacre.EgressPolicy{})
				if err != nil {
					t.Errorf("Acquire: %v", err)
					return
				}
				t.Cleanup(func() { _ = n.Release(ctx, id) })
				mu.Lock()
				defer mu.Unlock()
				for _, k := range []string{s.Name, s.Path, s.HostLink, s.Guest.Addr().String(), s.MAC} {
					if seen[k] {
						t.Errorf("%s was handed out twice", k)
					}
					seen[k] = true
				}
			})
		}
		wg.Wait()
	})

	t.Run("a second acquire is a conflict", func(t *testing.T) {
		n := start(t)
		id, _ := acquire(t, n, nacre.EgressPolicy{})
		if _, err := n.Acquire(ctx, id, nacre.EgressPolicy{}); !nacre.IsCode(err, nacre.CodeConflict) {
			t.Errorf("got %v, want %s", err, nacre.CodeConflict)
		}
	})

	t.Run("one machine acquired many times at once gets one slot", func(t *testing.T) {
		n := start(t)
		id := nacre.NewMachineID()
		errs := make([]error, 8)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { _, errs[i] = n.Acquire(ctx, id, nacre.EgressPolicy{}) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !nacre.IsCode(err, nacre.CodeConflict) {
				t.Errorf("got %v, want %s", err, nacre.CodeConflict)
			}
		}
		if won != 1 {
			t.Errorf("%d acquires succeeded, want 1", won)
		}
		if err := n.Release(ctx, id); err != nil {
			t.Errorf("Release: %v", err)
		}
	})

	t.Run("release may be repeated, also at once, and then acquired again", func(t *testing.T) {
		n := start(t)
		id, _ := acquire(t, n, allowList)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := n.Release(ctx, id); err != nil {
					t.Errorf("Release: %v", err)
				}
			})
		}
		wg.Wait()
		if err := n.Release(ctx, nacre.NewMachineID()); err != nil {
			t.Errorf("Release of an unknown machine: %v", err)
		}
		if _, err := n.Acquire(ctx, id, nacre.EgressPolicy{}); err != nil {
			t.Errorf("Acquire after Release: %v", err)
		}
		if err := n.Release(ctx, id); err != nil {
			t.Errorf("Release: %v", err)
		}
	})

	t.Run("a machine without a slot has no egress to set", func(t *testing.T) {
		n := start(t)
		if err := n.SetEgress(ctx, nacre.NewMachineID(), allowList); !nacre.IsCode(err, nacre.CodeNotFound) {
			t.Errorf("got %v, want %s", err, nacre.CodeNotFound)
		}
		id, _ := acquire(t, n, nacre.EgressPolicy{})
		if err := n.Release(ctx, id); err != nil {
			t.Fatal(err)
		}
		if err := n.SetEgress(ctx, id, allowList); !nacre.IsCode(err, nacre.CodeNotFound) {
			t.Errorf("after Release: got %v, want %s", err, nacre.CodeNotFound)
		}
	})

	t.Run("every kind of policy follows every other", func(t *testing.T) {
		n := start(t)
		id, _ := acquire(t, n, nacre.EgressPolicy{})
		policies := []nacre.EgressPolicy{
			{}, {DenyAll: true}, allowList,
			{Deny: []netip.Prefix{netip.MustParsePrefix("8.8.8.0/24"), netip.MustParsePrefix("8.8.8.8/32")}},
			{Deny: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
			{Deny: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, Allow: allowList.Allow},
			{Allow: []netip.Prefix{netip.MustParsePrefix("2606:4700::/32")}},
		}
		for i, from := range policies {
			for j, to := range policies {
				for _, p := range []nacre.EgressPolicy{from, to} {
					if err := n.SetEgress(ctx, id, p); err != nil {
						t.Fatalf("policy %d after %d: %v", j, i, err)
					}
				}
			}
		}
	})

	t.Run("release while the policy changes", func(t *testing.T) {
		n := start(t)
		for i := range 10 {
			id, _ := acquire(t, n, allowList)
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := n.SetEgress(ctx, id, nacre.EgressPolicy{DenyAll: i%2 == 0}); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
					t.Errorf("SetEgress: %v", err)
				}
			})
			wg.Go(func() {
				if err := n.Release(ctx, id); err != nil {
					t.Errorf("Release: %v", err)
				}
			})
			wg.Wait()
		}
	})

	t.Run("an ended context changes nothing", func(t *testing.T) {
		n := start(t)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		id := nacre.NewMachineID()
		if _, err := n.Acquire(ended, id, nacre.EgressPolicy{}); err == nil {
			// A slot that was ready may be handed out all the same.
			if err := n.Release(ctx, id); err != nil {
				t.Error(err)
			}
		}
		if _, err := n.Acquire(ctx, id, nacre.EgressPolicy{}); err != nil {
			t.Errorf("Acquire after one that failed: %v", err)
		}
		if err := n.Release(ended, id); err != nil {
			t.Errorf("Release goes on when its context has ended: %v", err)
		}
	})

	t.Run("a slot that is gone is not recovered", func(t *testing.T) {
		n := open(t)
		s := nacre.Slot{Name: "nacre-none-77", Guest: netip.MustParsePrefix("10.231.0.77/16"), Gateway: netip.MustParseAddr("10.231.0.1")}
		id := nacre.NewMachineID()
		if err := n.Recover(ctx, map[nacre.MachineID]nacre.RecoveredSlot{id: {Slot: s}}); err != nil {
			t.Fatalf("Recover: %v", err)
		}
		if err := n.SetEgress(ctx, id, allowList); !nacre.IsCode(err, nacre.CodeNotFound) {
			t.Errorf("got %v, want %s", err, nacre.CodeNotFound)
		}
	})
}

// TestNetworkRecovery holds the second part of the contract: reopen ends the
// first Network as a crash would and returns another over the same host.
func TestNetworkRecovery(t *testing.T, open func(t *testing.T) nacre.Network, reopen func(t *testing.T, old nacre.Network) nacre.Network) {
	ctx := context.Background()
	first := open(t)
	if err := first.Recover(ctx, nil); err != nil {
		t.Fatal(err)
	}
	keep := map[nacre.MachineID]nacre.RecoveredSlot{}
	lost := map[string]bool{}
	for i := range 8 {
		id := nacre.NewMachineID()
		p := nacre.EgressPolicy{DenyAll: i%2 == 0, Allow: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("1.1.1.%d/32", i))}}
		s, err := first.Acquire(ctx, id, p)
		if err != nil {
			t.Fatal(err)
		}
		if i < 5 {
			keep[id] = nacre.RecoveredSlot{Slot: s, Policy: p}
		} else {
			lost[s.Name] = true
		}
	}
	second := reopen(t, first)
	if err := second.Recover(ctx, keep); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	used := map[string]bool{}
	for id, m := range keep {
		used[m.Slot.Name] = true
		if _, err := second.Acquire(ctx, id, nacre.EgressPolicy{}); !nacre.IsCode(err, nacre.CodeConflict) {
			t.Errorf("a recovered machine can be acquired again: %v", err)
		}
		if err := second.SetEgress(ctx, id, nacre.EgressPolicy{DenyAll: true}); err != nil {
			t.Errorf("SetEgress of a recovered machine: %v", err)
		}
	}
	for range 5 {
		id := nacre.NewMachineID()
		s, err := second.Acquire(ctx, id, nacre.EgressPolicy{})
		if err != nil {
			t.Fatal(err)
		}
		if used[s.Name] || lost[s.Name] {
			t.Errorf("slot %s was handed out while it is in use or being reclaimed", s.Name)
		}
		if err := second.Release(ctx, id); err != nil {
			t.Error(err)
		}
	}
	for id := range keep {
		if err := second.Release(ctx, id); err != nil {
			t.Errorf("Release of a recovered machine: %v", err)
		}
	}
}
