package node_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
)

// TestStandbysInDemand: of a shape that was asked for twice lately the first few are
// kept, of a template's warm snapshot too, for as long as somebody asks; of a user's
// snapshot there are none.
func TestStandbysInDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.tweak = func(c *node.Config) {
			c.Standby = node.Standby{Count: 3, Quiet: time.Millisecond, Check: time.Second}
		}
		n := w.start()
		n.KeepReady(node.Shape{Build: build, Resources: resources})
		begin := func(change func(*nacre.StartSpec)) nacre.BootPath {
			t.Helper()
			spec := w.spec()
			change(&spec)
			st, err := n.Start(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second) // the pool is filled
			if err := n.Stop(t.Context(), spec.Sandbox); err != nil {
				t.Fatal(err)
			}
			return st.BootPath
		}
		time.Sleep(5 * time.Second)
		parent, _ := w.begin()
		keep := func(team nacre.TeamID) nacre.SnapshotID {
			t.Helper()
			spec := w.spec()
			spec.Team = team
			if _, err := n.Start(t.Context(), spec); err != nil {
				t.Fatal(err)
			}
			id := nacre.NewSnapshotID()
			if _, err := n.Snapshot(t.Context(), spec.Sandbox, nacre.SnapshotSpec{ID: id}); err != nil {
				t.Fatal(err)
			}
			if err := n.Stop(t.Context(), spec.Sandbox); err != nil {
				t.Fatal(err)
			}
			return id
		}
		warm, theirs := keep(nacre.SystemTeam), keep(parent.Team)
		time.Sleep(5 * time.Second) // they had taken all three
		for name, c := range map[string]struct {
			change func(*nacre.StartSpec)
			first  nacre.BootPath
			third  nacre.BootPath
		}{
			"another size":         {func(s *nacre.StartSpec) { s.Resources.MemoryMiB *= 2 }, nacre.BootCold, nacre.BootStandby},
			"a warm template":      {func(s *nacre.StartSpec) { s.Snapshot = warm }, nacre.BootWarm, nacre.BootStandby},
			"a user's snapshot":    {func(s *nacre.StartSpec) { s.Snapshot = theirs }, nacre.BootWarm, nacre.BootWarm},
			"the one that is kept": {func(*nacre.StartSpec) {}, nacre.BootStandby, nacre.BootStandby},
		} {
			for i, want := range []nacre.BootPath{c.first, c.first, c.third, c.third} {
				if got := begin(c.change); got != want {
					t.Errorf("%s, start %d: %s, want %s", name, i+1, got, want)
				}
			}
		}
		if got := w.standbys(); got <= 3 {
			t.Errorf("%d standbys", got)
		}
		time.Sleep(11 * time.Minute)
		if got := w.standbys(); got != 3 {
			t.Errorf("%d standbys when nobody asks for others", got)
		}
		w.stop()
	})
}
