package nacretest

import (
	"context"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

func testRecover(t *testing.T, h RuntimeHost) {
	s := h.Spec(t)
	handle, kill := h.Daemon(t, s)
	kill()
	r := h.runtime(t)
	m, err := r.Recover(t.Context(), handle)
	if err != nil {
		t.Fatal(err)
	}
	h.stopLater(t, m, s)
	g := DialGuest(t, m)
	g.Do("write", 1, "/tmp/kept")
	if _, err := m.Usage(t.Context()); err != nil {
		t.Errorf("Usage: %v", err)
	}
	if again, err := r.Recover(t.Context(), handle); err != nil || again.ID() != s.ID {
		t.Errorf("a second Recover: %v", err)
	}
	_, err = r.Start(t.Context(), s)
	wantCode(t, "Start of a recovered machine", err, nacre.CodeConflict)
	if err := m.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if e := wait(t, m); e.Reason != nacre.EndKilled {
		t.Errorf("ended with %+v", e)
	}
	h.clean(t, s)
}

func testRecoverEnded(t *testing.T, h RuntimeHost) {
	for _, c := range []struct {
		do   string
		n    int
		want nacre.EndReason
	}{{"exit", 3, nacre.EndCrash}, {"eat", 1024, nacre.EndOOM}} {
		t.Run(string(c.want), func(t *testing.T) {
			s := h.Spec(t)
			handle, kill := h.Daemon(t, s)
			kill()
			first, end := h.New(t)
			m, err := first.Recover(t.Context(), handle)
			if err != nil {
				t.Fatal(err)
			}
			g := DialGuest(t, m)
			end() // nobody watches from here on
			if _, err := m.Wait(t.Context()); !nacre.IsCode(err, nacre.CodeUnavailable) {
				t.Errorf("Wait with a driver that was ended: %v", err)
			}
			g.Send(c.do, c.n)
			e := endedUnseen(t, h, handle)
			again, end := h.New(t)
			defer end()
			if m, err = again.Recover(t.Context(), handle); err != nil {
				t.Fatal(err)
			}
			if g := wait(t, m); g.Reason != e.Reason && g.Reason != nacre.EndCrash {
				t.Errorf("asked again, it ended with %+v", g)
			}
			if e.Reason != c.want {
				t.Errorf("ended with %+v, want %s", e, c.want)
			}
			_, err = m.Dial(t.Context(), nacre.AgentPort)
			wantCode(t, "Dial", err, nacre.CodeNotFound)
			if err := m.Stop(t.Context()); err != nil {
				t.Errorf("Stop: %v", err)
			}
			h.clean(t, s)
		})
	}
}

// endedUnseen waits, with a driver that is new each time, until the machine has
// ended, and says how.
func endedUnseen(t *testing.T, h RuntimeHost, handle nacre.Handle) nacre.Exit {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < patience(); {
		r, end := h.New(t)
		m, err := r.Recover(t.Context(), handle)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		e, err := m.Wait(ctx)
		cancel()
		end()
		if err == nil {
			return e
		}
	}
	t.Fatal("the machine does not end")
	return nacre.Exit{}
}

func testRecoverNonsense(t *testing.T, h RuntimeHost) {
	r := h.runtime(t)
	for _, state := range []string{"", "{}", `{"PID":1}`, "[]", `{"PID":-1,"Dir":"/"}`} {
		_, err := r.Recover(t.Context(), nacre.Handle{Machine: nacre.NewMachineID(), Runtime: r.Name(), State: []byte(state)})
		wantCode(t, "Recover "+state, err, nacre.CodeInvalid)
	}
}

func testSweep(t *testing.T, h RuntimeHost) {
	kept, lost, own := h.Spec(t), h.Spec(t), h.Spec(t)
	handle, kill := h.Daemon(t, kept)
	kill()
	_, kill = h.Daemon(t, lost)
	kill()
	r := h.runtime(t)
	mine := h.boot(t, r, own)
	for range 2 {
		if err := r.Sweep(t.Context(), func(id nacre.MachineID) bool { return id == kept.ID }); err != nil {
			t.Fatal(err)
		}
	}
	h.clean(t, lost)
	m, err := r.Recover(t.Context(), handle)
	if err != nil {
		t.Fatal(err)
	}
	h.stopLater(t, m, kept)
	DialGuest(t, m).Do("ping")
	DialGuest(t, mine).Do("ping") // a machine of this process is nobody's leftover
}
