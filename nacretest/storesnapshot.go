package nacretest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// SnapshotStore is a store of snapshots with the sandboxes that hold them.
type SnapshotStore interface {
	nacre.SandboxStore
	nacre.SnapshotStore
	nacre.EventLog
}

// SampleSnapshot returns a record with every field set.
func SampleSnapshot(team nacre.TeamID, kind nacre.SnapshotKind, state nacre.SnapshotState) nacre.Snapshot {
	return nacre.Snapshot{
		ID: nacre.NewSnapshotID(), TeamID: team, Name: "my \"snap\" é", Comment: "before\nthe test", Kind: kind, State: state,
		Sandbox: nacre.NewSandboxID(), Node: "node-1", FilesOnly: true, RestoreKey: "gvisor/1 amd64",
		Template: "base", TemplateID: nacre.NewTemplateID(), BuildID: nacre.NewBuildID(),
		Resources: nacre.Resources{CPUs: 2, MemoryMiB: 512, DiskMiB: 1024, MaxPIDs: 300},
		Metadata:  map[string]string{"user": "ann"}, Env: map[string]string{"TOKEN": "s3cret\n", "EMPTY": ""},
		Network: nacre.NetworkPolicy{DenyInternet: true, AllowOut: []string{"1.1.1.1"}}, Secure: true,
		Timeout: 5*time.Minute + time.Nanosecond, OnTimeout: nacre.TimeoutPause,
		Bytes: 1 << 40, DiskBytes: 12345, Stopped: 17*time.Millisecond + 1,
		CreatedAt: storeEpoch, ExpiresAt: storeEpoch.Add(time.Hour), LastUsedAt: storeEpoch.Add(time.Minute),
	}
}

// TestSnapshotStore is the contract of nacre.SnapshotStore, with the SandboxStore
// whose records hold snapshots.
func TestSnapshotStore(t *testing.T, open func(t *testing.T) SnapshotStore) {
	store := open(t)
	for _, c := range []struct {
		name string
		test func(*testing.T, SnapshotStore)
	}{
		{"RoundTrip", snapshotRoundTrip},
		{"BadRecords", snapshotBadRecords},
		{"Fault36_TwoTeams", snapshotTwoTeams},
		{"Update", snapshotUpdate},
		{"Find", snapshotFind},
		{"List", snapshotList},
		{"Life", snapshotLife},
		{"Holds", snapshotHolds},
		{"Fault26_HoldersAreNamed", snapshotHolders},
		{"Fault26_HoldAndRetireAtOnce", snapshotRaces},
		{"Use", snapshotUse},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, store) })
	}
}

func mustKeep(t testing.TB, store nacre.SnapshotStore, n nacre.Snapshot, events ...nacre.Event) nacre.Snapshot {
	t.Helper()
	if err := store.InsertSnapshot(t.Context(), n, events...); err != nil {
		t.Fatalf("InsertSnapshot: %v", err)
	}
	return n
}

func snapshotRoundTrip(t *testing.T, store SnapshotStore) {
	team := nacre.NewTeamID()
	full := SampleSnapshot(team, nacre.SnapshotUser, nacre.SnapshotReady)
	bare := nacre.Snapshot{ID: nacre.NewSnapshotID(), TeamID: team, Kind: nacre.SnapshotPause, State: nacre.SnapshotCreating}
	for _, n := range []nacre.Snapshot{full, bare} {
		mustKeep(t, store, n, nacre.Event{Kind: nacre.EventSnapshotCreated, Data: map[string]string{"snapshot": string(n.ID)}})
		got, err := store.GetSnapshot(t.Context(), team, n.ID)
		if err != nil {
			t.Fatal(err)
		}
		expectSame(t, "record", got, n)
		expectCode(t, "a second insert", store.InsertSnapshot(t.Context(), n), nacre.CodeConflict)
	}
	events := waitEvents(t, store, nacre.EventFilter{TeamID: team, SandboxID: full.Sandbox}, 1)
	if events[0].Kind != nacre.EventSnapshotCreated || events[0].Data["snapshot"] != string(full.ID) {
		t.Errorf("events: %+v", events)
	}
}

func snapshotBadRecords(t *testing.T, store SnapshotStore) {
	for what, set := range map[string]func(*nacre.Snapshot){
		"no id":          func(n *nacre.Snapshot) { n.ID = "" },
		"a bad id":       func(n *nacre.Snapshot) { n.ID = "../etc/passwd" },
		"no team":        func(n *nacre.Snapshot) { n.TeamID = "" },
		"no kind":        func(n *nacre.Snapshot) { n.Kind = "" },
		"unknown kind":   func(n *nacre.Snapshot) { n.Kind = "x" },
		"no state":       func(n *nacre.Snapshot) { n.State = "" },
		"a NUL":          func(n *nacre.Snapshot) { n.Name = "a\x00b" },
		"a long name":    func(n *nacre.Snapshot) { n.Name = strings.Repeat("a", 1<<10) },
		"metadata":       func(n *nacre.Snapshot) { n.Metadata = map[string]string{"a": "\xff"} },
		"an environment": func(n *nacre.Snapshot) { n.Env = map[string]string{"\xff": "a"} },
	} {
		n := SampleSnapshot(nacre.NewTeamID(), nacre.SnapshotUser, nacre.SnapshotReady)
		set(&n)
		expectCode(t, what, store.InsertSnapshot(t.Context(), n), nacre.CodeInvalid)
	}
	for _, id := range hostile {
		team := nacre.NewTeamID()
		_, err := store.GetSnapshot(t.Context(), team, nacre.SnapshotID(id))
		expectCode(t, fmt.Sprintf("Get %.40q", id), err, nacre.CodeNotFound)
		_, err = store.FindSnapshot(t.Context(), team, id)
		expectCode(t, fmt.Sprintf("Find %.40q", id), err, nacre.CodeNotFound)
		page, err := store.ListSnapshots(t.Context(), nacre.SnapshotFilter{TeamID: team, Name: "x" + id, Sandbox: nacre.SandboxID(id),
			Kinds: []nacre.SnapshotKind{nacre.SnapshotKind(id)}, States: []nacre.SnapshotState{nacre.SnapshotState(id)}})
		if err != nil || len(page.Snapshots) > 0 {
			t.Errorf("List %.40q: %d, %v", id, len(page.Snapshots), err)
		}
	}
}

func snapshotTwoTeams(t *testing.T, store SnapshotStore) {
	ann, bob := nacre.NewTeamID(), nacre.NewTeamID()
	n := mustKeep(t, store, SampleSnapshot(ann, nacre.SnapshotUser, nacre.SnapshotReady))
	for _, team := range []nacre.TeamID{bob, "", nacre.SystemTeam} {
		_, err := store.GetSnapshot(t.Context(), team, n.ID)
		expectCode(t, "Get", err, nacre.CodeNotFound)
		for _, ref := range []string{string(n.ID), n.Name} {
			_, err = store.FindSnapshot(t.Context(), team, ref)
			expectCode(t, "Find", err, nacre.CodeNotFound)
		}
		_, err = store.UpdateSnapshot(t.Context(), team, n.ID, func(*nacre.Snapshot) ([]nacre.Event, error) {
			t.Error("another team's record was shown to change")
			return nil, nil
		})
		expectCode(t, "Update", err, nacre.CodeNotFound)
		_, err = store.RetireSnapshot(t.Context(), team, n.ID)
		expectCode(t, "Retire", err, nacre.CodeNotFound)
		if err := store.DropSnapshot(t.Context(), team, n.ID); err != nil {
			t.Errorf("Drop of what is not there: %v", err)
		}
		for _, f := range []nacre.SnapshotFilter{{}, {Name: n.Name}, {Sandbox: n.Sandbox}, {ExpiresBefore: n.ExpiresAt}} {
			f.TeamID = team
			if page, err := store.ListSnapshots(t.Context(), f); err != nil || len(page.Snapshots) > 0 && team != nacre.SystemTeam {
				t.Errorf("%+v finds %d, %v", f, len(page.Snapshots), err)
			}
		}
	}
	if count, bytes, err := store.SnapshotUse(t.Context(), bob); count != 0 || bytes != 0 || err != nil {
		t.Errorf("bob uses %d, %d, %v", count, bytes, err)
	}
	got, err := store.GetSnapshot(t.Context(), ann, n.ID)
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "the owner's record", got, n)
}

func snapshotUpdate(t *testing.T, store SnapshotStore) {
	n := mustKeep(t, store, SampleSnapshot(nacre.NewTeamID(), nacre.SnapshotPause, nacre.SnapshotCreating))
	want := n
	want.State, want.Kind, want.Name, want.ExpiresAt = nacre.SnapshotReady, nacre.SnapshotUser, "new", time.Time{}
	want.DiskBytes, want.Env, want.Metadata, want.Version = 7, map[string]string{"NEW": "1"}, nil, 1
	got, err := store.UpdateSnapshot(t.Context(), n.TeamID, n.ID, func(r *nacre.Snapshot) ([]nacre.Event, error) {
		expectSame(t, "what change is given", *r, n)
		*r = want
		r.Version = 77
		return []nacre.Event{{Kind: nacre.EventSnapshotCreated}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "what it returns", got, want)
	if got, err = store.GetSnapshot(t.Context(), n.TeamID, n.ID); err != nil {
		t.Fatal(err)
	}
	expectSame(t, "what is kept", got, want)
	waitEvents(t, store, nacre.EventFilter{TeamID: n.TeamID}, 1)
	mine := errors.New("mine")
	_, err = store.UpdateSnapshot(t.Context(), n.TeamID, n.ID, func(r *nacre.Snapshot) ([]nacre.Event, error) {
		r.Name = "other"
		return nil, mine
	})
	if err != mine {
		t.Errorf("error %v, want change's own", err)
	}
	for what, change := range map[string]func(*nacre.Snapshot){
		"id":        func(r *nacre.Snapshot) { r.ID = nacre.NewSnapshotID() },
		"team":      func(r *nacre.Snapshot) { r.TeamID = nacre.NewTeamID() },
		"sandbox":   func(r *nacre.Snapshot) { r.Sandbox = nacre.NewSandboxID() },
		"createdAt": func(r *nacre.Snapshot) { r.CreatedAt = r.CreatedAt.Add(time.Hour) },
		"state":     func(r *nacre.Snapshot) { r.State = "x" },
	} {
		_, err := store.UpdateSnapshot(t.Context(), n.TeamID, n.ID, func(r *nacre.Snapshot) ([]nacre.Event, error) { change(r); return nil, nil })
		expectCode(t, what, err, nacre.CodeInvalid)
	}
	if got, err = store.GetSnapshot(t.Context(), n.TeamID, n.ID); err != nil {
		t.Fatal(err)
	}
	expectSame(t, "after refused changes", got, want)
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			_, err := store.UpdateSnapshot(t.Context(), n.TeamID, n.ID, func(r *nacre.Snapshot) ([]nacre.Event, error) { r.DiskBytes++; return nil, nil })
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err = store.GetSnapshot(t.Context(), n.TeamID, n.ID); err != nil || got.DiskBytes != 47 || got.Version != 41 {
		t.Errorf("after 40 updates at once: %+v, %v", got, err)
	}
}

func snapshotFind(t *testing.T, store SnapshotStore) {
	team := nacre.NewTeamID()
	add := func(kind nacre.SnapshotKind, state nacre.SnapshotState, name string, age time.Duration) nacre.Snapshot {
		n := SampleSnapshot(team, kind, state)
		n.Name, n.CreatedAt = name, storeEpoch.Add(-age)
		return mustKeep(t, store, n)
	}
	older := add(nacre.SnapshotUser, nacre.SnapshotReady, "x", time.Hour)
	newest := add(nacre.SnapshotUser, nacre.SnapshotReady, "x", time.Minute)
	add(nacre.SnapshotUser, nacre.SnapshotCreating, "x", 0)
	add(nacre.SnapshotUser, nacre.SnapshotDeleting, "x", 0)
	hidden := add(nacre.SnapshotWarm, nacre.SnapshotReady, "x", 0)
	add(nacre.SnapshotUser, nacre.SnapshotReady, "", 0)
	posing := add(nacre.SnapshotUser, nacre.SnapshotReady, string(older.ID), 0) // named as another's id
	for ref, want := range map[string]nacre.SnapshotID{"x": newest.ID, string(older.ID): older.ID, string(newest.ID): newest.ID, string(posing.ID): posing.ID} {
		if got, err := store.FindSnapshot(t.Context(), team, ref); err != nil || got.ID != want {
			t.Errorf("%s is %s (%v), want %s", ref, got.ID, err, want)
		}
	}
	for _, ref := range []string{"", "y", "X", string(hidden.ID)} {
		_, err := store.FindSnapshot(t.Context(), team, ref)
		expectCode(t, ref, err, nacre.CodeNotFound)
	}
}

// SelectsSnapshot is SnapshotFilter's meaning, as plainly as it can be written.
func SelectsSnapshot(f nacre.SnapshotFilter, n nacre.Snapshot) bool {
	kinds := f.Kinds
	if len(kinds) == 0 {
		kinds = []nacre.SnapshotKind{nacre.SnapshotUser}
	}
	return (f.TeamID == n.TeamID || f.TeamID == "" && f.AllTeams) && slices.Contains(kinds, n.Kind) &&
		(f.Sandbox == "" || f.Sandbox == n.Sandbox) && (f.Name == "" || f.Name == n.Name) &&
		(len(f.States) == 0 || slices.Contains(f.States, n.State)) &&
		(f.ExpiresBefore.IsZero() || !n.ExpiresAt.IsZero() && !n.ExpiresAt.After(f.ExpiresBefore))
}

func snapshotList(t *testing.T, store SnapshotStore) {
	teams := []nacre.TeamID{nacre.NewTeamID(), nacre.NewTeamID()}
	boxes := []nacre.SandboxID{nacre.NewSandboxID(), nacre.NewSandboxID()}
	kinds := []nacre.SnapshotKind{nacre.SnapshotUser, nacre.SnapshotPause, nacre.SnapshotFork, nacre.SnapshotWarm}
	states := []nacre.SnapshotState{nacre.SnapshotCreating, nacre.SnapshotReady, nacre.SnapshotDeleting}
	var all []nacre.Snapshot
	for i := range 48 {
		n := SampleSnapshot(teams[i%2], kinds[i/2%4], states[i/8%3])
		n.Sandbox, n.Name = boxes[i/3%2], []string{"", "a", "b"}[i%3]
		n.CreatedAt = storeEpoch.Add(time.Duration(i/5) * time.Microsecond)
		if n.ExpiresAt = (time.Time{}); i%4 > 0 {
			n.ExpiresAt = storeEpoch.Add(time.Duration(i%4) * time.Hour)
		}
		all = append(all, mustKeep(t, store, n))
	}
	for _, f := range []nacre.SnapshotFilter{
		{TeamID: teams[0]}, {TeamID: teams[1], Limit: 2}, {TeamID: teams[0], Kinds: kinds, Limit: 7}, {TeamID: teams[0], Kinds: kinds[1:3]},
		{TeamID: teams[0], Kinds: kinds, States: states[:2]}, {TeamID: teams[1], Kinds: kinds, Sandbox: boxes[0], Limit: 3},
		{TeamID: teams[0], Kinds: kinds, Name: "a"}, {TeamID: teams[0], Kinds: kinds, ExpiresBefore: storeEpoch.Add(2 * time.Hour)},
		{AllTeams: true, Sandbox: boxes[1], Kinds: kinds, Limit: 5}, {AllTeams: true, TeamID: teams[0]}, {},
	} {
		var want []nacre.Snapshot
		for _, n := range all {
			if SelectsSnapshot(f, n) {
				want = append(want, n)
			}
		}
		slices.SortFunc(want, func(a, b nacre.Snapshot) int {
			return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.ID, a.ID))
		})
		expectSame(t, fmt.Sprintf("%+v", f), pagesOf(t, store, f), want)
	}
	page, err := store.ListSnapshots(t.Context(), nacre.SnapshotFilter{TeamID: teams[0], Kinds: kinds, Limit: 1})
	if err != nil || page.Next == "" {
		t.Fatalf("%+v, %v", page, err)
	}
	for _, f := range []nacre.SnapshotFilter{{TeamID: teams[1], Kinds: kinds, Cursor: page.Next}, {TeamID: teams[0], Cursor: page.Next},
		{TeamID: teams[0], Kinds: kinds, Cursor: "x" + page.Next}, {TeamID: teams[0], Kinds: kinds, Cursor: strings.Repeat("A", 1<<20)}} {
		_, err := store.ListSnapshots(t.Context(), f)
		expectCode(t, "a cursor of another list", err, nacre.CodeInvalid)
	}
}

func pagesOf(t *testing.T, store SnapshotStore, f nacre.SnapshotFilter) (out []nacre.Snapshot) {
	t.Helper()
	for {
		page, err := store.ListSnapshots(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		if f.Limit > 0 && len(page.Snapshots) > f.Limit {
			t.Fatalf("a page of %d with limit %d", len(page.Snapshots), f.Limit)
		}
		if out = append(out, page.Snapshots...); page.Next == "" {
			return out
		}
		f.Cursor = page.Next
	}
}

func snapshotLife(t *testing.T, store SnapshotStore) {
	n := mustKeep(t, store, SampleSnapshot(nacre.NewTeamID(), nacre.SnapshotUser, nacre.SnapshotReady))
	expectCode(t, "Drop of a ready one", store.DropSnapshot(t.Context(), n.TeamID, n.ID), nacre.CodeConflict)
	deleted := nacre.Event{Kind: nacre.EventSnapshotDeleted}
	for range 2 { // a repeat is no error, and no event
		got, err := store.RetireSnapshot(t.Context(), n.TeamID, n.ID, deleted)
		if err != nil || got.State != nacre.SnapshotDeleting || got.Version != 1 {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	waitEvents(t, store, nacre.EventFilter{TeamID: n.TeamID}, 1)
	_, err := store.UpdateSnapshot(t.Context(), n.TeamID, n.ID, func(r *nacre.Snapshot) ([]nacre.Event, error) {
		r.State = nacre.SnapshotReady
		return nil, nil
	})
	expectCode(t, "back to ready", err, nacre.CodeConflict)
	for range 2 {
		if err := store.DropSnapshot(t.Context(), n.TeamID, n.ID); err != nil {
			t.Fatal(err)
		}
	}
	_, err = store.GetSnapshot(t.Context(), n.TeamID, n.ID)
	expectCode(t, "Get of a dropped one", err, nacre.CodeNotFound)
	_, err = store.RetireSnapshot(t.Context(), n.TeamID, n.ID)
	expectCode(t, "Retire of a dropped one", err, nacre.CodeNotFound)
}

// holder is a sandbox that names the snapshot.
func holder(team nacre.TeamID, state nacre.State, n nacre.SnapshotID) nacre.Sandbox {
	s := SampleSandbox(team, state)
	s.Snapshot = n
	return s
}

func snapshotHolds(t *testing.T, store SnapshotStore) {
	team := nacre.NewTeamID()
	good := mustKeep(t, store, SampleSnapshot(team, nacre.SnapshotPause, nacre.SnapshotCreating))
	system := mustKeep(t, store, SampleSnapshot(nacre.SystemTeam, nacre.SnapshotWarm, nacre.SnapshotReady))
	foreign := mustKeep(t, store, SampleSnapshot(nacre.NewTeamID(), nacre.SnapshotUser, nacre.SnapshotReady))
	gone := mustKeep(t, store, SampleSnapshot(team, nacre.SnapshotUser, nacre.SnapshotDeleting))
	for what, c := range map[string]struct {
		id nacre.SnapshotID
		ok bool
	}{"the team's": {good.ID, true}, "the system's": {system.ID, true}, "another team's": {foreign.ID, false},
		"a deleted one": {gone.ID, false}, "none": {nacre.NewSnapshotID(), false}} {
		for _, state := range []nacre.State{nacre.StateCreating, nacre.StatePausing, nacre.StatePaused, nacre.StateResuming, nacre.StateRunning} {
			s := holder(team, state, c.id)
			err := store.Insert(t.Context(), s)
			if c.ok && err != nil {
				t.Errorf("Insert %s with %s: %v", state, what, err)
			} else if !c.ok {
				expectCode(t, "Insert with "+what, err, nacre.CodeNotFound)
				_, err = store.Get(t.Context(), team, s.ID)
				expectCode(t, "the refused record", err, nacre.CodeNotFound)
			} else {
				got, err := store.Get(t.Context(), team, s.ID)
				if err != nil {
					t.Fatal(err)
				}
				expectSame(t, "record", got, s)
			}
		}
		for _, state := range []nacre.State{nacre.StateStopping, nacre.StateEnded} {
			if err := store.Insert(t.Context(), holder(team, state, c.id)); err != nil {
				t.Errorf("Insert %s with %s: %v", state, what, err)
			}
		}
		s := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
		_, err := store.Update(t.Context(), team, s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
			r.State, r.Snapshot = nacre.StatePausing, c.id
			return nil, nil
		})
		if c.ok && err != nil {
			t.Errorf("Update to %s: %v", what, err)
		} else if !c.ok {
			expectCode(t, "Update to "+what, err, nacre.CodeNotFound)
			if got, err := store.Get(t.Context(), team, s.ID); err != nil || got.State != nacre.StateRunning || got.Snapshot != "" {
				t.Errorf("the refused change was made: %+v, %v", got, err)
			}
		}
	}
	// A dead sandbox holds nothing; one that lets go neither.
	n := mustKeep(t, store, SampleSnapshot(team, nacre.SnapshotUser, nacre.SnapshotReady))
	a, b := mustInsert(t, store, holder(team, nacre.StatePaused, n.ID)), mustInsert(t, store, holder(team, nacre.StateResuming, n.ID))
	_, err := store.RetireSnapshot(t.Context(), team, n.ID)
	expectCode(t, "Retire of a held one", err, nacre.CodeConflict)
	_, err = store.UpdateSnapshot(t.Context(), team, n.ID, func(r *nacre.Snapshot) ([]nacre.Event, error) {
		r.State = nacre.SnapshotDeleting
		return nil, nil
	})
	expectCode(t, "Update of a held one to deleting", err, nacre.CodeConflict)
	for _, c := range []struct {
		s  nacre.Sandbox
		to nacre.State
		n  nacre.SnapshotID
	}{{a, nacre.StateStopping, n.ID}, {b, nacre.StateRunning, ""}} {
		_, err := store.Update(t.Context(), team, c.s.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
			r.State, r.Snapshot = c.to, c.n
			return nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := store.RetireSnapshot(t.Context(), team, n.ID); err != nil {
		t.Errorf("Retire of what nobody holds: %v", err)
	}
}

func snapshotHolders(t *testing.T, store SnapshotStore) {
	team := nacre.NewTeamID()
	n := mustKeep(t, store, SampleSnapshot(team, nacre.SnapshotUser, nacre.SnapshotReady))
	var ids []string
	for range 5 {
		ids = append(ids, string(mustInsert(t, store, holder(team, nacre.StatePaused, n.ID)).ID))
		_, err := store.RetireSnapshot(t.Context(), team, n.ID)
		expectCode(t, "Retire", err, nacre.CodeConflict)
		named := 0
		for _, id := range ids {
			if strings.Contains(nacre.ErrorMessage(err), id) {
				named++
			}
		}
		if named != min(3, len(ids)) {
			t.Errorf("of %d holders %d are named: %v", len(ids), named, err)
		}
	}
}

// snapshotRaces: of a hold and a retirement at once one wins, and the other is told.
func snapshotRaces(t *testing.T, store SnapshotStore) {
	team := nacre.NewTeamID()
	won, lost := 0, 0
	for round := range 60 {
		n := mustKeep(t, store, SampleSnapshot(team, nacre.SnapshotUser, nacre.SnapshotReady))
		waiting := mustInsert(t, store, SampleSandbox(team, nacre.StateRunning))
		fresh := holder(team, nacre.StateCreating, n.ID)
		var insertErr, updateErr, retireErr error
		var wg sync.WaitGroup
		start := make(chan struct{})
		wg.Go(func() { <-start; insertErr = store.Insert(t.Context(), fresh) })
		wg.Go(func() {
			<-start
			_, updateErr = store.Update(t.Context(), team, waiting.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
				r.State, r.Snapshot = nacre.StateResuming, n.ID
				return nil, nil
			})
		})
		wg.Go(func() { <-start; _, retireErr = store.RetireSnapshot(t.Context(), team, n.ID) })
		close(start)
		wg.Wait()
		held := insertErr == nil || updateErr == nil
		for what, err := range map[string]error{"insert": insertErr, "update": updateErr} {
			if err != nil {
				expectCode(t, what, err, nacre.CodeNotFound)
			}
		}
		if retireErr == nil {
			won++
		} else {
			lost++
			expectCode(t, "retire", retireErr, nacre.CodeConflict)
		}
		if held == (retireErr == nil) {
			t.Fatalf("round %d: insert %v, update %v, retire %v", round, insertErr, updateErr, retireErr)
		}
	}
	t.Logf("%d retirements won, %d lost", won, lost)
}

func snapshotUse(t *testing.T, store SnapshotStore) {
	team := nacre.NewTeamID()
	for i, kind := range []nacre.SnapshotKind{nacre.SnapshotUser, nacre.SnapshotPause, nacre.SnapshotFork} {
		n := SampleSnapshot(team, kind, nacre.SnapshotReady)
		n.DiskBytes = 1 << (40 + i)
		mustKeep(t, store, n)
	}
	count, bytes, err := store.SnapshotUse(t.Context(), team)
	if err != nil || count != 3 || bytes != 7<<40 {
		t.Errorf("%d snapshots, %d bytes, %v", count, bytes, err)
	}
}
