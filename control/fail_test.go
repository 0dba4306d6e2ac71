package control_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
)

// TestFailedCreates: whatever fails, the caller is told, the record says why, and
// no quota is held.
func TestFailedCreates(t *testing.T) {
	w := newWorld(t)
	w.limits.MaxPerTeam = 1
	w.start()
	for _, op := range []string{"images.prepare", "network.acquire", "runtime.start", "agent.init"} {
		w.host.SetHook(func(at string, _ nacre.MachineID) error {
			if at == op {
				return nacre.Errorf(nacre.CodeNoSpace, "the host's disk is full")
			}
			return nil
		})
		_, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{})
		wantCode(t, err, nacre.CodeNoSpace)
	}
	w.host.SetHook(nil)
	p, err := w.svc.List(t.Context(), team, nacre.SandboxFilter{})
	if err != nil || len(p.Sandboxes) != 4 {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, s := range p.Sandboxes {
		if s.State != nacre.StateEnded || s.EndReason != nacre.EndFailed || s.Detail != "the host's disk is full" {
			t.Fatalf("record: %+v", s)
		}
	}
	s := w.create(nacre.CreateRequest{})
	_, err = w.svc.Create(t.Context(), team, nacre.CreateRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	if _, err := w.svc.Create(t.Context(), other, nacre.CreateRequest{}); err != nil {
		t.Fatalf("one team's quota hurts another: %v", err)
	}
	w.restart()
	_, err = w.svc.Create(t.Context(), team, nacre.CreateRequest{})
	wantCode(t, err, nacre.CodeExhausted)
	if err := w.svc.Kill(t.Context(), team, s.ID); err != nil {
		t.Fatal(err)
	}
	w.create(nacre.CreateRequest{})
}

// TestSlowFailedCreate: a start that takes longer to fail than a store may take to
// answer says why all the same.
func TestSlowFailedCreate(t *testing.T) {
	w := newWorld(t)
	w.rules = func(c *control.Config) { c.StoreTime = 500 * time.Millisecond }
	w.start()
	w.host.SetHook(func(at string, _ nacre.MachineID) error {
		if at != "runtime.start" {
			return nil
		}
		<-time.After(time.Second)
		return nacre.Errorf(nacre.CodeNoSpace, "the host's disk is full")
	})
	_, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{})
	wantCode(t, err, nacre.CodeNoSpace)
	p, err := w.svc.List(t.Context(), team, nacre.SandboxFilter{})
	if err != nil || len(p.Sandboxes) != 1 || p.Sandboxes[0].Detail != "the host's disk is full" {
		t.Fatalf("%+v, %v", p, err)
	}
}

// TestAFullHostLeavesNoStormOfRecords: refused creates do not fill the store.
func TestAFullHostLeavesNoStormOfRecords(t *testing.T) {
	w := newWorld(t)
	w.host.SetHook(func(op string, _ nacre.MachineID) error {
		if op == "network.acquire" {
			return nacre.Errorf(nacre.CodeExhausted, "no free address")
		}
		return nil
	})
	w.start()
	for range 20 {
		_, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{})
		wantCode(t, err, nacre.CodeExhausted)
	}
	if p, err := w.svc.List(t.Context(), team, nacre.SandboxFilter{}); err != nil || len(p.Sandboxes) != 1 {
		t.Fatalf("%d records, %v", len(p.Sandboxes), err)
	}
	w.host.SetHook(nil)
	w.create(nacre.CreateRequest{})
}

// brokenStore fails writes while it is broken.
type brokenStore struct {
	nacre.SandboxStore
	insert, update atomic.Bool
}

func (s *brokenStore) Insert(ctx context.Context, r nacre.Sandbox, ev ...nacre.Event) error {
	if s.insert.Load() {
		return nacre.Wrap(nacre.CodeUnavailable, errors.New("locked"), "the store does not answer")
	}
	return s.SandboxStore.Insert(ctx, r, ev...)
}

func (s *brokenStore) Update(ctx context.Context, tm nacre.TeamID, id nacre.SandboxID, fn func(*nacre.Sandbox) ([]nacre.Event, error)) (nacre.Sandbox, error) {
	if s.update.Load() {
		return nacre.Sandbox{}, nacre.Wrap(nacre.CodeUnavailable, errors.New("locked"), "the store does not answer")
	}
	return s.SandboxStore.Update(ctx, tm, id, fn)
}

// TestTheStoreFails: no machine runs without a record, and what could not be
// written is put right when the store is back.
func TestTheStoreFails(t *testing.T) {
	w := newWorld(t)
	store := &brokenStore{}
	w.rules = func(c *control.Config) {
		store.SandboxStore = c.Store
		c.Store, c.Reconcile, c.RecordAfter = store, 10*time.Millisecond, -1
	}
	w.start()
	svc := w.svc

	store.insert.Store(true)
	_, err := svc.Create(t.Context(), team, nacre.CreateRequest{})
	wantCode(t, err, nacre.CodeUnavailable)
	if l := w.host.Leaks(); len(l) > 0 {
		t.Fatalf("left behind: %v", l)
	}
	store.insert.Store(false)

	store.update.Store(true)
	_, err = svc.Create(t.Context(), team, nacre.CreateRequest{})
	wantCode(t, err, nacre.CodeUnavailable)
	if l := w.host.Leaks(); len(l) > 0 {
		t.Fatalf("left behind: %v", l)
	}
	store.update.Store(false)
	w.eventually("the half-made record has ended", func() bool {
		p, err := svc.List(t.Context(), team, nacre.SandboxFilter{})
		return err == nil && len(p.Sandboxes) == 1 && p.Sandboxes[0].State == nacre.StateEnded
	})

	var s nacre.Sandbox
	for s.State != nacre.StateRunning { // its time may be over before the store fails
		store.update.Store(false)
		s = w.create(nacre.CreateRequest{Timeout: 30 * time.Millisecond})
		store.update.Store(true)
		s = w.get(s.ID)
	}
	time.Sleep(60 * time.Millisecond)
	if _, ok := w.node.Route(s.ID); !ok {
		t.Fatal("the data plane depends on the store")
	}
	store.update.Store(false)
	w.eventually("its time is over", func() bool { return w.get(s.ID).State == nacre.StateEnded })

	s = w.create(nacre.CreateRequest{})
	store.update.Store(true)
	w.host.Machine(s.Machine).Crash(nacre.EndOOM, "memory")
	time.Sleep(30 * time.Millisecond)
	store.update.Store(false)
	w.eventually("its end is recorded", func() bool { return w.get(s.ID).EndReason == nacre.EndOOM })
}

// TestTheStoreFailsAfterTheStart: the one write of a quick create fails.
func TestTheStoreFailsAfterTheStart(t *testing.T) {
	w := newWorld(t)
	store := &brokenStore{}
	w.rules = func(c *control.Config) { store.SandboxStore, c.Store, c.RecordAfter = c.Store, store, time.Minute }
	w.start()
	store.insert.Store(true)
	_, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{})
	wantCode(t, err, nacre.CodeUnavailable)
	if l := w.host.Leaks(); len(l) > 0 {
		t.Fatalf("left behind: %v", l)
	}
	store.insert.Store(false)
	if s := w.create(nacre.CreateRequest{}); s.Version != 0 || w.get(s.ID).State != nacre.StateRunning {
		t.Fatalf("a create was written more than once: %+v", s)
	}
}
