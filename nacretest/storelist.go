package nacretest

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// Selects is SandboxFilter's meaning, as plainly as it can be written: the model
// that stores are compared with.
func Selects(f nacre.SandboxFilter, s nacre.Sandbox) bool {
	if f.TeamID == "" && !f.AllTeams || f.TeamID != "" && f.TeamID != s.TeamID {
		return false
	}
	if len(f.IDs) > 0 && !slices.Contains(f.IDs, s.ID) || len(f.States) > 0 && !slices.Contains(f.States, s.State) {
		return false
	}
	if f.Node != "" && f.Node != s.Node || f.Name != "" && f.Name != s.Name {
		return false
	}
	for k, v := range f.Metadata {
		if got, ok := s.Metadata[k]; !ok || got != v {
			return false
		}
	}
	if !f.DeadlineBefore.IsZero() && (!s.Alive() || s.Deadline.IsZero() || s.Deadline.After(f.DeadlineBefore)) {
		return false
	}
	return true
}

// Listed returns what a store that holds all must list for f, in its order.
func Listed(f nacre.SandboxFilter, all []nacre.Sandbox) []nacre.Sandbox {
	var out []nacre.Sandbox
	for _, s := range all {
		if Selects(f, s) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b nacre.Sandbox) int {
		if c := b.StartedAt.Compare(a.StartedAt); c != 0 {
			return c
		}
		return cmp.Compare(b.ID, a.ID)
	})
	if f.OldestFirst {
		slices.Reverse(out)
	}
	return out
}

// listAll pages through a list.
func listAll(ctx context.Context, store nacre.SandboxStore, f nacre.SandboxFilter) ([]nacre.Sandbox, error) {
	var out []nacre.Sandbox
	for {
		page, err := store.List(ctx, f)
		if err != nil {
			return nil, err
		}
		limit := f.Limit
		if limit == 0 {
			limit = 100
		}
		if len(page.Sandboxes) > limit || page.Next != "" && len(page.Sandboxes) < limit {
			return nil, fmt.Errorf("a page of %d records with limit %d and next %q", len(page.Sandboxes), limit, page.Next)
		}
		out = append(out, page.Sandboxes...)
		if page.Next == "" {
			return out, nil
		}
		f.Cursor = page.Next
	}
}

func idsOf(all []nacre.Sandbox) []nacre.SandboxID {
	out := []nacre.SandboxID{}
	for _, s := range all {
		out = append(out, s.ID)
	}
	return out
}

// compareList checks a list, its pages and its count against the model.
func compareList(t testing.TB, store nacre.SandboxStore, f nacre.SandboxFilter, all []nacre.Sandbox) {
	t.Helper()
	want := Listed(f, all)
	got, err := listAll(t.Context(), store, f)
	if err != nil {
		t.Errorf("List %+v: %v", f, err)
		return
	}
	expectSame(t, fmt.Sprintf("list of %+v", f), idsOf(got), idsOf(want))
	if n, err := store.Count(t.Context(), f); err != nil || n != len(want) {
		t.Errorf("Count %+v: %d, %v; want %d", f, n, err, len(want))
	}
}

// randomSandboxes returns records that differ in all that filters look at, with
// many equal values.
func randomSandboxes(rng *rand.Rand, n int, teams []nacre.TeamID, node string) []nacre.Sandbox {
	states := []nacre.State{nacre.StateCreating, nacre.StateRunning, nacre.StatePausing, nacre.StatePaused,
		nacre.StateResuming, nacre.StateStopping, nacre.StateEnded}
	var out []nacre.Sandbox
	for range n {
		s := SampleSandbox(teams[rng.IntN(len(teams))], states[rng.IntN(len(states))])
		s.StartedAt = storeEpoch.Add(time.Duration(rng.IntN(12)) * time.Microsecond)
		s.Deadline = storeEpoch.Add(time.Duration(rng.IntN(10)) * time.Minute)
		if rng.IntN(8) == 0 {
			s.Deadline = time.Time{}
		}
		s.Node = nacre.NodeID(fmt.Sprint(node, rng.IntN(3)))
		s.Metadata = map[string]string{}
		for _, k := range []string{"env", "user", "run"} {
			if rng.IntN(4) > 0 {
				s.Metadata[k] = fmt.Sprint(rng.IntN(3))
			}
		}
		out = append(out, s)
	}
	return out
}

// randomFilter returns a filter that selects some of all.
func randomFilter(rng *rand.Rand, all []nacre.Sandbox, teams []nacre.TeamID, node string) nacre.SandboxFilter {
	f := nacre.SandboxFilter{TeamID: teams[rng.IntN(len(teams))], Limit: []int{1, 2, 3, 7, 100, 1000}[rng.IntN(6)],
		OldestFirst: rng.IntN(4) == 0}
	pick := func() nacre.Sandbox { return all[rng.IntN(len(all))] }
	for range rng.IntN(4) {
		f.States = append(f.States, pick().State)
	}
	if rng.IntN(3) == 0 {
		f.Node = nacre.NodeID(fmt.Sprint(node, rng.IntN(3)))
	}
	if rng.IntN(2) == 0 {
		f.Metadata = map[string]string{}
		for _, k := range []string{"env", "user", "run"}[:rng.IntN(4)] {
			f.Metadata[k] = fmt.Sprint(rng.IntN(3))
		}
	}
	if rng.IntN(3) == 0 {
		f.DeadlineBefore = storeEpoch.Add(time.Duration(rng.IntN(10)) * time.Minute)
	}
	if rng.IntN(4) == 0 {
		for range 5 {
			f.IDs = append(f.IDs, pick().ID, pick().ID)
		}
		f.IDs = append(f.IDs, nacre.NewSandboxID(), f.IDs[0])
	}
	if f.Node != "" || f.IDs != nil { // else other tests' records are found
		if rng.IntN(3) == 0 {
			f.TeamID, f.AllTeams = "", true
		}
	}
	return f
}

func sandboxListPages(t *testing.T, store nacre.SandboxStore) {
	team := nacre.NewTeamID()
	var all []nacre.Sandbox
	for i := range 25 { // newest first whatever the state; equal times by id
		s := SampleSandbox(team, []nacre.State{nacre.StateRunning, nacre.StatePaused, nacre.StateEnded}[i%3])
		s.StartedAt = storeEpoch.Add(time.Duration(i/4) * time.Second)
		all = append(all, mustInsert(t, store, s))
	}
	for _, limit := range []int{1, 2, 5, 24, 25, 26, 1000} {
		compareList(t, store, nacre.SandboxFilter{TeamID: team, Limit: limit}, all)
		compareList(t, store, nacre.SandboxFilter{TeamID: team, Limit: limit, States: []nacre.State{nacre.StatePaused, nacre.StateRunning, nacre.StatePaused}}, all)
	}
	got, err := listAll(t.Context(), store, nacre.SandboxFilter{TeamID: team})
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "listed records", got, Listed(nacre.SandboxFilter{TeamID: team}, all))
	// A record that starts between two pages does not disturb the rest.
	page, err := store.List(t.Context(), nacre.SandboxFilter{TeamID: team, Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	newer := SampleSandbox(team, nacre.StateRunning)
	newer.StartedAt = storeEpoch.Add(time.Hour)
	mustInsert(t, store, newer)
	rest, err := listAll(t.Context(), store, nacre.SandboxFilter{TeamID: team, Limit: 10, Cursor: page.Next})
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "pages", idsOf(append(page.Sandboxes, rest...)), idsOf(Listed(nacre.SandboxFilter{TeamID: team}, all)))
}

func sandboxListFilters(t *testing.T, store nacre.SandboxStore) {
	rng := rand.New(rand.NewPCG(1, 2))
	teams := []nacre.TeamID{nacre.NewTeamID(), nacre.NewTeamID()}
	node := string(nacre.NewMachineID()) + "-"
	all := randomSandboxes(rng, 120, teams, node)
	for _, s := range all {
		mustInsert(t, store, s)
	}
	for range 300 {
		compareList(t, store, randomFilter(rng, all, teams, node), all)
		if t.Failed() {
			return
		}
	}
}

func sandboxListMetadata(t *testing.T, store nacre.SandboxStore) {
	team := nacre.NewTeamID()
	long := string(make([]byte, 20000)) + "x"
	pairs := []map[string]string{
		{"a": "b"}, {"a": "B"}, {"A": "b"}, {"a": "b "}, {"ab": ""}, {"": "ab"}, {"a": ""}, {"": ""}, {}, {"a b": "c&d=é+1"},
		{"a": "b", "c": "d"}, {"c": "d"}, {"a": "%"}, {"a": long}, {"a": long + "x"}, {"k": "é"}, {"k": "e\u0301"},
	}
	var all []nacre.Sandbox
	for _, p := range pairs {
		s := SampleSandbox(team, nacre.StateRunning)
		s.Metadata = p
		all = append(all, mustInsert(t, store, s))
	}
	for _, p := range append(pairs, map[string]string{"a": "b", "c": "x"}, map[string]string{"nokey": ""}) {
		compareList(t, store, nacre.SandboxFilter{TeamID: team, Metadata: p}, all)
	}
	many := map[string]string{}
	for i := range 2000 {
		many[fmt.Sprint(i)] = "x"
	}
	_, err := store.List(t.Context(), nacre.SandboxFilter{TeamID: team, Metadata: many})
	expectCode(t, "a filter of 2000 pairs", err, nacre.CodeInvalid)
}

func sandboxListFollowsUpdates(t *testing.T, store nacre.SandboxStore) {
	team := nacre.NewTeamID()
	var all []nacre.Sandbox
	for range 6 {
		all = append(all, mustInsert(t, store, SampleSandbox(team, nacre.StateRunning)))
	}
	steps := []func(*nacre.Sandbox){
		func(s *nacre.Sandbox) { s.State = nacre.StatePausing },
		func(s *nacre.Sandbox) { s.Metadata["user"] = "bob" },
		func(s *nacre.Sandbox) { s.StartedAt = s.StartedAt.Add(time.Minute) },
		func(s *nacre.Sandbox) { s.Node = "node-2" },
		func(s *nacre.Sandbox) { s.Deadline = s.Deadline.Add(-time.Hour) },
		func(s *nacre.Sandbox) { s.Metadata = nil },
		func(s *nacre.Sandbox) { s.State, s.EndedAt = nacre.StateEnded, storeEpoch },
	}
	for i, step := range steps {
		at := i % len(all)
		got, err := store.Update(t.Context(), team, all[at].ID, func(s *nacre.Sandbox) ([]nacre.Event, error) { step(s); return nil, nil })
		if err != nil {
			t.Fatal(err)
		}
		all[at] = got
		for _, f := range []nacre.SandboxFilter{
			{}, {States: []nacre.State{nacre.StateRunning}}, {States: []nacre.State{nacre.StateEnded, nacre.StatePausing}},
			{Metadata: map[string]string{"user": "ann"}}, {Metadata: map[string]string{"user": "bob"}}, {Metadata: SampleSandbox("", "").Metadata},
			{Node: "node-2"}, {DeadlineBefore: storeEpoch}, {DeadlineBefore: storeEpoch.Add(time.Hour)},
			{Metadata: map[string]string{"user": "ann"}, States: []nacre.State{nacre.StateRunning}},
		} {
			f.TeamID = team
			compareList(t, store, f, all)
		}
	}
}

func sandboxListCursors(t *testing.T, store nacre.SandboxStore) {
	team := nacre.NewTeamID()
	for range 4 {
		mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
	}
	f := nacre.SandboxFilter{TeamID: team, Limit: 2}
	page, err := store.List(t.Context(), f)
	if err != nil || page.Next == "" {
		t.Fatalf("first page: %+v, %v", page, err)
	}
	for _, bad := range append(slices.Clone(hostile[1:]), page.Next+"A", page.Next[1:], page.Next[:8], "B"+page.Next[1:]) {
		f.Cursor = bad
		_, err := store.List(t.Context(), f)
		expectCode(t, fmt.Sprintf("cursor %.40q", bad), err, nacre.CodeInvalid)
	}
	for name, other := range map[string]nacre.SandboxFilter{
		"another team":     {TeamID: nacre.NewTeamID()},
		"another state":    {TeamID: team, States: []nacre.State{nacre.StatePaused}},
		"another metadata": {TeamID: team, Metadata: map[string]string{"a": "b"}},
		"all teams":        {AllTeams: true},
	} {
		other.Cursor = page.Next
		_, err := store.List(t.Context(), other)
		expectCode(t, "a cursor of "+name, err, nacre.CodeInvalid)
	}
	f.Cursor, f.Limit = page.Next, 1 // another limit is fine
	if page, err := store.List(t.Context(), f); err != nil || len(page.Sandboxes) != 1 {
		t.Errorf("a cursor with another limit: %v", err)
	}
}

func sandboxListWithoutTeam(t *testing.T, store nacre.SandboxStore) {
	s := mustInsert(t, store, SampleSandbox(nacre.NewTeamID(), nacre.StateRunning))
	f := nacre.SandboxFilter{IDs: []nacre.SandboxID{s.ID}}
	page, err := store.List(t.Context(), f)
	if err != nil || len(page.Sandboxes) != 0 {
		t.Errorf("a filter without a team finds %d, %v", len(page.Sandboxes), err)
	}
	if n, err := store.Count(t.Context(), f); err != nil || n != 0 {
		t.Errorf("a filter without a team counts %d, %v", n, err)
	}
	f.AllTeams = true
	compareList(t, store, f, []nacre.Sandbox{s})
	f.TeamID = nacre.NewTeamID() // a team restricts, whatever else is said
	compareList(t, store, f, []nacre.Sandbox{s})
}

func sandboxPurge(t *testing.T, store nacre.SandboxStore) {
	team := nacre.NewTeamID()
	long := storeEpoch.AddDate(-20, 0, 0) // other tests' records ended later
	var old, kept []nacre.Sandbox
	for i := range 450 {
		s := SampleSandbox(team, nacre.StateEnded)
		s.EndedAt = long.Add(time.Duration(i) * time.Microsecond)
		old = append(old, mustInsert(t, store, s, nacre.Event{Kind: nacre.EventEnded}))
	}
	for _, state := range []nacre.State{nacre.StateRunning, nacre.StatePaused, nacre.StateStopping} {
		s := SampleSandbox(team, state)
		s.EndedAt = long
		kept = append(kept, mustInsert(t, store, s, nacre.Event{Kind: nacre.EventCreated}))
	}
	edge := SampleSandbox(team, nacre.StateEnded)
	edge.EndedAt = long.Add(time.Second)
	kept = append(kept, mustInsert(t, store, edge, nacre.Event{Kind: nacre.EventEnded}))

	for _, want := range []int{3, 300, 147, 0} {
		n, err := store.Purge(t.Context(), edge.EndedAt, max(want, 1))
		if err != nil || n != want {
			t.Fatalf("Purge deleted %d, %v; want %d", n, err, want)
		}
		if want == 3 { // the oldest go first
			compareList(t, store, nacre.SandboxFilter{TeamID: team}, append(slices.Clone(kept), old[3:]...))
		}
	}
	compareList(t, store, nacre.SandboxFilter{TeamID: team}, kept)
	compareList(t, store, nacre.SandboxFilter{TeamID: team, Metadata: old[0].Metadata}, kept)
	if log, ok := store.(nacre.EventLog); ok {
		events, err := log.Events(t.Context(), nacre.EventFilter{TeamID: team, Limit: 1000})
		if err != nil || len(events) != len(kept) {
			t.Errorf("%d events are left, %v; want %d", len(events), err, len(kept))
		}
	}
	// A purged id may be used again.
	mustInsert(t, store, old[0])
}
