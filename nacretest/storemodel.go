package nacretest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"pgregory.net/rapid"
)

// TestSandboxModel runs random sequences of calls against the store and against a
// map, and compares every answer.
func TestSandboxModel(t *testing.T, open func(t *testing.T) nacre.SandboxStore) {
	store := open(t)
	rapid.Check(t, func(rt *rapid.T) {
		m := &storeModel{t: t, store: store, teams: []nacre.TeamID{nacre.NewTeamID(), nacre.NewTeamID()}}
		rt.Repeat(map[string]func(*rapid.T){
			"Insert": m.insert, "InsertAgain": m.insertAgain, "Update": m.update, "Get": m.get, "List": m.list, "": m.pages,
		})
	})
}

type storeModel struct {
	t     *testing.T // for its context only
	store nacre.SandboxStore
	teams []nacre.TeamID
	all   []nacre.Sandbox
}

var (
	genState = rapid.SampledFrom([]nacre.State{nacre.StateCreating, nacre.StateRunning, nacre.StatePausing, nacre.StatePaused,
		nacre.StateResuming, nacre.StateStopping, nacre.StateEnded})
	genText = rapid.OneOf(rapid.SampledFrom([]string{"", "a", "b"}), rapid.String())
	genMap  = rapid.OneOf(rapid.Just(map[string]string(nil)), rapid.MapOfN(genText, genText, 0, 3))
	genTime = rapid.Custom(func(t *rapid.T) time.Time {
		if rapid.IntRange(0, 9).Draw(t, "never") == 0 {
			return time.Time{}
		}
		return storeEpoch.Add(time.Duration(rapid.IntRange(-3, 3).Draw(t, "µs")) * time.Microsecond)
	})
)

// draw sets every field that may be changed at any time.
func draw(t *rapid.T, s *nacre.Sandbox) {
	s.Node = rapid.SampledFrom([]nacre.NodeID{"", "n1", "n2"}).Draw(t, "node")
	s.Name = rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "name")
	s.Metadata, s.Env = genMap.Draw(t, "metadata"), genMap.Draw(t, "env")
	s.Detail = genText.Draw(t, "detail")
	s.Timeout = time.Duration(rapid.Int64().Draw(t, "timeout"))
	s.Secure = rapid.Bool().Draw(t, "secure")
	s.TokenEpoch = rapid.Int().Draw(t, "epoch")
	s.Network.AllowOut = rapid.SliceOfN(genText, 0, 2).Draw(t, "allow")
	s.StartedAt, s.Deadline, s.EndedAt = genTime.Draw(t, "started"), genTime.Draw(t, "deadline"), genTime.Draw(t, "ended")
}

func (m *storeModel) pick(t *rapid.T) int {
	if len(m.all) == 0 {
		t.Skip("no record yet")
	}
	return rapid.IntRange(0, len(m.all)-1).Draw(t, "record")
}

func (m *storeModel) insert(t *rapid.T) {
	s := nacre.Sandbox{ID: nacre.NewSandboxID(), TeamID: rapid.SampledFrom(m.teams).Draw(t, "team"),
		State: genState.Draw(t, "state"), CreatedAt: genTime.Draw(t, "created")}
	draw(t, &s)
	if err := m.store.Insert(m.t.Context(), s); err != nil {
		t.Fatalf("Insert: %v", err)
	}
	m.all = append(m.all, s)
}

func (m *storeModel) insertAgain(t *rapid.T) {
	s := m.all[m.pick(t)]
	if err := m.store.Insert(m.t.Context(), s); !nacre.IsCode(err, nacre.CodeConflict) {
		t.Fatalf("second Insert: %v", err)
	}
}

func (m *storeModel) update(t *rapid.T) {
	i := m.pick(t)
	next := m.all[i]
	next.State = genState.Draw(t, "state")
	draw(t, &next)
	got, err := m.store.Update(m.t.Context(), next.TeamID, next.ID, func(s *nacre.Sandbox) ([]nacre.Event, error) {
		*s = next
		return nil, nil
	})
	if next.State != m.all[i].State && !nacre.CanMove(m.all[i].State, next.State) {
		if !nacre.IsCode(err, nacre.CodeConflict) {
			t.Fatalf("%s -> %s: %v", m.all[i].State, next.State, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	next.Version++
	expectSame(t, "updated", got, next)
	m.all[i] = next
}

func (m *storeModel) get(t *rapid.T) {
	want := m.all[m.pick(t)]
	got, err := m.store.Get(m.t.Context(), want.TeamID, want.ID)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "record", got, want)
	other := m.teams[0]
	if other == want.TeamID {
		other = m.teams[1]
	}
	if _, err := m.store.Get(m.t.Context(), other, want.ID); !nacre.IsCode(err, nacre.CodeNotFound) {
		t.Fatalf("the other team gets %v", err)
	}
}

func (m *storeModel) list(t *rapid.T) {
	f := nacre.SandboxFilter{TeamID: rapid.SampledFrom(m.teams).Draw(t, "team"), Limit: rapid.IntRange(1, 5).Draw(t, "limit")}
	f.States = rapid.SliceOfN(genState, 0, 3).Draw(t, "states")
	f.Node = rapid.SampledFrom([]nacre.NodeID{"", "", "n1", "n2"}).Draw(t, "node")
	f.Name = rapid.SampledFrom([]string{"", "", "x", "y"}).Draw(t, "name")
	if rapid.Bool().Draw(t, "by deadline") {
		f.DeadlineBefore = genTime.Draw(t, "deadline")
	}
	if len(m.all) > 0 {
		some := m.all[m.pick(t)]
		switch rapid.IntRange(0, 2).Draw(t, "by") {
		case 0:
			f.Metadata = some.Metadata
		case 1:
			f.IDs = []nacre.SandboxID{some.ID, nacre.NewSandboxID()}
		}
	}
	m.compare(t, f)
}

// pages is the invariant: both teams' lists are what the model says.
func (m *storeModel) pages(t *rapid.T) {
	for _, team := range m.teams {
		m.compare(t, nacre.SandboxFilter{TeamID: team, Limit: 3})
	}
}

func (m *storeModel) compare(t *rapid.T, f nacre.SandboxFilter) {
	want := Listed(f, m.all)
	got, err := listAll(m.t.Context(), m.store, f)
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	if !slices.Equal(idsOf(got), idsOf(want)) {
		t.Fatalf("list of %+v:\n got %v\nwant %v", f, idsOf(got), idsOf(want))
	}
	expectSame(t, fmt.Sprintf("records of %+v", f), got, want)
	if n, err := m.store.Count(m.t.Context(), f); err != nil || n != len(want) {
		t.Fatalf("Count: %d, %v; want %d", n, err, len(want))
	}
}
