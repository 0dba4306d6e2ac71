package control

import (
	"testing"

	"github.com/nacrehq/nacre"
)

// TestDecide: each pair of a record's state and a machine has one legal answer.
func TestDecide(t *testing.T) {
	oom := nacre.Exit{Reason: nacre.EndOOM, Detail: "memory"}
	const keep = nacre.State("")
	for _, c := range []struct {
		state  nacre.State
		p      presence
		to     nacre.State
		reason nacre.EndReason
		stop   bool
	}{
		{"", absent, keep, "", false},
		{"", present, keep, "", true},
		{"", exited, keep, "", true},
		{nacre.StateCreating, absent, nacre.StateEnded, nacre.EndFailed, false},
		{nacre.StateCreating, present, nacre.StateEnded, nacre.EndFailed, true},
		{nacre.StateCreating, exited, nacre.StateEnded, nacre.EndFailed, true},
		{nacre.StateRunning, absent, nacre.StateEnded, nacre.EndNodeLost, false},
		{nacre.StateRunning, present, keep, "", false},
		{nacre.StateRunning, exited, nacre.StateEnded, nacre.EndOOM, true},
		{nacre.StatePausing, absent, nacre.StateEnded, nacre.EndNodeLost, false},
		{nacre.StatePausing, present, nacre.StateRunning, "", false},
		{nacre.StatePausing, exited, nacre.StateEnded, nacre.EndOOM, true},
		{nacre.StatePaused, absent, keep, "", false},
		{nacre.StatePaused, present, keep, "", true},
		{nacre.StatePaused, exited, keep, "", true},
		{nacre.StateResuming, absent, nacre.StatePaused, "", false},
		{nacre.StateResuming, present, nacre.StatePaused, "", true},
		{nacre.StateResuming, exited, nacre.StatePaused, "", true},
		{nacre.StateStopping, absent, nacre.StateEnded, "", false},
		{nacre.StateStopping, present, nacre.StateEnded, "", true},
		{nacre.StateStopping, exited, nacre.StateEnded, "", true},
		{nacre.StateEnded, absent, keep, "", false},
		{nacre.StateEnded, present, keep, "", true},
		{nacre.StateEnded, exited, keep, "", true},
	} {
		v := decide(c.state, c.p, oom)
		if v.to != c.to || v.reason != c.reason || v.stop != c.stop {
			t.Errorf("%q with machine %d: %+v, want to %q, reason %q, stop %v", c.state, c.p, v, c.to, c.reason, c.stop)
		}
		if v.to != "" && !nacre.CanMove(c.state, v.to) {
			t.Errorf("%q -> %q is not a legal move", c.state, v.to)
		}
		if v.reason != "" && v.detail == "" {
			t.Errorf("%q with machine %d: no sentence for people", c.state, c.p)
		}
	}
	for from := range nacre.Transitions {
		for p := absent; p <= exited; p++ {
			if v := decide(from, p, oom); v.to != "" && !nacre.CanMove(from, v.to) {
				t.Errorf("%q with machine %d -> %q is not legal", from, p, v.to)
			}
		}
	}
}
