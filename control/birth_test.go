package control_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/control"
	"github.com/nacrehq/nacre/node"
)

// gatedStore holds inserts.
type gatedStore struct {
	nacre.SandboxStore
	before, after func(nacre.Sandbox) // each may be nil
}

func (s gatedStore) Insert(ctx context.Context, rec nacre.Sandbox, ev ...nacre.Event) error {
	if s.before != nil {
		s.before(rec)
	}
	err := s.SandboxStore.Insert(ctx, rec, ev...)
	if s.after != nil && err == nil {
		s.after(rec)
	}
	return err
}

// withStandby is a world with one standby and a store whose inserts can be held.
func withStandby(t *testing.T, standbys int, before, after func(nacre.Sandbox)) *world {
	w := newWorld(t)
	w.rules = func(c *control.Config) {
		c.Store, c.RecordAfter = gatedStore{c.Store, before, after}, time.Minute
	}
	w.tweak = func(c *node.Config) {
		c.Standby = node.Standby{Count: standbys, Quiet: 50 * time.Millisecond, Patience: time.Hour}
	}
	w.start()
	w.node.KeepReady(node.Shape{Build: build, Resources: w.shape()})
	w.eventually("the standbys", func() bool { c, _ := w.node.Capacity(t.Context()); return c.Standbys == standbys })
	w.rules, w.tweak = nil, nil // of the daemons that follow
	return w
}

// shape is the resources of a create that asks for none.
func (w *world) shape() nacre.Resources {
	s := w.create(nacre.CreateRequest{})
	if err := w.svc.Kill(w.tb.Context(), team, s.ID); err != nil {
		w.tb.Fatal(err)
	}
	return s.Resources
}

// during calls fn while a guest is told who it is, once.
func (w *world) during(fn func(nacre.MachineID) error) {
	var done atomic.Bool
	w.host.SetHook(func(op string, m nacre.MachineID) error {
		if op != "agent.init" || done.Swap(true) {
			return nil
		}
		return fn(m)
	})
}

func await(t *testing.T, what string, ch <-chan struct{}) {
	select {
	case <-ch:
	case <-time.After(time.Minute):
		t.Errorf("not within a minute: %s", what)
	}
}

// TestTheRecordIsWrittenWhileTheGuestIsTold: a create waits for the longer of the two,
// and for both.
func TestTheRecordIsWrittenWhileTheGuestIsTold(t *testing.T) {
	told, release := make(chan struct{}), make(chan struct{})
	armed := false
	w := withStandby(t, 1, func(nacre.Sandbox) {
		if armed {
			await(t, "the guest is being told", told)
			<-release
		}
	}, nil)
	armed = true
	w.during(func(nacre.MachineID) error { close(told); return nil })
	type answer struct {
		s   nacre.Sandbox
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		s, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{})
		answered <- answer{s, err}
	}()
	await(t, "the guest is told while the record is written", told)
	select {
	case a := <-answered:
		t.Fatalf("answered without a record: %+v", a)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	a := <-answered
	if a.err != nil || a.s.State != nacre.StateRunning || a.s.BootPath != nacre.BootStandby {
		t.Fatalf("%+v", a)
	}
	if got := w.get(a.s.ID); got.State != nacre.StateRunning || got.Machine != a.s.Machine {
		t.Errorf("the record is %+v", got)
	}
}

// TestFault03_KilledBetweenRecordAndGuest: the daemon is killed when the record is
// there and its guest knows nothing, and the other way round. Nobody gets such a
// sandbox: the one ends as a create that failed, the other leaves nothing.
func TestFault03_KilledBetweenRecordAndGuest(t *testing.T) {
	t.Run("a record, and a guest that was not told", func(t *testing.T) {
		written := make(chan nacre.Sandbox, 8)
		w := withStandby(t, 1, nil, func(s nacre.Sandbox) { written <- s })
		for len(written) > 0 {
			<-written
		}
		var rec nacre.Sandbox
		w.during(func(nacre.MachineID) error {
			select {
			case rec = <-written:
			case <-time.After(time.Minute):
				t.Error("no record was written while the guest was told")
			}
			w.crashAt(1) // the next step is the guest's
			return nil
		})
		if s, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{}); err == nil {
			t.Fatalf("answered: %+v", s)
		}
		w.host.SetHook(nil)
		w.afterCrash()
		if r, ok := w.node.Route(rec.ID); ok {
			t.Errorf("a guest that knows nothing of its sandbox can be reached: %+v", r)
		}
		w.settles("after the crash")
		if got := w.get(rec.ID); got.State != nacre.StateEnded || got.EndReason != nacre.EndFailed || got.Detail == "" {
			t.Errorf("%+v", got)
		}
	})
	t.Run("a guest that was told, and no record", func(t *testing.T) {
		armed, told := false, make(chan struct{})
		var w *world
		w = withStandby(t, 1, func(nacre.Sandbox) {
			if armed {
				await(t, "the guest was told", told)
				w.fake.Kill() // killableStore below writes nothing any more
			}
		}, nil)
		armed = true
		w.crashAt(1 << 30) // what is on disk at the kill counts
		w.during(func(nacre.MachineID) error { time.AfterFunc(20*time.Millisecond, func() { close(told) }); return nil })
		if s, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{}); err == nil {
			t.Fatalf("answered: %+v", s)
		}
		w.host.SetHook(nil)
		w.afterCrash()
		w.settles("after the crash")
		list, err := w.node.Machines(t.Context())
		if err != nil || len(list) > 0 {
			t.Errorf("machines %+v, %v", list, err)
		}
	})
}

// TestAHandOverThatFailsAfterTheRecord: the record says what became of the start, when
// the standby that it was written with could not be told: another machine, or a failure.
func TestAHandOverThatFailsAfterTheRecord(t *testing.T) {
	written := make(chan nacre.Sandbox, 8)
	w := withStandby(t, 2, nil, func(s nacre.Sandbox) { written <- s })
	for len(written) > 0 {
		<-written
	}
	var first nacre.Sandbox
	w.during(func(m nacre.MachineID) error {
		first = <-written
		return errors.New("the guest does not answer")
	})
	s := w.create(nacre.CreateRequest{})
	if first.ID != s.ID || first.Machine == "" || first.Machine == s.Machine || s.BootPath != nacre.BootStandby {
		t.Fatalf("first on %q, then %+v", first.Machine, s)
	}
	if got := w.get(s.ID); got.Machine != s.Machine || got.State != nacre.StateRunning {
		t.Errorf("the record is %+v", got)
	}
	w.node.KeepReady()
	w.settles("another standby")
	if err := w.svc.Kill(t.Context(), team, s.ID); err != nil {
		t.Fatal(err)
	}

	w = withStandby(t, 1, nil, func(s nacre.Sandbox) { written <- s })
	for len(written) > 0 {
		<-written
	}
	ctx, cancel := context.WithCancel(t.Context())
	w.during(func(nacre.MachineID) error {
		first = <-written
		cancel() // the client goes away
		return ctx.Err()
	})
	if s, err := w.svc.Create(ctx, team, nacre.CreateRequest{}); err == nil {
		t.Fatalf("answered: %+v", s)
	}
	if got := w.get(first.ID); got.State != nacre.StateEnded || got.EndReason != nacre.EndFailed {
		t.Errorf("the record is %+v", got)
	}
	w.node.KeepReady()
	w.settles("a create that nobody waits for")
}

// TestKilledWhileTheGuestIsTold: who sees the record may kill the sandbox at once, and
// the create tells its own client that.
func TestKilledWhileTheGuestIsTold(t *testing.T) {
	written := make(chan nacre.Sandbox, 8)
	w := withStandby(t, 1, nil, func(s nacre.Sandbox) { written <- s })
	for len(written) > 0 {
		<-written
	}
	killed := make(chan error, 1)
	var rec nacre.Sandbox
	w.during(func(nacre.MachineID) error {
		rec = <-written
		go func() { killed <- w.svc.Kill(context.Background(), team, rec.ID) }()
		w.eventually("the kill has begun", func() bool { s := w.get(rec.ID); return !s.Alive() })
		return nil
	})
	s, err := w.svc.Create(t.Context(), team, nacre.CreateRequest{})
	if err == nil {
		t.Logf("it was answered before the kill reached the machine: %+v", s)
	} else if !nacre.IsCode(err, nacre.CodeConflict) {
		t.Error(err)
	}
	if err := <-killed; err != nil {
		t.Error(err)
	}
	if got := w.get(rec.ID); got.State != nacre.StateEnded || got.EndReason != nacre.EndKilled {
		t.Errorf("the record is %+v", got)
	}
	w.node.KeepReady()
	w.settles("the kill")
}
