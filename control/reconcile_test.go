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
		kept   bool
		to     nacre.State
		reason nacre.EndReason
		stop   bool
	}{
		{"", absent, false, keep, "", false},
		{"", present, false, keep, "", true},
		{"", exited, false, keep, "", true},
		{nacre.StateCreating, absent, false, nacre.StateEnded, nacre.EndFailed, false},
		{nacre.StateCreating, present, false, nacre.StateEnded, nacre.EndFailed, true},
		{nacre.StateCreating, exited, false, nacre.StateEnded, nacre.EndFailed, true},
		{nacre.StateCreating, present, true, nacre.StateEnded, nacre.EndFailed, true}, // a fork
		{nacre.StateRunning, absent, false, nacre.StateEnded, nacre.EndNodeLost, false},
		{nacre.StateRunning, present, false, keep, "", false},
		{nacre.StateRunning, exited, false, nacre.StateEnded, nacre.EndOOM, true},
		{nacre.StatePausing, absent, false, nacre.StateEnded, nacre.EndNodeLost, false},
		{nacre.StatePausing, absent, true, nacre.StatePaused, "", false},
		{nacre.StatePausing, present, false, nacre.StateRunning, "", false},
		{nacre.StatePausing, present, true, nacre.StateRunning, "", false},
		{nacre.StatePausing, exited, false, nacre.StateEnded, nacre.EndOOM, true},
		{nacre.StatePausing, exited, true, nacre.StatePaused, "", true},
		{nacre.StatePaused, absent, true, keep, "", false},
		{nacre.StatePaused, present, true, keep, "", true},
		{nacre.StatePaused, exited, true, keep, "", true},
		{nacre.StatePaused, absent, false, nacre.StateEnded, nacre.EndNodeLost, false},
		{nacre.StateResuming, absent, true, nacre.StatePaused, "", false},
		{nacre.StateResuming, present, true, nacre.StatePaused, "", true},
		{nacre.StateResuming, exited, true, nacre.StatePaused, "", true},
		{nacre.StateResuming, absent, false, nacre.StateEnded, nacre.EndNodeLost, false},
		{nacre.StateResuming, present, false, nacre.StateEnded, nacre.EndNodeLost, true},
		{nacre.StateStopping, absent, false, nacre.StateEnded, "", false},
		{nacre.StateStopping, present, true, nacre.StateEnded, "", true},
		{nacre.StateStopping, exited, false, nacre.StateEnded, "", true},
		{nacre.StateEnded, absent, false, keep, "", false},
		{nacre.StateEnded, present, false, keep, "", true},
		{nacre.StateEnded, exited, true, keep, "", true},
	} {
		v := decide(c.state, c.p, c.kept, oom)
		if v.to != c.to || v.reason != c.reason || v.stop != c.stop {
			t.Errorf("%q with machine %d, snapshot %v: %+v, want to %q, reason %q, stop %v", c.state, c.p, c.kept, v, c.to, c.reason, c.stop)
		}
		if v.reason != "" && v.detail == "" {
			t.Errorf("%q with machine %d: no sentence for people", c.state, c.p)
		}
	}
	for from := range nacre.Transitions {
		for p := absent; p <= exited; p++ {
			for _, kept := range []bool{false, true} {
				if v := decide(from, p, kept, oom); v.to != "" && !nacre.CanMove(from, v.to) {
					t.Errorf("%q with machine %d, snapshot %v -> %q is not legal", from, p, kept, v.to)
				}
			}
		}
	}
}

// TestDecideSnapshot: each pair of a snapshot's record and its files has one legal
// answer.
func TestDecideSnapshot(t *testing.T) {
	for _, c := range []struct {
		kind        nacre.SnapshotKind
		state       nacre.SnapshotState
		files, held bool
		want        fate
	}{
		{nacre.SnapshotUser, nacre.SnapshotDeleting, true, false, finish},
		{nacre.SnapshotPause, nacre.SnapshotDeleting, false, false, finish},
		{nacre.SnapshotUser, nacre.SnapshotCreating, false, false, retire},
		{nacre.SnapshotUser, nacre.SnapshotCreating, true, false, retire}, // nobody was told of it
		{nacre.SnapshotPause, nacre.SnapshotCreating, true, true, keepIt},
		{nacre.SnapshotPause, nacre.SnapshotCreating, false, false, retire},
		{nacre.SnapshotUser, nacre.SnapshotReady, true, false, keepIt},
		{nacre.SnapshotUser, nacre.SnapshotReady, true, true, keepIt},
		{nacre.SnapshotUser, nacre.SnapshotReady, false, false, retire},
		{nacre.SnapshotWarm, nacre.SnapshotReady, true, false, keepIt},
		{nacre.SnapshotWarm, nacre.SnapshotReady, false, false, retire},
		{nacre.SnapshotPause, nacre.SnapshotReady, true, true, keepIt},
		{nacre.SnapshotPause, nacre.SnapshotReady, true, false, retire},
		{nacre.SnapshotPause, nacre.SnapshotReady, false, true, retire}, // when its holder has ended
		{nacre.SnapshotFork, nacre.SnapshotReady, true, true, keepIt},
		{nacre.SnapshotFork, nacre.SnapshotReady, true, false, retire},
	} {
		if got := decideSnapshot(nacre.Snapshot{Kind: c.kind, State: c.state}, c.files, c.held); got != c.want {
			t.Errorf("%s %s, files %v, held %v: %d, want %d", c.kind, c.state, c.files, c.held, got, c.want)
		}
	}
}
